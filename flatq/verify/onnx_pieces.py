"""Layers and products of an exported ONNX model on ONNX Runtime, each optimized as the whole would be."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from flatq.errors import ModelError, one_line
from flatq.export.graph import OnnxGraph
from flatq.export.onnx import find_weights
from flatq.quantize.lowering import Lowered
from flatq.runtime.onnxruntime import cpu_options, import_onnxruntime
from flatq.verify.onnx_cut import attention_products, cut_layer, cut_product
from flatq.verify.onnx_kernels import INTEGER
from flatq.verify.pieces import Ran
from flatq.verify.reference import AnyReference, Reference, product_names

__all__ = ["OnnxRuntimePieces"]


class OnnxRuntimePieces:
    """See `flatq.verify.pieces.Pieces`.

    Args:
        path: the exported file.
        lowered: the graph that it is of.
        threads: intra-op threads.
    """

    def __init__(self, path: Path, lowered: Lowered, threads: int) -> None:
        self._graph = OnnxGraph(onnx.load(path))
        self._weights = find_weights(self._graph.initializers, lowered.layers)
        self._products = {
            name: node
            for attention, nodes in attention_products(self._graph, lowered.layers, lowered.products).items()
            for name, node in zip(product_names(attention), nodes, strict=False)
        }
        self._threads = threads

    def _cut(self, reference: AnyReference, sources: Sequence[NDArray[np.float32]]) -> onnx.ModelProto:
        shapes = [source.shape for source in sources]
        if isinstance(reference, Reference):
            weight = self._weights.get(reference.layer)
            if weight is not None:
                return cut_layer(self._graph, reference, weight, *shapes)
        else:
            node = self._products.get(reference.layer)
            if node is not None:
                return cut_product(self._graph, reference, node, shapes)
        raise ModelError(
            f"the exported model holds no integers for {reference.layer}",
            expected="an initializer with its integers, or a product of two computed tensors",
            next_step="export again",
        )

    def run(self, reference: AnyReference, *sources: NDArray[np.float32]) -> Ran:
        cut = self._cut(reference, sources)
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
            nodes = list(onnx.load(optimized).graph.node)
        return Ran(
            output.astype(np.float32, copy=False),
            tuple(node.op_type for node in nodes),
            any(node.op_type in INTEGER for node in nodes),
        )
