"""An ONNX model while it is rewritten: who makes and who reads a tensor, its shape, constants.

Rules look at it and give nodes; `Graph.replace` and `Graph.commit` are all that changes the model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

__all__ = ["Graph", "attribute"]

Shape = tuple[int | None, ...]
"""None stands for a size that is not fixed, such as the batch's."""

_SMALL = 64
"""Elements of a constant that shape inference may have to know the values of."""


class Graph:
    """The graph of a model, its changes kept apart until `commit`.

    Args:
        model: with named nodes, as torch's exporter writes them.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self._values = _infer(model)
        self._constants = {value.name: value for value in model.graph.initializer}
        self._outputs = {value.name for value in model.graph.output}
        self._new: dict[str, TensorProto] = {}
        self._changed = False
        self._set_nodes(list(model.graph.node))

    def _set_nodes(self, nodes: list[NodeProto]) -> None:
        self.nodes = nodes
        self._producers = {name: node for node in nodes for name in node.output if name}
        self._readers: dict[str, list[NodeProto]] = {}
        for node in nodes:
            for name in dict.fromkeys(node.input):
                self._readers.setdefault(name, []).append(node)

    def producer(self, name: str) -> NodeProto | None:
        """The node that makes a tensor; None for inputs and constants."""
        return self._producers.get(name)

    def readers(self, name: str) -> list[NodeProto]:
        """The nodes that read a tensor, each once."""
        return self._readers.get(name, [])

    def is_output(self, name: str) -> bool:
        """Whether the tensor is an output of the model."""
        return name in self._outputs

    def constant(self, name: str) -> NDArray[Any] | None:
        """An initializer's value; None for a tensor that is computed."""
        value = self._constants.get(name)
        return None if value is None else numpy_helper.to_array(value)

    def shape(self, name: str) -> Shape | None:
        """Shape of a tensor of the model as it came; None where it could not be inferred."""
        value = self._values.get(name)
        if value is None or not value.type.tensor_type.HasField("shape"):
            return None
        sizes = value.type.tensor_type.shape.dim
        return tuple(size.dim_value if size.HasField("dim_value") else None for size in sizes)

    def add_constant(self, name: str, value: NDArray[Any]) -> str:
        """An initializer of this value, the same one where the name was added before."""
        before = self._new.get(name)
        if before is None:
            assert name not in self._constants, name
            self._new[name] = self._constants[name] = numpy_helper.from_array(value, name)
        else:
            np.testing.assert_array_equal(numpy_helper.to_array(before), value)
        return name

    def replace(self, output: str, nodes: Sequence[NodeProto]) -> None:
        """Put nodes in the place of the one that makes `output`; what nobody reads then goes at `commit`."""
        at = next(index for index, node in enumerate(self.nodes) if output in node.output)
        self._set_nodes([*self.nodes[:at], *nodes, *self.nodes[at + 1 :]])
        self._changed = True

    def commit(self) -> None:
        """Write the changes into the model; without any it stays as it is, byte for byte."""
        if not self._changed:
            return
        needed, nodes = set(self._outputs), []
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                nodes.append(node)
                needed.update(node.input)
        constants = [value for name, value in self._constants.items() if name in needed]
        graph = self._model.graph
        for field, values in ((graph.node, nodes[::-1]), (graph.initializer, constants)):
            del field[:]
            field.extend(values)
        self._say_shapes(node for node in nodes if node.domain)
        domains = {entry.domain for entry in self._model.opset_import}
        for domain in sorted({node.domain for node in nodes} - domains - {""}):
            self._model.opset_import.append(helper.make_opsetid(domain, 1))

    def _say_shapes(self, nodes: Iterable[NodeProto]) -> None:
        """Type and shape of what operators outside of the standard make: onnx cannot infer them."""
        known = {value.name for value in (*self._model.graph.value_info, *self._model.graph.output)}
        made = [name for node in nodes for name in node.output]
        values = [self._values[name] for name in made if name in self._values and name not in known]
        self._model.graph.value_info.extend(values)


def attribute(node: NodeProto, name: str) -> Any:
    """Value of an attribute, None where it is not given."""
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), None)


def _infer(model: onnx.ModelProto) -> dict[str, onnx.ValueInfoProto]:
    """Type and shape by tensor name, inferred on a copy without weights.

    onnx infers nothing behind a GroupNormalization whose batch is free, so that the copy has an Identity in
    its place.
    """
    bare = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    bare.graph.name = model.graph.name
    bare.graph.input.extend(model.graph.input)
    bare.graph.output.extend(model.graph.output)
    bare.graph.value_info.extend(model.graph.value_info)
    for value in model.graph.initializer:
        if math.prod(value.dims) <= _SMALL:
            bare.graph.initializer.append(value)
        else:
            bare.graph.input.append(helper.make_tensor_value_info(value.name, value.data_type, value.dims))
    bare.graph.node.extend(model.graph.node)
    for node in bare.graph.node:
        if node.op_type == "GroupNormalization" and not node.domain:
            node.op_type = "Identity"
            del node.input[1:], node.attribute[:]
    inferred = onnx.shape_inference.infer_shapes(bare, data_prop=True).graph
    return {value.name: value for value in (*inferred.input, *inferred.value_info, *inferred.output)}
