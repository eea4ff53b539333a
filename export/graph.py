"""`OnnxGraph`: an ONNX model with its edges looked up by tensor name, its shapes, and changes to it.

A rewrite rule is a function of a graph and a node. It returns the nodes to put in the place of that one and
its neighbours, or raises `RefusalError`. It may add constants to the graph, but only where it does not raise.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

__all__ = ["OnnxGraph", "RefusalError", "Replacement", "Shape", "attribute", "set_nodes"]

Shape = tuple[int | None, ...]
"""None stands for a size that is not fixed, such as the batch's."""

_SMALL = 64
"""Elements of a constant that shape inference may have to know the values of."""


class RefusalError(Exception):
    """A rule does not fit: why, and the name of the node that does not."""

    def __init__(self, reason: str, node: str) -> None:
        super().__init__(f"{reason} ({node})")


class Replacement(NamedTuple):
    """New nodes for a tensor that old ones made.

    Attributes:
        inputs: names of the tensors that the new nodes read, constants aside.
        output: name of the tensor, which the last node makes as before.
        nodes: in order.
    """

    inputs: tuple[str, ...]
    output: str
    nodes: tuple[NodeProto, ...]


class OnnxGraph:
    """The graph of a model; `replace` and `add_constant` change the model only when `commit` is called.

    Attributes:
        model: with named nodes, as torch's exporter writes them.
        nodes: in order of execution.
        initializers: tensor name -> constant.
        producers, consumers: tensor name -> the node that makes it, and the nodes that read it, each once.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.initializers = {value.name: value for value in model.graph.initializer}
        self._outputs = {value.name for value in model.graph.output}
        self._changed = False
        self._index(list(model.graph.node))

    def _index(self, nodes: list[NodeProto]) -> None:
        self.nodes = nodes
        self.producers = {name: node for node in nodes for name in node.output if name}
        self.consumers: dict[str, list[NodeProto]] = {}
        for node in nodes:
            for name in dict.fromkeys(node.input):
                self.consumers.setdefault(name, []).append(node)

    def made_by(self, name: str, operator: str) -> NodeProto | None:
        """The node that makes a tensor, if it is of this operator."""
        node = self.producers.get(name)
        return node if node is not None and node.op_type == operator else None

    def is_output(self, name: str) -> bool:
        """Whether the tensor is an output of the model."""
        return name in self._outputs

    def constant(self, name: str) -> NDArray[Any] | None:
        """An initializer's value; None for a tensor that is computed."""
        value = self.initializers.get(name)
        return None if value is None else numpy_helper.to_array(value)

    @cached_property
    def values(self) -> dict[str, onnx.ValueInfoProto]:
        """Type and shape of each tensor of the model before any change, where they could be inferred."""
        return _infer(self.model)

    def shape(self, name: str) -> Shape | None:
        """Shape of a tensor of the model before any change; None where it could not be inferred."""
        value = self.values.get(name)
        if value is None or not value.type.tensor_type.HasField("shape"):
            return None
        sizes = value.type.tensor_type.shape.dim
        return tuple(size.dim_value if size.HasField("dim_value") else None for size in sizes)

    def add_constant(self, name: str, value: NDArray[Any]) -> str:
        """Add an initializer of this name and value, unless the same one is there already."""
        before = self.initializers.setdefault(name, numpy_helper.from_array(value, name))
        np.testing.assert_array_equal(numpy_helper.to_array(before), value)
        return name

    def replace(self, output: str, nodes: Sequence[NodeProto]) -> None:
        """Put nodes in the place of the one that makes `output`; `commit` drops the nodes left unread."""
        at = next(index for index, node in enumerate(self.nodes) if output in node.output)
        self._index([*self.nodes[:at], *nodes, *self.nodes[at + 1 :]])
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
        set_nodes(self.model, nodes[::-1], self.initializers.values())
        custom = [node for node in nodes if node.domain]
        # onnx cannot infer the types and shapes that operators outside of the standard yield.
        graph = self.model.graph
        known = {value.name for value in (*graph.value_info, *graph.output)}
        made = [name for node in custom for name in node.output if name in self.values]
        graph.value_info.extend(self.values[name] for name in made if name not in known)
        domains = {entry.domain for entry in self.model.opset_import}
        for domain in sorted({node.domain for node in custom} - domains):
            self.model.opset_import.append(helper.make_opsetid(domain, 1))


def set_nodes(model: onnx.ModelProto, nodes: Iterable[NodeProto], constants: Iterable[TensorProto]) -> None:
    """Give a model these nodes, and of the constants those that they read."""
    nodes = list(nodes)
    used = {name for node in nodes for name in node.input}
    kept = [value for value in constants if value.name in used]
    for field, values in ((model.graph.node, nodes), (model.graph.initializer, kept)):
        del field[:]
        field.extend(values)


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
