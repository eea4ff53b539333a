"""Configuration, objective, averages and short runs of the loop on digits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from flatq.checkpoint import load_checkpoint
from flatq.errors import ModelError, UsageError
from flatq.network import build_network
from flatq.process import ProcessConfig
from flatq.train import TrainConfig, model_config_for, train
from flatq.train.objective import Objective


def _config(**changes: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "data": "digits:train",
        "steps": 5,
        "batch_size": 8,
        "channels": (8, 16),
        "dropout": 0.1,
        "threads": 1,
    }
    return TrainConfig(**(values | changes))


def test_loss_is_zero_for_a_network_that_undoes_the_process() -> None:
    process = ProcessConfig(schedule="cosine", train_steps=10)
    kept = torch.from_numpy(np.cumprod(1 - process.training_betas()))
    x0, noise, t = torch.randn(4, 1, 2, 2), torch.randn(4, 1, 2, 2), torch.tensor([0, 3, 5, 8])

    class Oracle(nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            assert x.dtype == torch.float32
            a = kept[t].view(-1, 1, 1, 1)
            return ((x - a.sqrt() * x0) / (1 - a).sqrt()).float()

    assert float(Objective(process)(Oracle(), x0, t, noise).total.max()) < 1e-10


@pytest.mark.parametrize("method", ["adm", "sam"])
def test_a_run_writes_both_weights_and_is_reproducible(tmp_path: Path, method: str) -> None:
    threads = torch.get_num_threads()
    steps: list[int] = []
    config = _config(method=method, flip=True)
    first = train(config, tmp_path / "a", progress=lambda step, loss: steps.append(step))
    torch.rand(5)
    second = train(config, tmp_path / "b")
    other = train(_config(method=method, flip=True, seed=1), tmp_path / "c")
    assert steps == [1, 2, 3, 4, 5]
    assert torch.get_num_threads() == threads

    loaded = load_checkpoint(tmp_path / "a" / "ckpt.pt")
    assert set(loaded.weights) == {"raw", "ema"}
    for average in ("raw", "ema"):
        loaded.network(average)
        for name, value in loaded.weights[average].items():
            assert torch.equal(value, second.weights[average][name])
    name = "conv_in.weight"
    assert not torch.equal(loaded.weights["raw"][name], loaded.weights["ema"][name])
    assert not torch.equal(loaded.weights["raw"][name], other.weights["raw"][name])
    assert loaded.digest == first.digest
    assert loaded.provenance == first.provenance
    assert loaded.provenance["method"] == method
    assert loaded.provenance["rho"] == (0.1 if method == "sam" else None)
    assert loaded.provenance["data_name"] == "digits:train"
    report = json.loads((tmp_path / "a" / "train.json").read_text())
    curve = report.pop("curve")
    assert report.pop("heldout_curve") == []
    assert report == loaded.provenance
    assert [point["step"] for point in curve] == [5]
    assert ("sharp_loss" in curve[0]) == (method == "sam")
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["ckpt.pt", "state.pt", "train.json"]


def test_the_global_generator_is_left_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    train(_config(steps=1), tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_sam_differs_from_adm_and_tends_to_it_for_a_small_radius(tmp_path: Path) -> None:
    def weight(folder: str, **changes: Any) -> torch.Tensor:
        trained = train(_config(steps=1, lr=1e-3, **changes), tmp_path / folder)
        return trained.weights["raw"]["conv_in.weight"]

    adm = weight("adm")
    # one AdamW step is lr * sign(g): only entries whose gradient changes its sign move apart
    assert not torch.equal(adm, weight("sam", method="sam", rho=2.0))
    near = weight("near", method="sam", rho=1e-6)
    assert float((adm - near).abs().mean()) < 1e-5


def test_an_existing_run_is_refused(tmp_path: Path) -> None:
    train(_config(steps=1), tmp_path)
    before = (tmp_path / "ckpt.pt").read_bytes()
    with pytest.raises(UsageError, match="already holds"):
        train(_config(steps=1), tmp_path)
    assert (tmp_path / "ckpt.pt").read_bytes() == before


@pytest.mark.parametrize("method", ["adm", "sam"])
def test_a_diverged_run_writes_nothing(tmp_path: Path, method: str) -> None:
    with pytest.raises(ModelError, match="diverged") as caught:
        train(_config(lr=1e30, method=method), tmp_path / "run")
    assert caught.value.next_step is not None
    assert "lower lr" in caught.value.next_step
    assert ("rho" in caught.value.next_step) == (method == "sam")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "changes", [{"rho": 0.0}, {"rho": float("nan")}, {"steps": 0}, {"speed": 1}, {"channels": (0, 8)}]
)
def test_bad_options_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        _config(**changes)


def test_network_of_a_run() -> None:
    config = _config(channels=(32, 64), attention=(4,), patch_size=1)
    model = model_config_for(config, (1, 8, 8))
    assert model.unet["down_block_types"] == ["DownBlock2D", "AttnDownBlock2D"]
    assert model.unet["up_block_types"] == ["AttnUpBlock2D", "UpBlock2D"]
    assert model.unet["norm_num_groups"] == model.unet["attn_norm_num_groups"] == 8
    network = build_network(model)
    assert network.unet.mid_block.attentions[0].group_norm is not None  # type: ignore[union-attr,index]
    assert network(torch.zeros(2, 1, 8, 8), torch.tensor([0, 5])).shape == (2, 1, 8, 8)
    assert not model_config_for(_config(), (3, 8, 8)).unet["add_attention"]


@pytest.mark.parametrize(
    ("changes", "shape", "message"),
    [
        ({}, (1, 8, 6), "not square"),
        ({"channels": (8, 8, 8, 8, 8)}, (1, 8, 8), "do not fit"),
        ({"patch_size": 3}, (1, 8, 8), "do not fit"),
        ({"attention": (8,), "patch_size": 2}, (1, 8, 8), "does not have"),
        ({"attention": (4,), "channels": (8, 12)}, (1, 8, 8), "heads"),
        ({"attention": (8,), "channels": (8, 12)}, (1, 8, 8), "heads"),
    ],
)
def test_a_network_that_does_not_fit_is_refused(
    changes: dict[str, Any], shape: tuple[int, int, int], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        model_config_for(_config(**changes), shape)
    assert caught.value.expected
    assert caught.value.got
    assert caught.value.next_step
