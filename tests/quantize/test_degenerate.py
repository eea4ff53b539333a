"""Layers at the edge of what can be quantized: no NaN, and integer kernels that compute what torch does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from networks import random_weights

from flatq.backends import RuntimeSettings
from flatq.calib.inputs import CalibrationPlan
from flatq.checkpoint import Checkpoint, save_checkpoint
from flatq.deployment import Target
from flatq.export.deploy import export_artifact
from flatq.models import open_model
from flatq.network_config import ModelConfig
from flatq.process import ProcessConfig
from flatq.quantize.artifact import Artifact, write_artifact
from flatq.quantize.lowering import Lowered, lower
from flatq.quantize.methods import AdaRound, WeightRounding
from flatq.quantize.rounding import quantize_checkpoint
from flatq.recipe import QuantRecipe, branch_of, recipe_for_bits
from flatq.verify.verification import verify_deployment

RECIPES = [
    recipe_for_bits(8),
    recipe_for_bits(4, 4, edges="8", weight_range="mse", split_shortcuts=True),
    recipe_for_bits(4, 4, edges="same", split_shortcuts=True, low_rank=64),
    recipe_for_bits(2, 8, edges="8", granularity="per_tensor", symmetric=True, activation_range="percentile"),
]


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """2 x 2 images, 1 x 1 in the middle; odd channels; dead channels, a constant, a huge weight and bias."""
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
    weights = random_weights(config)
    first = "mid_block.resnets.0"
    weights[f"{first}.conv1.weight"][2] = 0
    weights[f"{first}.conv1.weight"][3] *= 1e-12  # as weight decay leaves what no gradient reaches
    weights[f"{first}.conv2.weight"][1] *= 1e-36
    weights[f"{first}.time_emb_proj.bias"][4] = 1e6
    weights["mid_block.resnets.1.conv1.weight"].zero_()  # what leaves it is its bias: a constant
    weights["mid_block.resnets.1.norm2.weight"].zero_()
    weights["mid_block.resnets.1.norm2.bias"].zero_()  # and what conv2 reads is zero
    weights["down_blocks.0.resnets.0.conv1.weight"][0, 0, 1, 1] = 1e5
    weights["up_blocks.0.resnets.0.conv_shortcut.weight"][:, 15:] = 0  # the second half of a split
    saved = Checkpoint(config, ProcessConfig(schedule="cosine"), {"raw": weights}, {"method": "none"})
    return save_checkpoint(saved, tmp_path_factory.mktemp("odd") / "odd.pt")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "target"),
    [*((recipe, "onnxruntime") for recipe in RECIPES), (RECIPES[1], "openvino")],
    ids=lambda value: getattr(value, "name", value),
)
def test_degenerate_layers_give_numbers_in_integers(
    recipe: QuantRecipe, target: Target, odd: Checkpoint, tmp_path: Path
) -> None:
    if target == "openvino":
        pytest.importorskip("openvino")
    artifact = quantize_checkpoint(odd, recipe, calibration=CalibrationPlan(images=2, steps=2), threads=1)
    scales = {name: grid.scale for name, grid in artifact.grids.items()}
    for tensors in (scales, artifact.ranges):
        assert all(bool(value.isfinite().all()) for value in tensors.values())
    assert all(bool((scale > 0).all()) for scale in scales.values())
    write_artifact(artifact, tmp_path / "a")

    def check(folder: Path, given: Artifact, lowered: Lowered) -> None:
        audit = verify_deployment(given, folder, lowered, threads=1).audit
        if not recipe.low_rank:  # ONNX Runtime names the zeros of a branch beside zeros anew
            assert audit.unmatched == ()
        floats = ("unet.conv_in", "unet.conv_out") if recipe.edges == "float" else ()
        for entry in audit.entries:
            assert entry.integer == (branch_of(entry.layer) is None and entry.layer not in floats), entry

    export_artifact(tmp_path / "a", target, tmp_path / "a" / target, check=check)
    generator = torch.Generator().manual_seed(0)
    x, t = torch.randn(3, 1, 2, 2, generator=generator), torch.tensor([0, 500, 999])
    with torch.no_grad():
        expected = lower(artifact, target).graph(x, t).numpy()
    with open_model(tmp_path / "a" / target, RuntimeSettings(threads=1)).runtime as runtime:
        found = runtime(x.numpy(), t.numpy())
    assert np.isfinite(expected).all()
    assert np.isfinite(found).all()


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_with_every_method(odd: Checkpoint, tmp_path: Path) -> None:
    """AdaRound begins with GPTQ, and the biases are corrected behind it."""
    calibration = CalibrationPlan(images=2, steps=2)
    learned = WeightRounding(method="adaround", bias_correction=True, adaround=AdaRound(iterations=5))
    for name in ("a", "b"):
        artifact = quantize_checkpoint(odd, RECIPES[1], calibration=calibration, threads=1, rounding=learned)
        assert all(bool(value.isfinite().all()) for value in artifact.rest.values())
        write_artifact(artifact, tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
