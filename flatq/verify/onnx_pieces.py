"""Layers and products of an exported ONNX model on ONNX Runtime, each optimized as the whole would be.

Each is cut out of the exported file from its input to its output, Q/DQ nodes and all. Nothing is rebuilt: the
nodes and initializers are the file's own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from flatq.errors import ModelError, one_line
from flatq.export.graph import OnnxGraph
from flatq.export.onnx import find_weights
from flatq.quantize.grid import QuantGrid
from flatq.runtime.onnxruntime import cpu_options, import_onnxruntime
from flatq.verify.inspection import Ran, with_attentions
from flatq.verify.reference import Reference, named_products

__all__ = ["INTEGER", "OnnxRuntimePieces", "bits", "find_owners", "product_of", "reads"]

INTEGER = {
    "ConvInteger",
    "DynamicQuantizeMatMul",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "QAttention",
    "QGemm",
    "QLinearConv",
    "QLinearMatMul",
}
"""ONNX Runtime's products of integers, summed in int32."""

_WEIGHT_STEPS = ("Cast", "DequantizeLinear", "Identity", "Reshape", "Transpose")
_PRODUCTS = ("Conv", "Gemm", "MatMul")


class OnnxRuntimePieces:
    """Runs single layers and products of an exported model.

    Args:
        path: the exported file.
        weights: layer -> name of its weight in the lowered graph, also where that is float.
        attentions: those whose products are quantized.
        threads: intra-op threads.
    """

    def __init__(
        self, path: Path, weights: Mapping[str, str], attentions: Collection[str], threads: int
    ) -> None:
        self._graph = OnnxGraph(onnx.load(path))
        self._weights = find_weights(self._graph.initializers, weights)
        inside = tuple(f"{name}." for name in attentions)
        layers = {layer: weight for layer, weight in self._weights.items() if layer.startswith(inside)}
        self._products = named_products(find_owners(self._graph, layers, attentions), attentions)
        self._threads = threads

    def run(self, reference: Reference, *sources: NDArray[np.float32]) -> Ran:
        """The layer's output for its input, or a product's for its two factors; the first axis is the batch.

        Raises:
            ModelError: the layer is not in the model, or cannot be cut out or run alone.
        """
        cut = self._cut(reference, [source.shape for source in sources])
        ort = import_onnxruntime()
        options = cpu_options(ort, self._threads)
        with tempfile.TemporaryDirectory(prefix="flatq-") as folder:
            optimized = Path(folder) / "layer.onnx"
            options.optimized_model_filepath = str(optimized)
            try:
                session = ort.InferenceSession(
                    cut.SerializeToString(), options, providers=["CPUExecutionProvider"]
                )
                names = [value.name for value in cut.graph.input]
                output: NDArray[Any] = session.run(None, dict(zip(names, sources, strict=True)))[0]
            except Exception as error:  # ONNX Runtime raises its own types, which share no base but Exception
                raise ModelError(
                    f"ONNX Runtime cannot run {reference.layer} alone",
                    expected="a model that it can load and run",
                    got=one_line(error),
                    next_step="report it with the versions that `flatq doctor` prints",
                ) from error
            kernels = tuple(node.op_type for node in onnx.load(optimized).graph.node)
        return Ran(output.astype(np.float32, copy=False), kernels, not INTEGER.isdisjoint(kernels))

    def _cut(self, reference: Reference, shapes: Sequence[tuple[int, ...]]) -> onnx.ModelProto:
        """From the tensors before its QuantizeLinears to what leaves it; the batch is left free."""
        graph, layer = self._graph, reference.layer
        if layer in self._products:
            product = graph.producers[self._products[layer]]
        elif layer in self._weights:
            product = product_of(graph, layer, self._weights[layer])[-1]
        else:
            raise ModelError(
                f"the exported model holds no integers for {layer}",
                expected="an initializer with its integers, or a product of two computed tensors",
                next_step="export again",
            )
        sources = [_source(graph, *pair) for pair in zip(product.input, reference.inputs, strict=False)]
        result = str(product.output[0])
        if layer not in self._products:
            result = _result(graph, product, quantized=reference.output is not None)
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


def reads(graph: OnnxGraph) -> dict[str, list[str]]:
    """Tensor -> the tensors that the node reads which makes it, in order of execution."""
    return {output: list(filter(None, node.input)) for node in graph.nodes for output in node.output}


def find_owners(graph: OnnxGraph, weights: Mapping[str, str], attentions: Collection[str]) -> dict[str, str]:
    """Output of each node that multiplies -> its layer or its attention.

    Args:
        weights: layer -> name of its weight's initializer.
        attentions: names.

    Raises:
        ModelError: a weight leads to no product.
    """
    layers = {product_of(graph, layer, name)[-1].output[0]: layer for layer, name in weights.items()}
    products = {node.output[0] for node in graph.nodes if node.op_type == "MatMul"}
    return with_attentions(reads(graph), products, layers, attentions)


def product_of(graph: OnnxGraph, layer: str, weight: str) -> list[onnx.NodeProto]:
    """The nodes from a weight's initializer to the product that reads it, which is the last.

    Raises:
        ModelError: it leads to none.
    """
    name, found = weight, []
    while len(readers := graph.consumers.get(name, [])) == 1:
        node = readers[0]
        found.append(node)
        if node.op_type in _PRODUCTS and node.input[1] == name:
            return found
        if node.op_type not in _WEIGHT_STEPS:
            break
        name = node.output[0]
    raise _strange(layer, " -> ".join([weight, *(node.op_type for node in found)]))


def bits(data_type: int) -> int:
    """Width of an ONNX element type that a weight is stored in; 32 for whatever is not narrower."""
    name = onnx.TensorProto.DataType.Name(data_type)
    return {"INT4": 4, "UINT4": 4, "INT8": 8, "UINT8": 8, "FLOAT16": 16, "BFLOAT16": 16}.get(name, 32)


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
    added = product.op_type == "MatMul" and len(users) == 1 and users[0].op_type == "Add"
    if added and not graph.initializers.keys().isdisjoint(users[0].input):  # a bias
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
