"""Harm layer by layer: against brute force on the weights, forecasts, tables, and the command."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import random_weights

import flatq
from flatq.calib.inputs import CalibrationPlan, collect_inputs
from flatq.checkpoint import Checkpoint, save_checkpoint
from flatq.errors import UsageError
from flatq.flatness.result import Binned, Estimate
from flatq.network_config import ModelConfig
from flatq.noise import NoiseStream
from flatq.process import ProcessConfig
from flatq.quantize.methods import WeightRounding
from flatq.quantize.rounding import quantize_checkpoint
from flatq.quantize.settings import QuantizeSettings
from flatq.recipe import recipe_for_bits
from flatq.runtime.torch import TorchRuntime
from flatq.sampler import sample
from flatq.sensitivity.result import Check, LayerHarm, Sensitivity, block_of
from flatq.sensitivity.settings import SensitivitySettings
from flatq.sensitivity.tables import forecast_quality, layer_rows, to_markdown

CALIBRATION = CalibrationPlan(images=2, steps=4)
WEIGHTS_ONLY = QuantizeSettings(recipe_for_bits(4, 32), WeightRounding(), CALIBRATION, threads=1)
SETTINGS = SensitivitySettings(WEIGHTS_ONLY, images=2, checks=2)


def _saved(folder: Path, **fields: int) -> Checkpoint:
    config = ModelConfig(
        image_size=8,
        image_channels=1,
        out_channels=1,
        unet={
            "block_out_channels": [8],
            "layers_per_block": 1,
            "down_block_types": ["AttnDownBlock2D"],
            "mid_block_type": None,
            "up_block_types": ["UpBlock2D"],
            "attention_head_dim": 4,
            "norm_num_groups": 4,
            "attn_norm_num_groups": 4,
        },
        **fields,
    )
    weights = random_weights(config)
    checkpoint = Checkpoint(config, ProcessConfig(schedule="cosine"), {"raw": weights}, {"method": "none"})
    return save_checkpoint(checkpoint, folder / "small.pt")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A saved checkpoint of 20 layers, random weights, 8 x 8 grey."""
    return _saved(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def measured(small: Checkpoint) -> Sensitivity:
    return flatq.sensitivity(small, SETTINGS)


def test_a_layer_s_harm_is_that_of_its_weight_alone(small: Checkpoint, measured: Sensitivity) -> None:
    """Brute force: the layer's weight is replaced in the network itself, and everything is measured again."""
    harm = max(measured.layers, key=lambda h: h.image.value)
    artifact = quantize_checkpoint(small, WEIGHTS_ONLY.recipe, calibration=CALIBRATION, threads=1)
    plan = CALIBRATION.model_copy(update={"seed": CALIBRATION.seed + 1})
    network = small.network("raw")
    runtime = TorchRuntime(network, threads=1)
    inputs = collect_inputs(runtime, small.process, plan, small.model.image_shape)

    def outcome() -> tuple[np.ndarray, np.ndarray]:
        predictions = np.stack([runtime(x, t) for x, t in inputs.batches()]).astype(np.float64)
        shape, stream = small.model.image_shape, NoiseStream.CALIBRATION
        return predictions, sample(runtime, small.process, plan, range(2), shape, stream=stream)

    exact, images = outcome()
    with torch.no_grad():
        weight = network.get_parameter(f"{harm.layer}.weight")
        weight.copy_(artifact.grids[harm.layer].dequantize(artifact.integers[harm.layer]))
    found, moved = outcome()
    error = np.square(found - exact).mean((1, 2, 3, 4)) / np.square(exact).mean((1, 2, 3, 4))
    assert harm.prediction.overall.value == pytest.approx(error.mean(), rel=1e-3)
    assert harm.image.value == pytest.approx(np.square(moved - images).mean(), rel=1e-3)
    # 4 steps, one in each quarter, inputs ordered by t
    assert [q.value for q in harm.prediction.quarters] == pytest.approx(list(error), rel=1e-3)


def test_every_planned_layer_is_measured(measured: Sensitivity) -> None:
    names = [h.layer for h in measured.layers]
    assert len(set(names)) == len(names) > 15
    assert all(h.prediction.overall.value > 0 for h in measured.layers)
    ends = [h for h in measured.layers if h.layer in ("unet.conv_in", "unet.conv_out")]
    assert [h.weight_bits for h in ends] == [8, 8]
    assert {h.weight_bits for h in measured.layers if h not in ends} == {4}
    assert {h.activation_bits for h in measured.layers} == {None}
    assert measured.checks[-1].layers == tuple(names)
    assert 0 < len(measured.checks[0].layers) < len(names)


def test_attention_and_activations_count(tmp_path: Path) -> None:
    """Quantized products of attention are a layer of their own; guidance has two inputs for each step."""
    calibration = CALIBRATION.model_copy(update={"guidance": 2.0})
    recipe = recipe_for_bits(8, 4, attention_bits=4)
    settings = replace(WEIGHTS_ONLY, recipe=recipe, calibration=calibration)
    labelled = _saved(tmp_path, num_classes=6, null_label=5)
    found = flatq.sensitivity(labelled, replace(SETTINGS, quantize=settings))
    products = [h for h in found.layers if h.kind == "attention"]
    assert products
    assert {(h.weight_bits, h.activation_bits, h.parameters) for h in products} == {(None, 4, 0)}
    assert all(h.prediction.overall.value > 0 for h in found.layers if h.layer != "unet.conv_in")


def _harm(layer: str, value: float) -> LayerHarm:
    estimate = Estimate(value=value, standard_error=value / 10)
    binned = Binned(overall=estimate, quarters=(estimate,) * 4)
    sizes = {"parameters": 10, "macs": 20, "weight_bits": 4, "activation_bits": 8}
    return LayerHarm(layer=layer, kind="conv2d", prediction=binned, image=estimate, **sizes)


def _planted(*checks: tuple[tuple[str, ...], float]) -> Sensitivity:
    return Sensitivity(
        checkpoint="ckpt.pt", digest="ab", weights_variant="ema", recipe="w4a8", rounding="GPTQ",
        sampling={"images": 8, "steps": 20, "sampler": "ancestral", "seed": 1},
        layers=(_harm("a.x", 1.0), _harm("a.y", 3.0), _harm("b", 2.0)),
        checks=tuple(
            Check(layers=names, prediction=Estimate(value=v, standard_error=0.1),
                  image=Estimate(value=v, standard_error=0.1))
            for names, v in checks
        ),
    )  # fmt: skip


def test_a_forecast_is_the_sum_of_the_layers() -> None:
    found = _planted((("a.x",), 1.0), (("a.x", "a.y"), 8.0), (("a.x", "a.y", "b"), 3.0))
    assert found.forecast({"a.x", "b"}, "image") == 3.0
    assert found.ratios("prediction").tolist() == [1.0, 2.0, 0.5]
    assert found.rank_correlation("image") == pytest.approx(0.5)
    assert "median 1.00 (0.50 to 2.00), all layers together 0.50" in forecast_quality(found, "image")


def test_tables_are_ordered_by_harm() -> None:
    found = _planted((("a.x",), 1.0), (("a.x", "a.y", "b"), 6.0))
    head, *rows = layer_rows(found)
    assert [row[0] for row in rows] == ["a.y", "b", "a.x"]
    assert rows[0][head.index("bits")] == "w4a8"
    assert [row[-1] for row in rows] == ["50.0 %", "33.3 %", "16.7 %"]
    assert "| a | 20 | 4.00e+00 |" in to_markdown(found)


def test_blocks() -> None:
    names = ("unet.down_blocks.0.resnets.1.conv1", "unet.mid_block.attentions.0.to_q", "unet.conv_in")
    assert [block_of(name) for name in names] == ["unet.down_blocks.0", "unet.mid_block", "unet.conv_in"]


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (replace(SETTINGS, images=1), "number of images"),
        (replace(SETTINGS, images=65), "number of images"),
        (
            replace(SETTINGS, quantize=replace(WEIGHTS_ONLY, recipe=recipe_for_bits(4, 8, equalize=0.5))),
            "recipe",
        ),
        (
            replace(SETTINGS, quantize=replace(WEIGHTS_ONLY, calibration=CalibrationPlan(images=2, steps=2))),
            "quarter",
        ),
    ],
)
def test_settings_that_cannot_be_measured(
    small: Checkpoint, settings: SensitivitySettings, match: str
) -> None:
    with pytest.raises(UsageError, match=match):
        flatq.sensitivity(small, settings)


def test_the_command(small: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from typer.testing import CliRunner

    from flatq.cli.app import app

    arguments = ["sensitivity", str(small.source), "-o", str(tmp_path), "--method", "rtn", "--act-bits", "32"]
    arguments += ["-n", "2", "--checks", "2", "--steps", "4", "--calib-images", "2"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert "forecast of a plan, image: measured / forecast on 2 random plans" in result.stdout
    saved = Sensitivity.model_validate_json((tmp_path / "sensitivity.json").read_text("utf-8"))
    worst = max(saved.layers, key=lambda h: h.image.value)
    assert result.stdout.splitlines()[1].split()[0] == worst.layer
    assert (tmp_path / "sensitivity.svg").read_text("utf-8").count(worst.layer) >= 1
    assert worst.layer in (tmp_path / "sensitivity.md").read_text("utf-8")
