"""Attention with integer products: each of the two as in torch, and integer kernels for both."""

from __future__ import annotations

import pytest
from exports import Deployments
from networks import checkpoint

from flatq.calib.inputs import CalibrationPlan
from flatq.quantize.artifact import Artifact
from flatq.quantize.rounding import quantize_checkpoint
from flatq.recipe import product_names, recipe_for_bits
from flatq.verify.recorded import Verified, verify_deployment

LAST = "unet.up_blocks.0.attentions.1"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Deployments:
    folder = tmp_path_factory.mktemp("attention")
    few = CalibrationPlan(images=2, steps=2)
    recipes = {
        "rgb32": recipe_for_bits(8, attention_bits=8),
        "rgb32-4": recipe_for_bits(4, 4, attention_bits=4, activation_range="mse"),
        "imported64": recipe_for_bits(8, attention_bits=8, symmetric=True),
    }
    artifacts = {
        name: quantize_checkpoint(
            checkpoint(name.removesuffix("-4"), folder), recipe, calibration=few, threads=1
        )
        for name, recipe in recipes.items()
    }
    return Deployments(artifacts, folder)


def _verified(made: Deployments, name: str, target: str) -> Verified:
    folder, lowered = made.folder(name, target), made.lowered(name, target)
    return verify_deployment(made.artifacts[name], folder, lowered, threads=1)


def _attentions(artifact: Artifact) -> list[str]:
    return [d.node for d in artifact.manifest.decisions if d.port == "query"]


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", ["rgb32", "rgb32-4", "imported64"])
def test_both_products_are_verified_and_run_in_integers(name: str, target: str, made: Deployments) -> None:
    if target == "openvino":
        pytest.importorskip("openvino")
    found = _verified(made, name, target)
    assert found.parity is not None
    attentions = _attentions(made.artifacts[name])
    assert len(attentions) == 4
    products = [layer for layer in found.parity.layers if layer.kind == "attention"]
    assert [layer.layer for layer in products] == [p for node in attentions for p in product_names(node)]
    for layer in products:
        assert layer.quantum == "accumulator", layer
        assert layer.max_quanta < 0.1
        assert layer.equal > 0.9999
    assert found.audit.unmatched == ()
    assert found.audit.integer_share == 1
    for entry in found.audit.entries:
        if entry.kind == "attention":
            assert entry.planned
            assert len(entry.kernels) == 2, entry
            assert entry.reason is None
