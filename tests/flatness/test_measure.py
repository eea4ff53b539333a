"""The damage of an artifact, and `flatq flatness` from end to end."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from command_line import Cli

from flatq.calib import CalibrationPlan
from flatq.checkpoint import Checkpoint
from flatq.errors import UsageError
from flatq.flatness.damage import damage, quantization_error
from flatq.flatness.draws import make_draws
from flatq.flatness.landscape import Landscape, losses_of
from flatq.flatness.report import rank_agreement
from flatq.flatness.result import Flatness
from flatq.images import ImageSet
from flatq.quantize.artifact import Artifact, write_artifact
from flatq.quantize.lowering import lower
from flatq.quantize.rounding import quantize_checkpoint
from flatq.recipe import recipe_for_bits


@pytest.fixture(scope="module")
def images() -> ImageSet:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 3, 16, 16), dtype=np.uint8)
    return ImageSet(pixels, "random", "0" * 64)


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(monkeypatch, capsys)


@pytest.fixture(scope="module")
def landscape(tiny: Checkpoint, images: ImageSet) -> Landscape:
    return Landscape(tiny.network("raw"), make_draws(images, tiny.process, 16, 0), batch_size=8)


@pytest.mark.parametrize("bits", ["w8a8", "w4a8"])
def test_the_forecast_meets_the_damage_of_a_small_error(
    landscape: Landscape, tiny_artifacts: dict[str, Artifact], bits: str
) -> None:
    """At 8 bits the error is small enough for the second-order forecast."""
    artifact = tiny_artifacts[bits]
    base, gradient = landscape.losses(), landscape.gradient()
    found = damage(
        landscape,
        artifact,
        bits,
        "0" * 64,
        target="onnxruntime",
        gradient=gradient,
        base=base,
        random_draws=3,
        seed=0,
    )
    error = quantization_error(artifact, landscape.weights)
    moved = {name: landscape.weights[name] + d for name, d in error.items()}
    with torch.no_grad():
        by_hand = losses_of(
            lambda *x: torch.func.functional_call(landscape.network, moved, x), landscape.draws
        )
        graph = losses_of(lower(artifact, "onnxruntime").graph, landscape.draws)
    assert found.weights.overall.value == pytest.approx(float(by_hand.mean()) - base.mean(), abs=1e-5)
    assert found.quantized.overall.value == pytest.approx(float(graph.mean()) - base.mean(), abs=1e-4)
    assert found.error_norm == pytest.approx(sum(float(d.square().sum()) for d in error.values()) ** 0.5)
    if bits == "w8a8":
        forecast = found.slope + found.curvature
        assert found.weights.overall.value == pytest.approx(forecast, rel=0.1, abs=2e-6)


def test_an_artifact_that_is_no_step_in_weight_space_is_refused(
    tiny: Checkpoint, landscape: Landscape
) -> None:
    plan = CalibrationPlan(images=1, steps=2)
    artifact = quantize_checkpoint(tiny, recipe_for_bits(4, 4, low_rank=2), calibration=plan, threads=1)
    with pytest.raises(UsageError, match="not a step in weight space"):
        quantization_error(artifact, landscape.weights)


def test_the_command_from_end_to_end(
    tiny: Checkpoint, tiny_artifacts: dict[str, Artifact], images: ImageSet, tmp_path: Path, cli: Cli
) -> None:
    data, folder, out = tmp_path / "images.npz", tmp_path / "w4a8", tmp_path / "flat"
    np.savez(data, images.pixels.transpose(0, 2, 3, 1))
    write_artifact(tiny_artifacts["w4a8"], folder)
    few = ("-n", 8, "--pairs", 2, "--sigma", 0.01, "--threads", 1)
    assert cli("flatness", tiny.source, "--data", data, "--artifact", folder, *few, "-o", out) == 0
    assert "## Increase of the loss by quantization" in cli.out
    (result,) = [Flatness.model_validate(x) for x in json.loads((out / "flatness.json").read_text())]
    assert result.weights_variant == "raw"
    assert [n.sigma for n in result.noise if n.kind == "absolute"] == [0.01]
    assert [d.precision for d in result.damage] == ["w4a8"]
    assert {path.name for path in out.iterdir()} == {
        "flatness.json",
        "flatness.md",
        "noise.svg",
        "quarters.svg",
    }
    assert cli("flatness", tiny.source, "--data", data, "-n", 10, "-o", out) == 2
    assert "the flatness setting images is not valid" in cli.err
    assert cli("flatness", tiny.source, "--data", data, "-n", 400, "-o", out) == 2
    assert "too few images" in cli.err


def _planted(measure: float, harm: float) -> Any:
    found = SimpleNamespace(weights=SimpleNamespace(overall=SimpleNamespace(value=harm)))
    return SimpleNamespace(damage=(found,), measures=lambda: {"as harm": measure, "against it": -harm})


def test_rank_agreement_of_planted_models() -> None:
    models = [_planted(measure, harm) for measure, harm in ((1, 1), (2, 3), (3, 2), (4, 4), (5, 5))]
    assert rank_agreement(models) == pytest.approx({"as harm": 0.9, "against it": -1.0})
    assert rank_agreement(models[:4]) == {}
