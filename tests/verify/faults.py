"""Faults to put into an exported file, each in the nodes around one layer's weight."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from flatq.deployment import MANIFEST, read_deployment

Mutation = Callable[[onnx.ModelProto, str], None]


def mutated(folder: Path, out: Path, mutations: dict[str, Mutation]) -> Path:
    """A copy of a deployment with faults in it, and the digest of its manifest put right.

    Args:
        mutations: by the name of the layer's bias, which the exporter keeps.
    """
    shutil.copytree(folder, out)
    deployment, path = read_deployment(out)
    model = onnx.load(path)
    for bias, mutate in mutations.items():
        mutate(model, bias)
    content = model.SerializeToString()
    path.write_bytes(content)
    changed = deployment.model_copy(update={"sha256": hashlib.sha256(content).hexdigest()})
    (out / MANIFEST).write_text(changed.model_dump_json())
    return out


def _producer(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if name in node.output)


def _users(model: onnx.ModelProto, name: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if name in node.input]


def _product(model: onnx.ModelProto, bias: str) -> onnx.NodeProto:
    (node,) = _users(model, bias)
    if node.op_type == "Add":
        return _producer(model, node.input[0])
    return node


def _weight_dequantize(model: onnx.ModelProto, bias: str) -> onnx.NodeProto:
    node = _producer(model, _product(model, bias).input[1])
    return _producer(model, node.input[0]) if node.op_type == "Transpose" else node


def _input_quantize(model: onnx.ModelProto, bias: str) -> onnx.NodeProto:
    dequantize = _producer(model, _product(model, bias).input[0])
    assert dequantize.op_type == "DequantizeLinear"
    return _producer(model, dequantize.input[0])


def _output_quantize(model: onnx.ModelProto, bias: str) -> onnx.NodeProto:
    (quantize,) = _users(model, _product(model, bias).output[0])
    assert quantize.op_type == "QuantizeLinear"
    return quantize


def _value(model: onnx.ModelProto, name: str) -> np.ndarray:
    return numpy_helper.to_array(next(i for i in model.graph.initializer if i.name == name))


def _put(model: onnx.ModelProto, node: onnx.NodeProto, index: int, value: np.ndarray) -> None:
    """A new initializer for one input of one node: the exporter shares equal ones."""
    name = f"mutant.{len(model.graph.initializer)}"
    model.graph.initializer.append(numpy_helper.from_array(value, name))
    node.input[index] = name


def swap_scales(model: onnx.ModelProto, bias: str) -> None:
    """The weight's scales of channels 0 and 1."""
    node = _weight_dequantize(model, bias)
    scale = _value(model, node.input[1]).copy()
    assert scale[0] != scale[1]
    scale[[0, 1]] = scale[[1, 0]]
    _put(model, node, 1, scale)


def swap_weights(model: onnx.ModelProto, bias: str) -> None:
    """Two unequal neighbours in the first channel of the weight, whatever its width."""
    node = _weight_dequantize(model, bias)
    name = node.input[0]
    cast = next((n for n in model.graph.node if name in n.output), None)
    stored = name if cast is None else cast.input[0]
    old = next(i for i in model.graph.initializer if i.name == stored)
    codes = numpy_helper.to_array(old).astype(np.int8).copy()
    row = codes.reshape(len(codes), -1)[0]
    first = int(np.flatnonzero(row[1:] != row[:-1])[0])
    row[[first, first + 1]] = row[[first + 1, first]]
    if old.data_type == TensorProto.INT4:
        old.CopyFrom(helper.make_tensor(stored, TensorProto.INT4, codes.shape, codes.reshape(-1)))
    else:
        old.CopyFrom(numpy_helper.from_array(codes, stored))


def _shift(model: onnx.ModelProto, quantize: onnx.NodeProto) -> None:
    old = _value(model, quantize.input[2])
    new = np.asarray(old + 1 if old < 255 else old - 1, dtype=old.dtype)
    users = _users(model, quantize.output[0])
    for node in (quantize, *users):
        _put(model, node, 2, new)


def shift_input_zero_point(model: onnx.ModelProto, bias: str) -> None:
    """The zero point of the input's QuantizeLinear and of the DequantizeLinear behind it."""
    _shift(model, _input_quantize(model, bias))


def shift_output_zero_point(model: onnx.ModelProto, bias: str) -> None:
    """The same at the output."""
    _shift(model, _output_quantize(model, bias))


def drop_clip(model: onnx.ModelProto, bias: str) -> None:
    """The Clip that keeps a narrow code narrow."""
    quantize = _input_quantize(model, bias)
    clip = _producer(model, quantize.input[0])
    assert clip.op_type == "Clip"
    quantize.input[0] = clip.input[0]
