"""Layers at the edge of what can be quantized: no NaN, through to ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from flatq.calib.inputs import CalibrationPlan
from flatq.checkpoint import Checkpoint, ModelConfig, save_checkpoint
from flatq.export import export_artifact
from flatq.models import open_model
from flatq.network import build_network
from flatq.process import ProcessConfig
from flatq.quantize.artifact import write_artifact
from flatq.quantize.lowering import lower
from flatq.quantize.rounding import quantize_checkpoint
from flatq.recipe import QuantRecipe, recipe_for_bits

RECIPES = [
    recipe_for_bits(8),
    recipe_for_bits(4, 4, activation_range="mse", weight_range="mse", split_shortcuts=True),
    recipe_for_bits(4, 4, edges="same", split_shortcuts=True, low_rank=64),
    recipe_for_bits(2, 8, granularity="per_tensor", symmetric=True, activation_range="percentile"),
]


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """2 x 2 images, 1 x 1 in the middle; odd channels; a dead channel, a constant, a huge weight."""
    config = ModelConfig(
        image_size=2,
        image_channels=1,
        out_channels=1,
        unet={
            "block_out_channels": [9, 15],
            "layers_per_block": 1,
            "down_block_types": ["DownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "UpBlock2D"],
            "norm_num_groups": 3,
            "add_attention": False,
        },
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = build_network(config).unet.state_dict()
    first = "mid_block.resnets.0"
    weights[f"{first}.conv1.weight"][2] = 0
    weights["mid_block.resnets.1.conv1.weight"].zero_()  # what leaves it is its bias: a constant
    weights["mid_block.resnets.1.norm2.weight"].zero_()
    weights["mid_block.resnets.1.norm2.bias"].zero_()  # and what conv2 reads is zero
    weights["down_blocks.0.resnets.0.conv1.weight"][0, 0, 1, 1] = 1e5
    weights["up_blocks.0.resnets.0.conv_shortcut.weight"][:, 15:] = 0  # the second half of a split
    saved = Checkpoint(config, ProcessConfig(schedule="cosine"), {"raw": weights}, {"method": "none"})
    return save_checkpoint(saved, tmp_path_factory.mktemp("odd") / "odd.pt")


@pytest.mark.parametrize("recipe", RECIPES, ids=[recipe.name for recipe in RECIPES])
def test_degenerate_layers_give_numbers(recipe: QuantRecipe, odd: Checkpoint, tmp_path: Path) -> None:
    artifact = quantize_checkpoint(odd, recipe, calibration=CalibrationPlan(images=2, steps=2), threads=1)
    for tensors in (artifact.scales, artifact.ranges):
        assert all(bool(value.isfinite().all()) for value in tensors.values())
    assert all(bool((scale > 0).all()) for scale in artifact.scales.values())
    write_artifact(artifact, tmp_path / "a")
    export_artifact(tmp_path / "a", "onnxruntime", tmp_path / "a" / "onnxruntime")
    generator = torch.Generator().manual_seed(0)
    x, t = torch.randn(3, 1, 2, 2, generator=generator), torch.tensor([0, 500, 999])
    with torch.no_grad():
        expected = lower(artifact, "onnxruntime").graph(x, t).numpy()
    with open_model(tmp_path / "a", threads=1).runtime as runtime:
        found = runtime(x.numpy(), t.numpy())
    assert np.isfinite(expected).all()
    assert np.isfinite(found).all()


def test_the_same_seed_gives_the_same_bytes_with_every_method(odd: Checkpoint, tmp_path: Path) -> None:
    for name in ("a", "b"):
        calibration = CalibrationPlan(images=2, steps=2)
        write_artifact(
            quantize_checkpoint(odd, RECIPES[1], calibration=calibration, threads=1), tmp_path / name
        )
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
