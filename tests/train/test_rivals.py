"""Weight noise, SAM on normalization layers, learning-rate schedules and snapshots, against other routes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from flatq.checkpoint import load_checkpoint
from flatq.errors import UsageError
from flatq.network import build_network
from flatq.train import TrainConfig, model_config_for, train
from flatq.train.distributed import Workers
from flatq.train.gradients import noise_gradients, norm_parameters, sam_gradients
from flatq.train.loop import Trainer


def _config(**changes: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "data": "digits:train", "steps": 4, "batch_size": 4, "channels": (8, 16), "patch_size": 2,
        "threads": 1,
    }  # fmt: skip
    return TrainConfig(**values | changes)


def _equal(first: Path, second: Path) -> None:
    a, b = load_checkpoint(first), load_checkpoint(second)
    assert list(a.weights) == list(b.weights)
    for average, weights in a.weights.items():
        assert all(torch.equal(value, b.weights[average][name]) for name, value in weights.items())


def test_weight_noise_has_the_standard_deviation_of_its_range() -> None:
    # L = |w|^2 / 2 has the gradient w + e
    generator = torch.Generator().manual_seed(0)
    w = nn.Parameter(torch.rand(300, 200) * 4 - 1)  # a range of 4
    bias = nn.Parameter(torch.rand(1000))
    before = w.detach().clone()
    loss = noise_gradients([w, bias], lambda: ((w**2).sum() + (bias**2).sum()) / 2, 0.05, generator)
    assert w.grad is not None
    assert bias.grad is not None
    e = w.grad - before
    assert float(e.std()) == pytest.approx(0.05 * 4, rel=0.01)  # 60,000 numbers: 0.3 % standard error
    assert abs(float(e.mean())) < 4 * 0.2 / 60_000**0.5
    assert float((e.abs() < 0.2).float().mean()) == pytest.approx(0.6827, abs=0.01)
    assert torch.equal(bias.grad, bias.detach())
    assert torch.equal(w.detach(), before)
    assert float(loss) == pytest.approx(float(((w.grad**2).sum() + (bias.grad**2).sum()) / 2), rel=1e-5)
    noise_gradients([w, bias], lambda: (w**2).sum() / 2, 0.05, generator)
    assert not torch.equal(w.grad - before, e)


def test_noisy_weights_come_back_when_the_pass_fails() -> None:
    w = nn.Parameter(torch.randn(3, 4))
    before = w.detach().clone()

    def failing() -> torch.Tensor:
        assert not torch.equal(w.detach(), before)
        raise RuntimeError("the pass")

    with pytest.raises(RuntimeError, match="the pass"):
        noise_gradients([w], failing, 0.1, torch.Generator())
    assert torch.equal(w.detach(), before)


def test_sam_on_norm_perturbs_normalization_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.GroupNorm(2, 4), nn.Linear(4, 3), nn.LayerNorm(3)).double()
    x, target = torch.randn(5, 6, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    names = [name for name, _ in model.named_parameters()]
    values = dict(model.named_parameters())

    def gradients(at: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        loss = (torch.func.functional_call(model, at, (x,)) - target).square().mean()
        return dict(zip(names, torch.autograd.grad(loss, [at[name] for name in names]), strict=True))

    g = gradients(values)
    norms = ["1.weight", "1.bias", "3.weight", "3.bias"]
    length = torch.cat([g[name] for name in norms]).norm()
    moved = {n: v + 0.3 * g[n] / length if n in norms else v for n, v in values.items()}
    expected = gradients(moved)

    only = norm_parameters(model)
    sam_gradients(model.parameters(), lambda: (model(x) - target).square().mean(), 0.3, only=only)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-10, atol=1e-14)


def test_normalization_layers_of_a_unet(tmp_path: Path) -> None:
    network = build_network(model_config_for(_config(attention=(4,)), (1, 8, 8)))
    by_name = {name for name, _ in network.named_parameters() if "norm" in name}
    found = {id(parameter) for parameter in norm_parameters(network)}
    assert {name for name, p in network.named_parameters() if id(p) in found} == by_name
    assert len(by_name) > 10
    # a run perturbs as it is told
    for part, moves in (("all", True), ("norm", False)):
        trainer = Trainer(_config(method="sam", rho=1.0, sam_on=part), tmp_path, Workers(torch.device("cpu")))
        seen: list[torch.Tensor] = []
        weight = trainer.network.unet.conv_in.weight
        trainer.network.register_forward_pre_hook(lambda *_, w=weight, s=seen: s.append(w.detach().clone()))
        trainer.advance()
        assert len(seen) == 2
        assert torch.equal(seen[0], seen[1]) != moves


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_learning_rates_are_torchs(schedule: Any, tmp_path: Path) -> None:
    steps, warmup = 12, 4
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    theirs: Any = {
        "constant": torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0),
        "cosine": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps - warmup),
        "linear": torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps - warmup),
    }[schedule]
    expected = [0.5 * step / warmup for step in range(1, warmup + 1)]
    for _ in range(steps - warmup):
        optimizer.step()
        theirs.step()
        expected.append(float(optimizer.param_groups[0]["lr"]))
    config = _config(steps=steps, warmup=warmup, lr=0.5, lr_schedule=schedule)
    assert [config.rate(step) for step in range(1, steps + 1)] == pytest.approx(expected, abs=1e-12)
    assert (config.rate(steps) == pytest.approx(0.0, abs=1e-12)) == (schedule != "constant")
    trainer = Trainer(config, tmp_path, Workers(torch.device("cpu")))
    for step in range(1, 7):
        trainer.advance()
        assert trainer.optimizer.param_groups[0]["lr"] == config.rate(step)


def test_more_steps_would_change_a_falling_rate(tmp_path: Path) -> None:
    train(_config(lr_schedule="cosine"), tmp_path)
    with pytest.raises(UsageError, match="steps differ"):
        train(_config(lr_schedule="cosine", steps=8), tmp_path, resume=True)


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "noise", "gamma": 0.1},
        {"method": "adm", "sam_on": "norm"},
        {"lr_schedule": "linear", "warmup": 4},
        {"snapshot_steps": (5,)},
        {"snapshot_loss": 0.5},
        {"method": "noise", "sigma": 0.0},
    ],
)
def test_contradictions_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        _config(**changes)


def test_snapshots_are_the_runs_that_end_there(tmp_path: Path) -> None:
    """One run with everything against three shorter ones, also where it was killed on the way."""
    options: dict[str, Any] = {
        "method": "noise", "heldout": "digits:heldout", "heldout_every": 5, "lr": 3e-3, "dropout": 0.1,
        "swa_start": 2, "swa_period": 3,
    }  # fmt: skip
    by_loss = train(_config(**options, steps=100, stop_loss=0.9), tmp_path / "loss")
    reached = by_loss.provenance["steps_done"]
    assert 5 < reached < 100
    for steps in (3, reached + 2):
        train(_config(**options, steps=steps), tmp_path / str(steps))

    class Stop(BaseException):
        """A kill that pytest can see."""

    def stop_late(step: int, loss: float | None) -> None:
        if step == reached + 1:
            raise Stop

    config = _config(**options, steps=reached + 2, snapshot_steps=(3,), snapshot_loss=0.9, save_every=4)
    run = tmp_path / "run"
    with pytest.raises(Stop):
        train(config, run, progress=stop_late)
    first = {path.name: path.read_bytes() for path in run.glob("ckpt-*.pt")}
    train(config, run, resume=True)
    assert sorted(first) == ["ckpt-loss.pt", "ckpt-step-0000003.pt"]
    assert {path.name: path.read_bytes() for path in run.glob("ckpt-*.pt")} == first

    _equal(run / "ckpt-step-0000003.pt", tmp_path / "3" / "ckpt.pt")
    _equal(run / "ckpt-loss.pt", tmp_path / "loss" / "ckpt.pt")
    _equal(run / "ckpt.pt", tmp_path / str(reached + 2) / "ckpt.pt")
    about = load_checkpoint(run / "ckpt-loss.pt").provenance
    assert (about["steps_done"], about["gradient_passes"]) == (reached, reached)
    assert about["heldout_loss"] == by_loss.provenance["heldout_loss"]
    third = load_checkpoint(tmp_path / "3" / "ckpt.pt").provenance["heldout_loss"]
    assert load_checkpoint(run / "ckpt-step-0000003.pt").provenance["heldout_loss"] == third

    (run / "ckpt.pt").unlink()
    (run / "state.pt").unlink()
    with pytest.raises(UsageError, match="already holds a trained checkpoint"):
        train(config, run)
