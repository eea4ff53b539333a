"""Every width, granularity and split shortcuts, by gptq: layer by layer as in torch, and integer kernels."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import onnx
import pytest
from exports import Deployments
from networks import assert_symmetric_int8, checkpoint

from flatq.calib.inputs import CalibrationPlan
from flatq.deployment import Target
from flatq.export.deploy import export_artifact
from flatq.quantize.methods import WeightRounding
from flatq.quantize.rounding import quantize_checkpoint
from flatq.recipe import QuantRecipe, recipe_for_bits
from flatq.verify.verification import verify_deployment

RECIPES: dict[str, QuantRecipe] = {
    recipe.name: recipe
    for recipe in (
        recipe_for_bits(4, edges="8", split_shortcuts=True, activation_range="minmax"),
        recipe_for_bits(7, edges="8", granularity="per_tensor", symmetric=True),
        recipe_for_bits(3, 6, edges="8", weight_range="mse", split_shortcuts=True),
    )
}


pytestmark = pytest.mark.slow  # each quantizes, exports and verifies several networks


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Deployments:
    folder = tmp_path_factory.mktemp("schemes")
    network = checkpoint("digits", folder)
    few = CalibrationPlan(images=2, steps=2)
    rounding = WeightRounding(method="gptq", bias_correction=True)
    artifacts = {
        name: quantize_checkpoint(network, recipe, calibration=few, threads=1, rounding=rounding)
        for name, recipe in RECIPES.items()
    }
    return Deployments(artifacts, folder)


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", RECIPES)
def test_every_layer_computes_what_torch_does_in_integers(name: str, target: str, made: Deployments) -> None:
    if target == "openvino":
        pytest.importorskip("openvino")
    artifact = made.artifacts[name]
    found = verify_deployment(artifact, made.folder(name, target), made.lowered(name, target), threads=1)
    assert found.parity is not None
    assert [layer.layer for layer in found.parity.layers] == artifact.manifest.planned
    assert found.audit.integer_share == 1
    assert found.audit.unmatched == ()
    widths = {d.node: d.scheme.bits for d in artifact.manifest.decisions if d.port == "weight" and d.scheme}
    for entry in found.audit.entries:
        assert entry.stored_bits == (4 if widths[entry.layer] <= 4 else 8), entry
    split = [entry for entry in found.audit.entries if ".half" in entry.layer]
    assert len(split) == (8 if "split" in name else 0)


@pytest.mark.parametrize("name", RECIPES)
def test_tensorrt_gets_symmetric_integers(name: str, made: Deployments, tmp_path: Path) -> None:
    export_artifact(made.artifact_folder(name), cast(Target, "tensorrt"), tmp_path / "d")
    assert_symmetric_int8(onnx.load(tmp_path / "d" / "model.onnx"))
