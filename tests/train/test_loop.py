"""Steps recomputed by hand, warm-up, bf16, stop conditions, labels, logs and grids."""

from __future__ import annotations

import json
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from flatq.checkpoint import load_checkpoint
from flatq.errors import DataError, ModelError, UsageError
from flatq.images import load_images, to_float
from flatq.network import build_network
from flatq.sampler import sample
from flatq.sampling_settings import SamplingSettings
from flatq.train import TrainConfig, model_config_for, train
from flatq.train.batches import Batch, Batches
from flatq.train.distributed import Workers
from flatq.train.held_out import HeldOut
from flatq.train.loop import Trainer
from flatq.train.state import read_state
from flatq.train.steps import zero_outputs
from flatq.train.timesteps import Uniform

CPU = torch.device("cpu")


def _config(**changes: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "data": "digits:train", "steps": 4, "batch_size": 8, "channels": (8, 16), "patch_size": 2,
        "threads": 1,
    }  # fmt: skip
    return TrainConfig(**values | changes)


def _stream(key: int, seed: int = 0, rank: int = 0) -> torch.Generator:
    """Recomputed from numpy alone. Keys: weights, order, timesteps, noise, perturbation, labels, dropout."""
    words = np.random.SeedSequence(seed, spawn_key=(key, rank)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(words[0]))


@pytest.mark.parametrize("gamma", [None, 0.15])
@pytest.mark.parametrize("every", [1, 3])
def test_sam_steps_recomputed_by_hand(every: int, gamma: float | None, tmp_path: Path) -> None:
    """Plain torch, float64 but for the network: ascent, gradient there, clipping, AdamW from before."""
    config = _config(method="sam", rho=0.7, sam_every=every, gamma=gamma, clip_grad=0.1, warmup=3, lr=1e-3)
    trainer = Trainer(config, tmp_path, Workers(CPU))
    with torch.random.fork_rng():
        torch.default_generator.set_state(_stream(0).get_state())
        ours = build_network(trainer.model).train()
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in ours.parameters()]
    images = to_float(load_images("digits:train").pixels)
    order = torch.randperm(len(images), generator=_stream(1))
    timesteps, noises, other = (_stream(key) for key in (2, 3, 4))
    alphas = torch.from_numpy(np.cumprod(1 - config.process.training_betas()))

    for step in range(1, config.steps + 1):
        x0 = torch.from_numpy(images[order[(step - 1) * 8 : step * 8].numpy()])
        t = torch.randint(1000, (8,), generator=timesteps)
        noise = torch.randn(x0.shape, generator=noises)
        mixed = noise if gamma is None else noise + gamma * torch.randn(x0.shape, generator=other)
        a = alphas[t].view(-1, 1, 1, 1)
        x_t = (a.sqrt() * x0 + (1 - a).sqrt() * mixed).float()

        def gradients(x_t: torch.Tensor = x_t, t: torch.Tensor = t, noise: torch.Tensor = noise) -> Any:
            return torch.autograd.grad(((ours(x_t, t) - noise) ** 2).mean(), list(ours.parameters()))

        g = gradients()
        if (step - 1) % every == 0:
            before = [p.detach().clone() for p in ours.parameters()]
            length = torch.cat([v.double().flatten() for v in g]).norm()
            with torch.no_grad():
                for p, v in zip(ours.parameters(), g, strict=True):
                    p += (0.7 * v / length).float()
            g = gradients()
            with torch.no_grad():
                for p, w in zip(ours.parameters(), before, strict=True):
                    p.copy_(w)
        length = torch.cat([v.double().flatten() for v in g]).norm()
        scale = min(1.0, 0.1 / (float(length) + 1e-6))
        rate = 1e-3 * min(1.0, step / 3)
        with torch.no_grad():
            for p, v, (m, s) in zip(ours.parameters(), g, moments, strict=True):
                v = v * scale
                m.lerp_(v, 0.1)
                s.lerp_(v * v, 0.001)
                p -= rate * (m / (1 - 0.9**step)) / ((s / (1 - 0.999**step)).sqrt() + 1e-8)
        trainer.advance()

    assert trainer.passes == config.steps + len([s for s in range(config.steps) if s % every == 0])
    for mine, theirs in zip(ours.parameters(), trainer.network.parameters(), strict=True):
        # float32 gradients near zero decide over whole steps of AdamW: all but a few agree closely
        off = (mine.detach() - theirs.detach()).abs()
        assert float((off > 1e-5).float().mean()) < 0.01
        assert float(off.max()) < 4 * 1e-3


def test_methods_see_the_same_batches() -> None:
    pixels = load_images("digits:train").pixels
    adm, ip = (
        Batches(pixels, _config(method=method, flip=True)).draw(Uniform(1000)) for method in ("adm", "ip")
    )
    assert torch.equal(adm.x0, ip.x0)
    assert torch.equal(adm.t, ip.t)
    assert torch.equal(adm.noise, ip.noise)
    assert adm.shift is None
    assert ip.shift is not None
    many = Batches(pixels, _config(method="ip", gamma=0.3, batch_size=500)).draw(Uniform(1000))
    assert many.shift is not None
    assert float(many.shift.std()) == pytest.approx(0.3, rel=0.02)  # 32,000 numbers: 0.4 % standard error
    assert abs(float((many.shift * many.noise).mean())) < 0.3 * 0.02


@pytest.mark.parametrize("timesteps", ["uniform", "loss-second-moment"])
def test_methods_see_the_same_timesteps_only_where_these_are_uniform(timesteps: str, tmp_path: Path) -> None:
    def batch_after_training(**changes: Any) -> Batch:
        config = _config(timesteps=timesteps, train_steps=4, lr=1e-2, **changes)
        trainer = Trainer(config, tmp_path, Workers(CPU))
        for _ in range(20):  # each timestep has its 10 losses by then
            trainer.advance()
        return trainer.batches.draw(trainer.timesteps)

    adm = batch_after_training()
    for other in (batch_after_training(method="ip"), batch_after_training(method="sam", rho=1.0)):
        assert torch.equal(adm.x0, other.x0)
        assert torch.equal(adm.noise, other.noise)
        assert torch.equal(adm.weight, other.weight) == (timesteps == "uniform")
        assert torch.equal(adm.t, other.t) or timesteps != "uniform"


def test_each_process_has_its_own_dropout_and_no_other_seeds(tmp_path: Path) -> None:
    class Second:
        process_index, num_processes = 1, 2

        def prepare_model(self, network: Any) -> Any:
            return network

        no_sync = nullcontext

    with torch.random.fork_rng():
        for seed, rank in ((0, 0), (0, 1), (1, 0)):
            workers = Workers(CPU, Second() if rank else None)
            trainer = Trainer(_config(seed=seed), tmp_path, workers)
            assert torch.equal(torch.get_rng_state(), _stream(6, seed, rank).get_state())
            if not rank:
                continue
            first = Trainer(_config(seed=seed), tmp_path, Workers(CPU))
            for mine, other in zip(trainer.parameters, first.parameters, strict=True):
                assert torch.equal(mine, other)


class _Reads(TorchDispatchMode):
    """Counts what a host waits for on a GPU: numbers read from tensors, but not AdamW's own step counts."""

    def __init__(self, trainer: Trainer) -> None:
        super().__init__()
        self._optimizer = trainer.optimizer
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            self.count += not any(args[0] is state["step"] for state in self._optimizer.state.values())
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("method", ["adm", "sam", "noise"])
def test_no_step_waits_for_the_device(method: str, tmp_path: Path) -> None:
    # bool(), float() and item() alone: on a CPU, tolist() and numpy() are not dispatched
    trainer = Trainer(_config(method=method, flip=True, dropout=0.1), tmp_path, Workers(CPU))
    with _Reads(trainer) as reads:
        for _ in range(3):
            trainer.advance()
    assert reads.count == 0


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["adm", "sam", "noise"])
def test_no_step_waits_for_a_gpu(method: str, tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    config = _config(method=method, flip=True, dropout=0.1, precision="bf16", device="cuda")
    with torch.random.fork_rng():
        trainer = Trainer(config, tmp_path, Workers(torch.device("cuda", 0)))
        trainer.advance()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(3):
                trainer.advance()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_progress_gets_the_loss_where_the_curve_has_a_point(tmp_path: Path) -> None:
    seen: dict[int, float | None] = {}
    train(_config(steps=60, batch_size=2), tmp_path, progress=seen.__setitem__)
    curve = json.loads((tmp_path / "train.json").read_text())["curve"]
    assert list(seen) == list(range(1, 61))
    assert {step: loss for step, loss in seen.items() if loss is not None} == {50: curve[0]["loss"]}


@pytest.mark.parametrize("timesteps", ["uniform", "loss-second-moment"])
def test_a_loss_that_is_not_finite_is_found_before_the_next_checkpoint(
    timesteps: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = 0
    draw = Batches.draw

    def poisoned(batches: Batches, sampler: Any) -> Batch:
        nonlocal drawn
        drawn += 1
        batch = draw(batches, sampler)
        return batch._replace(noise=batch.noise * torch.nan) if drawn == 5 else batch

    monkeypatch.setattr(Batches, "draw", poisoned)
    config = _config(steps=60, save_every=3, timesteps=timesteps, train_steps=4, grid_every=100)
    with pytest.raises(ModelError, match="diverged by step 5; step 3 is the last saved"):
        train(config, tmp_path)
    assert drawn == (6 if timesteps == "uniform" else 5)
    assert load_checkpoint(tmp_path / "ckpt.pt").provenance["steps_done"] == 3
    assert read_state(tmp_path)["step"] == 3


def test_passes_and_parts() -> None:
    pixels = load_images("digits:train", limit=10).pixels
    batches = Batches(pixels, _config(batch_size=4))
    drawn, ended = [], []
    for _ in range(5):
        drawn.append(batches.draw(Uniform(10)))
        ended.append(batches.epoch_ended)
    assert ended == [False, False, True, False, True]
    rows = torch.cat([batch.x0 for batch in drawn]).numpy()
    for start in (0, 10):  # each image once in each pass
        seen = {image.tobytes() for image in rows[start : start + 10]}
        assert seen == {image.tobytes() for image in to_float(pixels)}
    parts = [drawn[0].part(rank, 2, CPU) for rank in range(2)]
    assert torch.equal(torch.cat([part.noise for part in parts]), drawn[0].noise)
    assert torch.equal(torch.cat([part.t for part in parts]), drawn[0].t)


def test_labels_with_dropout(tmp_path: Path) -> None:
    pixels, labels = load_images("digits:train").pixels, load_images("digits:train").labels
    config = _config(labels=True, label_dropout=0.25, batch_size=1500)
    batch = Batches(pixels, config, labels, 10).draw(Uniform(1000))
    assert batch.label is not None
    by_image = {image.tobytes(): label for image, label in zip(to_float(pixels), labels, strict=True)}
    kept = [(by_image[x.tobytes()], n) for x, n in zip(batch.x0.numpy(), batch.label.tolist(), strict=True)]
    dropped = [n for own, n in kept if n != own]
    assert set(dropped) == {10}
    assert len(dropped) / 1500 == pytest.approx(0.25, abs=0.05)  # four standard errors

    checkpoint = train(_config(labels=True, label_dropout=0.25, heldout="digits:heldout"), tmp_path / "a")
    assert (checkpoint.model.num_classes, checkpoint.model.null_label) == (11, 10)
    assert load_checkpoint(tmp_path / "a" / "ckpt.pt").network()(
        torch.zeros(1, 1, 8, 8), torch.tensor([1]), torch.tensor([10])
    ).shape == (1, 1, 8, 8)
    plain = train(_config(labels=True, num_classes=12), tmp_path / "b")
    assert (plain.model.num_classes, plain.model.null_label) == (12, None)


def test_labels_that_are_not_there_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "grey.npz", np.zeros((4, 8, 8, 1), np.uint8))
    with pytest.raises(DataError, match="no labels"):
        train(_config(data=str(tmp_path / "grey.npz"), labels=True), tmp_path / "run")
    with pytest.raises(DataError, match="labels"):
        train(_config(labels=True, num_classes=5), tmp_path / "run")


def test_bf16_runs_the_network_alone_in_bf16(tmp_path: Path) -> None:
    half = train(_config(precision="bf16"), tmp_path / "half")
    full = train(_config(), tmp_path / "full")
    assert all(value.dtype == torch.float32 for value in half.weights["raw"].values())
    assert half.provenance["final_loss"] != full.provenance["final_loss"]
    # 8 bits of mantissa in the network's output
    assert half.provenance["final_loss"] == pytest.approx(full.provenance["final_loss"], rel=0.02)


def test_a_run_ends_by_loss_or_time(tmp_path: Path) -> None:
    options: dict[str, Any] = {"heldout": "digits:heldout", "heldout_every": 5, "lr": 3e-3}
    by_loss = train(_config(**options, steps=200, stop_loss=0.9), tmp_path / "loss")
    about = by_loss.provenance
    assert about["stopped_by"] == "loss"
    assert about["steps_done"] % 5 == 0
    assert about["steps_done"] < 200
    curve = json.loads((tmp_path / "loss" / "train.json").read_text())["heldout_curve"]
    assert [point["raw"] <= 0.9 for point in curve] == [False] * (len(curve) - 1) + [True]
    assert set(curve[0]) == {"step", "raw", "ema"}
    # it stays ended when it is resumed
    again = train(_config(**options, steps=200, stop_loss=0.9), tmp_path / "loss", resume=True)
    assert again.provenance["steps_done"] == about["steps_done"]

    by_time = train(_config(steps=10**6, max_minutes=1e-9), tmp_path / "time")
    assert by_time.provenance["stopped_by"] == "time"
    assert by_time.provenance["steps_done"] == 1


def test_heldout_loss_is_that_of_the_weights_and_always_the_same(tmp_path: Path) -> None:
    config = _config(heldout="digits:heldout", batch_size=100, method="ip")
    heldout = HeldOut(config, (1, 8, 8), CPU)
    network = build_network(model_config_for(config, (1, 8, 8))).train()
    before = torch.get_rng_state()
    first = heldout.loss(network)
    assert first == heldout.loss(network)
    assert network.training
    zeros = {name: torch.zeros_like(value) for name, value in network.unet.state_dict().items()}
    # a network that predicts zero has the mean square of the noise: 1, over 19,008 numbers
    assert heldout.loss(network, zeros) == pytest.approx(1.0, abs=0.05)
    assert heldout.loss(network) == first
    assert torch.equal(torch.get_rng_state(), before)

    with pytest.raises(DataError, match="held-out"):
        train(_config(heldout="digits:heldout", size=16, data="digits", image_channels=None).model_copy(
            update={"heldout": str(_rgb(tmp_path))}), tmp_path / "run")  # fmt: skip


def _rgb(folder: Path) -> Path:
    np.savez(folder / "rgb.npz", np.zeros((4, 16, 16, 3), np.uint8))
    return folder / "rgb.npz"


def test_grids_show_the_average_and_disturb_nothing(tmp_path: Path) -> None:
    with_grids = train(_config(grid_every=2, dropout=0.2), tmp_path / "grids")
    without = train(_config(dropout=0.2), tmp_path / "none")
    for name, value in without.weights["raw"].items():
        assert torch.equal(with_grids.weights["raw"][name], value)
    names = [path.name for path in sorted((tmp_path / "grids" / "grids").iterdir())]
    assert names == ["step-0000002.png", "step-0000004.png"]
    with Image.open(tmp_path / "grids" / "grids" / names[1]) as picture:
        assert picture.size == (8 * 9 - 1, 8 * 9 - 1)
        shown = np.asarray(picture)

    # the last grid is a sample from the checkpoint's ema weights
    from flatq.images import make_grid, to_uint8
    from flatq.runtime.torch import TorchRuntime

    with TorchRuntime(with_grids.network("ema"), threads=1) as runtime:
        x = sample(runtime, with_grids.process, SamplingSettings(steps=20), range(64), (1, 8, 8))
    assert np.array_equal(shown, np.asarray(make_grid(to_uint8(x), 8)))


def test_zeroed_outputs_predict_zero_and_learn() -> None:
    network = build_network(model_config_for(_config(attention=(4,)), (1, 8, 8)))
    zero_outputs(network)
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 500])
    assert torch.count_nonzero(network(x, t)) == 0
    attention = network.unet.mid_block.attentions[0]  # type: ignore[union-attr,index]
    h = torch.randn(1, 16, 2, 2)
    assert torch.equal(attention(h), h)
    (network(x, t) - 1).square().mean().backward()
    assert torch.count_nonzero(network.unet.conv_out.weight.grad) > 0  # type: ignore[union-attr,arg-type]


def test_tensorboard_scalars(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = _config(steps=100, batch_size=2, tensorboard=True, method="sam", heldout="digits:heldout")
    train(config, tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert tags == {
        "train/loss", "train/sharp_loss", "train/learning_rate", "train/images_per_second",
        "heldout/raw", "heldout/ema",
    }  # fmt: skip
    curve = json.loads((tmp_path / "train.json").read_text())["curve"]
    logged = {event.step: event.value for event in events.Scalars("train/loss")}
    assert logged == pytest.approx({point["step"]: point["loss"] for point in curve}, rel=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Dynamo detected a call")  # to a cached function of diffusers
def test_a_compiled_network_trains_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # traced as usual, but not lowered: that takes minutes on a busy machine
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    options: dict[str, Any] = {"precision": "bf16", "method": "sam", "steps": 2}
    compiled = train(_config(compile=True, **options), tmp_path / "compiled")
    plain = train(_config(**options), tmp_path / "plain")
    assert list(compiled.weights["raw"]) == list(plain.weights["raw"])
    for name, value in plain.weights["raw"].items():
        torch.testing.assert_close(compiled.weights["raw"][name], value)


def test_divergence_after_a_checkpoint_names_it(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"step \d is the last saved"):
        train(_config(lr=1e25, warmup=10**8, steps=50, save_every=1, clip_grad=None), tmp_path)
    load_checkpoint(tmp_path / "ckpt.pt").network("raw")


def test_what_a_run_is_refused_for_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        train(_config(patch_size=3), tmp_path / "run")
    assert not (tmp_path / "run").exists()
