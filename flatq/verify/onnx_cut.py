"""Cutting a layer or product out of an exported ONNX model: from its input to its output, Q/DQ nodes and all.

Nothing is rebuilt: the nodes and initializers are the exported file's own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import onnx
from onnx import helper

from flatq.errors import ModelError
from flatq.export.graph import OnnxGraph
from flatq.export.onnx import find_weights
from flatq.quantize.grid import QuantGrid
from flatq.verify.inspection import attention_of
from flatq.verify.reference import ProductReference, Reference

__all__ = [
    "attention_products",
    "cut_layer",
    "cut_product",
    "product_of",
    "products_of_attentions",
]

_WEIGHT_STEPS = ("Cast", "DequantizeLinear", "Identity", "Reshape", "Transpose")
_PRODUCTS = ("Conv", "Gemm", "MatMul")


def cut_layer(graph: OnnxGraph, reference: Reference, weight: str, shape: tuple[int, ...]) -> onnx.ModelProto:
    """A layer as a model of its own, from the tensor before its input's QuantizeLinear to what leaves it.

    Args:
        weight: name of the initializer with its integers.
        shape: of the input tensor; the first is the batch, left free.

    Raises:
        ModelError: the exported nodes around the weight are none that flatq writes.
    """
    product = product_of(graph, reference.layer, weight)[-1]
    source = _source(graph, product.input[0], *reference.inputs)
    result = _result(graph, product, quantized=reference.output is not None)
    return _cut(graph, reference.layer, [source], result, [shape])


def cut_product(
    graph: OnnxGraph, reference: ProductReference, node: onnx.NodeProto, shapes: Sequence[tuple[int, ...]]
) -> onnx.ModelProto:
    """A product of two computed tensors as a model of its own, with its factors' quantizers.

    Args:
        node: that multiplies.
        shapes: of the two factors; the first axis is the batch, left free.

    Raises: as `cut_layer`.
    """
    sources = [_source(graph, *pair) for pair in zip(node.input, reference.inputs, strict=True)]
    return _cut(graph, reference.layer, sources, node.output[0], shapes)


def _cut(
    graph: OnnxGraph, layer: str, sources: Sequence[str], result: str, shapes: Sequence[tuple[int, ...]]
) -> onnx.ModelProto:
    """What lies between tensors."""
    nodes = _between(graph, sources, result, layer)
    names = dict.fromkeys(name for node in nodes for name in node.input)
    piece = helper.make_graph(
        nodes,
        "layer",
        [
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", *shape[1:]])
            for name, shape in zip(sources, shapes, strict=True)
        ],
        [helper.make_tensor_value_info(result, onnx.TensorProto.FLOAT, None)],
        [graph.initializers[name] for name in names if name in graph.initializers],
    )
    model: onnx.ModelProto = helper.make_model(
        piece, opset_imports=graph.model.opset_import, ir_version=graph.model.ir_version
    )
    return model


def attention_products(
    graph: OnnxGraph, layers: Mapping[str, str], attentions: Collection[str]
) -> dict[str, list[onnx.NodeProto]]:
    """Attention -> the nodes that multiply two computed tensors in it, in order of execution.

    Args:
        layers: as `Lowered.layers`; float layers are found by the names of their parameters.
        attentions: names.
    """
    inside = tuple(f"{name}." for name in attentions)
    stored = [name for name in graph.initializers if name.endswith(".weight")]
    parameters = {name.removesuffix(".weight"): name for name in stored}
    owners: dict[str, str] = {}
    for layer, weight in find_weights(graph.initializers, {**parameters, **layers}).items():
        if layer.startswith(inside) and len(graph.initializers[weight].dims) > 1:
            owners[product_of(graph, layer, weight)[-1].output[0]] = layer
    return products_of_attentions(graph, owners, attentions)


def products_of_attentions(
    graph: OnnxGraph, layers: Mapping[str, str], attentions: Collection[str]
) -> dict[str, list[onnx.NodeProto]]:
    """Attention -> the nodes that multiply two computed tensors in it, in order of execution.

    Args:
        layers: output of each product with a weight -> its layer.
    """
    owners = dict(layers)
    found: dict[str, list[onnx.NodeProto]] = {name: [] for name in attentions}
    for node in graph.nodes:
        if node.op_type == "MatMul" and node.output[0] not in owners:
            owner = attention_of(graph.ancestors(node, owners), attentions)
            if owner is not None:
                owners[node.output[0]] = owner
                found[owner].append(node)
    return found


def product_of(graph: OnnxGraph, layer: str, weight: str) -> list[onnx.NodeProto]:
    """The nodes from a weight's initializer to the product that reads it, which is the last.

    Raises:
        ModelError: it leads to none.
    """
    name, found = weight, []
    while True:
        consumers = graph.consumers.get(name, [])
        if len(consumers) != 1:
            break
        node = consumers[0]
        found.append(node)
        if node.op_type in _PRODUCTS and node.input[1] == name:
            return found
        if node.op_type not in _WEIGHT_STEPS:
            break
        name = node.output[0]
    raise _strange(layer, " -> ".join([weight, *(node.op_type for node in found)]))


def _source(graph: OnnxGraph, name: str, grid: QuantGrid | None) -> str:
    """The tensor in front of a quantizer, or of the Clip that narrows its range."""
    dequantize = graph.made_by(name, "DequantizeLinear")
    if dequantize is None:
        return name
    quantize = graph.made_by(dequantize.input[0], "QuantizeLinear")
    if quantize is None:
        return name
    narrow = grid is not None and grid.high - grid.low < 254
    clip = graph.made_by(quantize.input[0], "Clip") if narrow else None
    return str(quantize.input[0] if clip is None else clip.input[0])


def _result(graph: OnnxGraph, product: onnx.NodeProto, *, quantized: bool) -> str:
    name = str(product.output[0])
    users = graph.consumers.get(name, [])
    if product.op_type == "MatMul" and len(users) == 1 and users[0].op_type == "Add":
        other = next((value for value in users[0].input if value != name), name)
        if other in graph.initializers:
            name = str(users[0].output[0])
            users = graph.consumers.get(name, [])
    if not quantized:
        return name
    for quantize in (user for user in users if user.op_type == "QuantizeLinear"):
        for dequantize in graph.consumers.get(quantize.output[0], []):
            if dequantize.op_type == "DequantizeLinear":
                return str(dequantize.output[0])
    return name


def _between(graph: OnnxGraph, sources: Collection[str], result: str, layer: str) -> list[onnx.NodeProto]:
    wanted: set[int] = set()
    open_names = [result]
    while open_names:
        name = open_names.pop()
        if not name or name in sources or name in graph.initializers:
            continue
        node = graph.producers.get(name)
        if node is None:
            raise _strange(layer, f"it also reads the network's input {name}")
        if id(node) not in wanted:
            wanted.add(id(node))
            open_names.extend(node.input)
    return [node for node in graph.nodes if id(node) in wanted]


def _strange(layer: str, got: str) -> ModelError:
    return ModelError(
        f"the exported form of {layer} cannot be cut out",
        expected="the weight's dequantizer in front of a Conv, Gemm or MatMul that reads one tensor",
        got=got,
        next_step="report it with the versions that `flatq doctor` prints",
    )
