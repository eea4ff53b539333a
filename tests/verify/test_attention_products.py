"""Attention with integer products: each of the two as in torch, and integer kernels for both."""

from __future__ import annotations

from pathlib import Path

import faults
import numpy as np
import onnx
import pytest
from exports import Deployments
from networks import checkpoint

from flatq.calib.inputs import CalibrationPlan
from flatq.deployment import read_deployment
from flatq.quantize.artifact import Artifact
from flatq.quantize.rounding import quantize_checkpoint
from flatq.recipe import recipe_for_bits
from flatq.verify.audit import audit_deployment, audit_from
from flatq.verify.inspection import Found, Inspection
from flatq.verify.openvino_pieces import Kernel
from flatq.verify.parity import VerifyInputs, verify_parity
from flatq.verify.reference import product_names
from flatq.verify.results import Parity
from flatq.verify.verification import Verified, verify_deployment

LAST = "unet.up_blocks.0.attentions.1"


pytestmark = pytest.mark.slow  # each quantizes, exports and verifies several networks


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Deployments:
    folder = tmp_path_factory.mktemp("attention")
    few = CalibrationPlan(images=2, steps=2)
    recipes = {
        "rgb32": recipe_for_bits(8, attention_bits=8, edges="8"),
        "rgb32-4": recipe_for_bits(4, 4, attention_bits=4, edges="8"),
        "imported64": recipe_for_bits(8, attention_bits=8, edges="8", symmetric=True),
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


def _parity(made: Deployments, name: str, folder: Path) -> Parity:
    few = VerifyInputs(steps=2)
    return verify_parity(made.artifacts[name], folder, lowered=made.lowered(name), inputs=few, threads=1)


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
        assert layer.step == "accumulator", layer
        assert layer.max_steps < 0.5  # a sum of 256 products of 8 bits is near what float32 resolves
        assert layer.equal > 0.9999
    assert found.audit.unmatched == ()
    assert found.audit.integer_share == 1
    for entry in found.audit.entries:
        if entry.kind == "attention":
            assert entry.planned
            # OpenVINO may run a whole attention as one.
            assert len(entry.kernels) == (1 if target == "openvino" else 2), entry
            assert entry.reason is None


def _products(model: onnx.ModelProto) -> list[tuple[onnx.NodeProto, onnx.NodeProto]]:
    """The two products of each attention, found from the softmax between them."""
    found = []
    for softmax in (node for node in model.graph.node if node.op_type == "Softmax"):
        name = softmax.output[0]
        while True:
            (reader,) = faults._users(model, name)
            if reader.op_type == "MatMul":
                break
            name = reader.output[0]
        found.append((faults._producer(model, softmax.input[0]), reader))
    return found


def _scale_of(model: onnx.ModelProto, product: onnx.NodeProto, index: int, factor: float) -> None:
    dequantize = faults._producer(model, product.input[index])
    assert dequantize.op_type == "DequantizeLinear"
    faults._put(model, dequantize, 1, faults._value(model, dequantize.input[1]) * np.float32(factor))


def test_a_fault_at_a_factor_is_found_and_its_product_named(made: Deployments, tmp_path: Path) -> None:
    def faulty(model: onnx.ModelProto, _: str) -> None:
        products = _products(model)
        assert len(products) == 4
        _scale_of(model, products[0][0], 1, 1.02)  # the keys' of the first
        _scale_of(model, products[3][1], 1, 0.98)  # the values' of the last

    folder = faults.mutated(made.folder("rgb32"), tmp_path / "faulty", {"": faulty})
    parity = _parity(made, "rgb32", folder)
    first = "unet.down_blocks.1.attentions.0"
    assert [layer.layer for layer in parity.failed] == [f"{first}.scores", f"{LAST}.attended"]


def test_a_missing_clip_is_found(made: Deployments, tmp_path: Path) -> None:
    """Without it 4-bit probabilities, or queries, would have more than 16 codes."""

    def faulty(model: onnx.ModelProto, _: str) -> None:
        dequantize = faults._producer(model, _products(model)[3][0].input[0])
        quantize = faults._producer(model, dequantize.input[0])
        clip = faults._producer(model, quantize.input[0])
        assert clip.op_type == "Clip"
        quantize.input[0] = clip.input[0]

    folder = faults.mutated(made.folder("rgb32-4"), tmp_path / "faulty", {"": faulty})
    parity = _parity(made, "rgb32-4", folder)
    assert [layer.layer for layer in parity.failed] == [f"{LAST}.scores"]


def test_one_product_in_float_makes_the_attention_float(made: Deployments, tmp_path: Path) -> None:
    def faulty(model: onnx.ModelProto, _: str) -> None:
        product = _products(model)[3][0]
        dequantize = faults._producer(model, product.input[0])
        quantize = faults._producer(model, dequantize.input[0])
        product.input[0] = quantize.input[0]

    folder = faults.mutated(made.folder("rgb32"), tmp_path / "faulty", {"": faulty})
    audit = audit_deployment(made.artifacts["rgb32"], folder, lowered=made.lowered("rgb32"), threads=1)
    (entry,) = audit.fallbacks
    assert entry.layer == LAST
    assert entry.planned
    assert len(entry.kernels) == 2
    assert entry.precision is not None
    assert "f32" in entry.precision
    assert entry.reason is not None
    assert entry.reason.startswith("ONNX Runtime runs it as ")


def test_a_product_that_is_not_accounted_for_is_not_taken_for_an_integer_one(made: Deployments) -> None:
    artifact = made.artifacts["rgb32"]
    deployment, _ = read_deployment(made.folder("rgb32"))
    one = Found("MatMulIntegerToFloat", "u8u8", integer=True)
    found: dict[str, list[Found]] = {LAST: []}
    for words in ("only one of its two products", None):
        found[LAST].append(one)
        audit = audit_from(Inspection({}, "a test", found, {}, (), {}), artifact, deployment)
        (entry,) = (entry for entry in audit.entries if entry.layer == LAST)
        assert entry.integer == (words is None)
        assert entry.reason is None if words is None else words in str(entry.reason)


def test_openvinos_whole_attention_is_integer_only_where_all_that_it_reads_is() -> None:
    for reads, integer in ((("i8", "i8", "i8"), True), (("i8", "i8", "bf16"), False)):
        kernel = Kernel("Subgraph", "jit_avx512_i8", "i8", ("a", "b"), reads)
        assert kernel.is_integer == integer
    assert Kernel("Convolution", "brgconv_avx512_I8", "u8", ("a",), ("u8", "f32")).is_integer
