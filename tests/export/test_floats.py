"""The float rest in half precision: types in the file, what comes out, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from flatq.checkpoint import Checkpoint
from flatq.deployment import FloatPrecision, Target, read_deployment
from flatq.errors import ModelError, UsageError
from flatq.export.deploy import export_artifact, export_checkpoint
from flatq.export.floats import halve_floats
from flatq.export.onnx import to_onnx
from flatq.quantize.artifact import Artifact, write_artifact
from flatq.quantize.lowering import lower
from flatq.quantize.trace import trace
from flatq.runtime.onnxruntime import OnnxRuntime

TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


@pytest.fixture(scope="module")
def graphs(tiny: Checkpoint, tiny_artifacts: dict[str, Artifact]) -> dict[str, onnx.ModelProto]:
    return {
        "float": to_onnx(trace(tiny.network(), tiny.model), tiny.model),
        "w8a8": to_onnx(lower(tiny_artifacts["w8a8"], "tensorrt").graph, tiny.model),
    }


def _inputs() -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(5).standard_normal((4, 3, 16, 16)).astype(np.float32)
    return x, np.array([1, 250, 640, 999])


def _run(model: onnx.ModelProto, folder: Path) -> np.ndarray:
    onnx.save(model, folder / "m.onnx")
    with OnnxRuntime(folder / "m.onnx", threads=1) as runtime:
        return runtime(*_inputs())


def _relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2)))


@pytest.mark.parametrize("floats", ["fp16", "bf16"])
@pytest.mark.parametrize("name", ["float", "w8a8"])
def test_everything_is_half_but_the_ends_and_the_sines(
    name: str, floats: FloatPrecision, graphs: dict[str, onnx.ModelProto]
) -> None:
    before = graphs[name].SerializeToString(deterministic=True)
    half = halve_floats(graphs[name], floats)
    assert graphs[name].SerializeToString(deterministic=True) == before
    onnx.checker.check_model(half, full_check=True)
    ends = (*half.graph.input, *half.graph.output)
    assert [v.type.tensor_type.elem_type for v in ends] == [
        TensorProto.FLOAT, TensorProto.INT64, TensorProto.FLOAT,
    ]  # fmt: skip
    for node in half.graph.node:
        if node.op_type == "GroupNormalization":  # onnx infers nothing for it; its input decides
            value = helper.make_tensor_value_info(node.output[0], TYPES[floats], None)
            half.graph.value_info.append(value)
    inferred = onnx.shape_inference.infer_shapes(half).graph.value_info
    types = {v.name: v.type.tensor_type.elem_type for v in inferred}
    types |= {i.name: i.data_type for i in half.graph.initializer}
    for node in half.graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul", "GroupNormalization", "Softmax"):
            assert {types[i] for i in node.input} == {TYPES[floats]}, node.name
        if node.op_type in ("Sin", "Cos"):
            assert types[node.output[0]] == TensorProto.FLOAT
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert types[node.input[1]] == TYPES[floats]

    def integers(model: onnx.ModelProto) -> dict[str, bytes]:
        kinds = (TensorProto.INT8, TensorProto.UINT8)
        return {i.name: i.raw_data for i in model.graph.initializer if i.data_type in kinds}

    assert integers(half) == integers(graphs[name])


def test_fp16_computes_the_same_to_its_precision(graphs: dict[str, onnx.ModelProto], tmp_path: Path) -> None:
    expected = _run(graphs["float"], tmp_path)
    # 11 bits: 2^-12 for each rounding, of which an output has a few dozen behind it.
    assert 0 < _relative(_run(halve_floats(graphs["float"], "fp16"), tmp_path), expected) < 5e-3
    # With integers, codes on an edge flip as between two runtimes: about the quantization error itself.
    quantized = _run(graphs["w8a8"], tmp_path)
    assert 0 < _relative(_run(halve_floats(graphs["w8a8"], "fp16"), tmp_path), quantized) < 0.1


def test_bf16_is_the_same_graph_with_rounded_numbers(
    graphs: dict[str, onnx.ModelProto], tmp_path: Path
) -> None:
    """No CPU runtime convolves in bf16, so the graph runs in float32 on the numbers that it stores."""
    half = halve_floats(graphs["float"], "bf16")
    for index, initializer in enumerate(half.graph.initializer):
        if initializer.data_type == TensorProto.BFLOAT16:
            wide = numpy_helper.to_array(initializer).astype(np.float32)
            half.graph.initializer[index].CopyFrom(numpy_helper.from_array(wide, initializer.name))
    for node in half.graph.node:
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == TensorProto.BFLOAT16:
                attribute.i = TensorProto.FLOAT
    next(o for o in half.opset_import if not o.domain).version = 21
    # 8 bits of weight: 2^-9 relative each.
    assert 1e-4 < _relative(_run(half, tmp_path), _run(graphs["float"], tmp_path)) < 2e-2


def _scaled(scale: float, codes: list[int]) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    stored = [
        numpy_helper.from_array(np.float32(scale), "scale"),
        numpy_helper.from_array(np.array(codes, np.int8), "codes"),
    ]
    nodes = [
        helper.make_node("DequantizeLinear", ["codes", "scale"], ["w"]),
        helper.make_node("Mul", ["x", "w"], ["y"]),
    ]
    opset = [helper.make_opsetid("", 21)]
    return helper.make_model(helper.make_graph(nodes, "g", [x], [y], stored), opset_imports=opset)


def test_a_scale_that_fp16_cannot_tell_is_refused() -> None:
    halve_floats(_scaled(1e-3, [1, 2]), "fp16")
    for scale in (1.3e-6, 1e-9, 1e5):
        with pytest.raises(ModelError, match=r"scale of the integers|too large"):
            halve_floats(_scaled(scale, [1, 2]), "fp16")
        halve_floats(_scaled(scale, [1, 2]), "bf16")


@pytest.mark.parametrize("scale", [1e-38, 1e-9, 1e5])
def test_a_scale_of_zeros_is_never_too_small_or_too_large(scale: float) -> None:
    half = halve_floats(_scaled(scale, [0, 0]), "fp16")
    (kept,) = (numpy_helper.to_array(i) for i in half.graph.initializer if i.name == "scale.fp16")
    assert float(kept) > 0


@pytest.mark.parametrize(
    ("target", "floats", "quantized"),
    [
        ("onnxruntime", "fp16", True),
        ("onnxruntime", "bf16", False),
        ("openvino", "bf16", True),
        ("generic", "fp16", True),
        ("generic", "bf16", False),
    ],
)
def test_what_a_target_does_not_take_is_refused_by_name(
    target: Target, floats: FloatPrecision, quantized: bool, tiny: Checkpoint, tmp_path: Path
) -> None:
    out = tmp_path / "d"
    source = tmp_path / "not even read" if quantized else tiny
    export: Any = export_artifact if quantized else export_checkpoint
    with pytest.raises(UsageError, match=f"--float-precision {floats} is not offered for {target}"):
        export(source, target, out, float_precision=floats)
    assert not (tmp_path / "d").exists()


def test_the_manifest_says_the_type(tiny_artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    write_artifact(tiny_artifacts["w8a8"], tmp_path / "a")
    export_artifact(tmp_path / "a", "tensorrt", tmp_path / "d", float_precision="fp16")
    deployment, file = read_deployment(tmp_path / "d")
    assert (deployment.precision, deployment.float_precision) == ("w8a8", "fp16")
    stored = onnx.load(file).graph.initializer
    assert TensorProto.FLOAT16 in {i.data_type for i in stored}
