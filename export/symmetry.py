"""Whether a graph's integers are those that TensorRT takes. No torch.

TensorRT knows symmetric int8: its parser fails on a zero point other than 0, on uint8, and on a bias that is
stored as int32 behind DequantizeLinear.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from flatq.errors import ModelError

__all__ = ["check_symmetric"]

_INT8 = onnx.TensorProto.INT8
_type_name = onnx.TensorProto.DataType.Name


def check_symmetric(model: onnx.ModelProto) -> None:
    """Refuse what TensorRT's parser takes for an error, in words that name the place.

    Raises:
        ModelError: a zero point that is not 0 or not known, integers that are not int8, a bias in int32.
    """
    constants = {initializer.name: initializer for initializer in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type == "Constant":
            (name,) = node.output
            constants.update((name, a.t) for a in node.attribute if a.name == "value")
    for node in model.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        where = f"{node.op_type} {node.name or node.output[0]}"
        stored = _stored_type(node, constants, makers)
        if stored != _INT8:
            bias = node.op_type == "DequantizeLinear" and stored == onnx.TensorProto.INT32
            raise _asymmetric(
                f"{where} holds a bias in int32" if bias else f"{where} does not hold int8",
                "float32" if bias else "INT8",
                _type_name(stored),
            )
        if len(node.input) > 2 and node.input[2]:
            zero_point = constants.get(node.input[2])
            values: NDArray[np.int8] | None = numpy_helper.to_array(zero_point) if zero_point else None
            if values is None or values.any():
                got = "a computed one" if values is None else ", ".join(map(str, np.unique(values)[:8]))
                raise _asymmetric(f"{where} has a zero point other than 0", "0", got)


def _stored_type(
    node: onnx.NodeProto,
    constants: Mapping[str, onnx.TensorProto],
    makers: Mapping[str, onnx.NodeProto],
) -> int:
    """Type of the integers that a Q or DQ node writes or reads, UNDEFINED where the graph does not say."""
    if len(node.input) > 2 and node.input[2] in constants:
        return int(constants[node.input[2]].data_type)
    attributes = {a.name: a.i for a in node.attribute}
    if node.op_type == "QuantizeLinear":
        return int(attributes.get("output_dtype") or onnx.TensorProto.UINT8)  # the standard's default
    if node.input[0] in constants:
        return int(constants[node.input[0]].data_type)
    maker = makers.get(node.input[0])
    if maker is None:
        return int(onnx.TensorProto.UNDEFINED)
    if maker.op_type == "Cast":
        return int(next(a.i for a in maker.attribute if a.name == "to"))
    if maker.op_type == "QuantizeLinear":
        return _stored_type(maker, constants, makers)
    return int(onnx.TensorProto.UNDEFINED)


def _asymmetric(what: str, expected: str, got: str) -> ModelError:
    return ModelError(
        f"the graph is not one for TensorRT: {what}",
        expected=expected,
        got=got,
        next_step="flatq export ARTIFACT --trt lowers an artifact so that TensorRT takes it",
    )
