"""Layers beside float branches: still integer kernels, and the branches told as what they are."""

from __future__ import annotations

import pytest
from exports import Deployments
from networks import checkpoint

from flatq.calib.inputs import CalibrationPlan
from flatq.quantize.methods import AdaRound, WeightRounding
from flatq.quantize.rounding import quantize_checkpoint
from flatq.recipe import branch_of, recipe_for_bits
from flatq.verify.verification import verify_deployment

pytestmark = pytest.mark.slow  # each quantizes, exports and verifies several networks


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Deployments:
    folder = tmp_path_factory.mktemp("low-rank")
    few = CalibrationPlan(images=2, steps=2)
    recipes = {
        "digits": recipe_for_bits(4, 4, low_rank=8, split_shortcuts=True),
        "rgb32": recipe_for_bits(4, 4, low_rank=8),
    }
    learned = WeightRounding(method="adaround", bias_correction=True, adaround=AdaRound(iterations=5))
    roundings = {"digits": learned, "rgb32": WeightRounding(method="gptq")}
    artifacts = {
        name: quantize_checkpoint(
            checkpoint(name, folder), recipe, calibration=few, threads=1, rounding=roundings[name]
        )
        for name, recipe in recipes.items()
    }
    return Deployments(artifacts, folder)


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", ["digits", "rgb32"])
def test_the_layers_stay_integer_and_the_branches_are_named(
    name: str, target: str, made: Deployments
) -> None:
    if target == "openvino":
        pytest.importorskip("openvino")
    artifact = made.artifacts[name]
    found = verify_deployment(artifact, made.folder(name, target), made.lowered(name, target), threads=1)
    assert found.parity is not None
    assert [layer.layer for layer in found.parity.layers] == artifact.manifest.planned
    assert found.audit.unmatched == ()
    parts = 0
    edges = {"unet.conv_in"} if target == "openvino" else {"unet.conv_in", "unet.conv_out"}
    for entry in found.audit.entries:
        assert entry.kernels, entry
        owner = branch_of(entry.layer)
        floats = owner is not None or entry.kind == "attention" or entry.layer in edges
        assert entry.integer != floats, entry
        if owner is not None:
            parts += 1
            assert entry.reason is not None
            assert f"the float branch beside {owner}" in entry.reason
    assert parts == 2 * (len(artifact.manifest.planned) - 2)  # all but the first and the last convolution
