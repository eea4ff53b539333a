"""Layers of an exported ONNX model on ONNX Runtime, each optimized as the whole model would be."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from flatq.errors import ModelError
from flatq.runtime.onnxruntime import cpu_options, import_onnxruntime
from flatq.verify.onnx_cut import OnnxGraph, cut_layer, weight_names
from flatq.verify.onnx_kernels import is_integer
from flatq.verify.pieces import Ran
from flatq.verify.reference import Reference

__all__ = ["OnnxRuntimePieces"]


class OnnxRuntimePieces:
    """See `flatq.verify.pieces.Pieces`.

    Args:
        path: the exported file.
        layers: as `Lowered.layers`.
        threads: intra-op threads.
    """

    def __init__(self, path: Path, layers: Mapping[str, str], threads: int) -> None:
        self._graph = OnnxGraph(onnx.load(path))
        self._weights = weight_names(self._graph, layers)
        self._threads = threads

    def run(self, reference: Reference, source: NDArray[np.float32]) -> Ran:
        weight = self._weights.get(reference.layer)
        if weight is None:
            raise ModelError(
                f"the exported model holds no integers for {reference.layer}",
                expected="an initializer with its codes",
                next_step="export again",
            )
        cut = cut_layer(self._graph, reference, weight, source.shape)
        ort = import_onnxruntime()
        options = cpu_options(ort, self._threads)
        with tempfile.TemporaryDirectory(prefix="flatq-") as folder:
            optimized = Path(folder) / "layer.onnx"
            options.optimized_model_filepath = str(optimized)
            try:
                session = ort.InferenceSession(
                    cut.SerializeToString(), options, providers=["CPUExecutionProvider"]
                )
                output: NDArray[Any] = session.run(None, {"source": source})[0]
            except Exception as error:  # ONNX Runtime raises its own types, which share no base but Exception
                raise ModelError(
                    f"ONNX Runtime cannot run {reference.layer} alone",
                    expected="a model that it can load and run",
                    got=" ".join(str(error).split())[:300],
                    next_step="report it with the versions that `flatq doctor` prints",
                ) from error
            nodes = list(onnx.load(optimized).graph.node)
        return Ran(
            output.astype(np.float32, copy=False),
            tuple(node.op_type for node in nodes),
            any(is_integer(node) for node in nodes),
        )
