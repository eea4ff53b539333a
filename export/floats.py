"""The float rest of an ONNX model in half precision, integers as they are.

The graph's input and output stay float32, and so does the timestep's embedding up to its sines: 11 or 8 bits
do not tell t = 999 times a frequency. Scales of Q/DQ nodes take the type of the floats around them, which is
what TensorRT's strongly typed networks ask for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from flatq.deployment import FloatPrecision
from flatq.errors import ModelError
from flatq.export.graph import OnnxGraph, set_nodes

__all__ = ["halve_floats"]

_TYPES = {"fp16": (TensorProto.FLOAT16, np.float16), "bf16": (TensorProto.BFLOAT16, ml_dtypes.bfloat16)}
# Inputs that the standard wants in float32 whatever the type of the rest.
_FLOAT32_INPUTS = {"Resize": (1, 2)}
_LARGEST_SCALE_ERROR = 2.0**-8
_BF16_OPSET = 22
"""The first whose convolution takes bf16; otherwise the operators that stand here are those of opset 21."""


def halve_floats(model: onnx.ModelProto, floats: FloatPrecision) -> onnx.ModelProto:
    """The model with its floats in fp16 or bf16; `fp32` leaves it alone.

    Raises:
        ModelError: a number does not fit the type, or a scale would change by more than 1/256.
    """
    return model if floats == "fp32" else _Half(model, floats).model


class _Half:
    def __init__(self, model: onnx.ModelProto, floats: str) -> None:
        self.floats = floats
        self.onnx_type, self.dtype = _TYPES[floats]
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        graph = OnnxGraph(self.model)
        self.constants, self.values = graph.initializers, graph.values
        if floats == "bf16":
            next(o for o in self.model.opset_import if not o.domain).version = _BF16_OPSET
        # The sines and cosines of the timestep, and whatever leads to them.
        kept = {output for node in graph.nodes if node.op_type in ("Sin", "Cos") for output in node.output}
        for node in reversed(graph.nodes):
            if not kept.isdisjoint(node.output):
                kept.update(node.input)
        self.wide = kept.union(value.name for value in self.model.graph.input)
        self.made: list[onnx.NodeProto] = []
        self.half_names: dict[str, str] = {}
        scales = self._scales(graph.nodes)
        for node in graph.nodes:
            if kept.isdisjoint(node.output):
                self._halve(node, scales)
            self.made.append(node)
        for output in self.model.graph.output:
            self._restore(output.name)
        set_nodes(self.model, self.made, list(self.model.graph.initializer))

    def _is_float(self, name: str) -> bool:
        return name in self.values and self.values[name].type.tensor_type.elem_type == TensorProto.FLOAT

    def _halve(self, node: onnx.NodeProto, scales: Mapping[str, NDArray[np.bool_]]) -> None:
        exempt = _FLOAT32_INPUTS.get(node.op_type, ())
        for index, name in enumerate(node.input):
            if index in exempt or not self._is_float(name):
                continue
            if name in self.constants:
                node.input[index] = self._constant(name, scales.get(name))
            elif name in self.wide:
                node.input[index] = self._cast(name)
        for entry in node.attribute:
            if entry.name == "to" and node.op_type == "Cast" and entry.i == TensorProto.FLOAT:
                entry.i = self.onnx_type
            elif entry.name == "value" and entry.t.data_type == TensorProto.FLOAT:
                entry.t.CopyFrom(self._narrow(entry.t, node.output[0]))

    def _constant(self, name: str, scaling: NDArray[np.bool_] | None) -> str:
        if name not in self.half_names:
            self.half_names[name] = f"{name}.{self.floats}"
            wide = self.constants[name]
            if scaling is not None:
                # What scales nothing but zeros may be too small or too large for the type: one does as well.
                scales = np.where(scaling, numpy_helper.to_array(wide), np.float32(1))
                wide = numpy_helper.from_array(scales, name)
            narrow = self._narrow(wide, self.half_names[name])
            exact, rounded = (numpy_helper.to_array(value).astype(np.float64) for value in (wide, narrow))
            if scaling is not None and (np.abs(rounded - exact) > _LARGEST_SCALE_ERROR * exact).any():
                raise ModelError(
                    f"a scale of the integers cannot be represented in {self.floats}",
                    expected="scales that keep 8 bits",
                    got=f"{exact.min():g} in {name}",
                    next_step="export with --float-precision fp32",
                )
            self.model.graph.initializer.append(narrow)
        return self.half_names[name]

    def _narrow(self, tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
        wide = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            narrow = wide.astype(self.dtype)
        if not (np.isfinite(narrow.astype(np.float32)) == np.isfinite(wide)).all():
            raise ModelError(
                f"a number of {tensor.name or name} is too large for {self.floats}",
                expected=f"at most {float(ml_dtypes.finfo(self.dtype).max):g}",  # type: ignore[no-untyped-call]
                got=f"{np.abs(wide).max():g}",
                next_step="export with --float-precision fp32",
            )
        return numpy_helper.from_array(narrow, name)

    def _cast(self, name: str) -> str:
        if name not in self.half_names:
            self.half_names[name] = f"{name}.{self.floats}"
            self.made.append(
                helper.make_node(
                    "Cast", [name], [self.half_names[name]], name=f"{name}.cast", to=self.onnx_type
                )
            )
        return self.half_names[name]

    def _restore(self, name: str) -> None:
        """Let an output of the graph be float32 again."""
        if name in self.wide or not self._is_float(name):
            return
        narrow = f"{name}.{self.floats}"
        for node in self.made:
            for names in (node.input, node.output):
                names[:] = [narrow if other == name else other for other in names]
        self.made.append(
            helper.make_node("Cast", [narrow], [name], name=f"{name}.cast", to=TensorProto.FLOAT)
        )

    def _scales(self, nodes: Iterable[onnx.NodeProto]) -> dict[str, NDArray[np.bool_]]:
        """Every scale -> where it scales something: not where all integers of a channel are 0."""
        found: dict[str, NDArray[np.bool_]] = {}
        for node in nodes:
            if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
                continue
            scaling = np.array(True)
            if (integers := self.constants.get(node.input[0])) is not None:
                axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
                used = numpy_helper.to_array(integers).astype(np.int64) != 0
                kept = (axis % used.ndim,) if self.constants[node.input[1]].dims else ()
                scaling = np.asarray(used.any(axis=tuple(d for d in range(used.ndim) if d not in kept)))
            found[node.input[1]] = found.get(node.input[1], np.array(False)) | scaling
        return found
