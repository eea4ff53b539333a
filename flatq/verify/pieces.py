"""A deployed model taken apart: single layers of it run on its runtime. One class for each runtime.

What is common to them is the protocol `Pieces`; which model file, runtime options and kernel names there are
is each class's own matter.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray

from flatq.errors import ModelError
from flatq.runtime.onnxruntime import import_onnxruntime
from flatq.verify.cut import OnnxGraph, cut_layer, weight_names
from flatq.verify.reference import Reference

__all__ = ["OnnxRuntimePieces", "Pieces", "Ran"]


@dataclass(frozen=True)
class Ran:
    """What a layer gave, float32, and the kernels that the runtime ran for it."""

    output: NDArray[np.float32]
    kernels: tuple[str, ...]


class Pieces(Protocol):
    """Runs single layers of a deployed model on the runtime that it was exported for."""

    def run(self, reference: Reference, source: NDArray[np.float32]) -> Ran:
        """The layer's output for its input tensor.

        Raises:
            ModelError: the layer is not in the deployed model, or cannot be cut out or run alone.
        """
        ...


class OnnxRuntimePieces:
    """Layers of an exported ONNX model on ONNX Runtime, each optimized as the whole model would be.

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
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.log_severity_level = 3
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        with tempfile.TemporaryDirectory(prefix="flatq-") as folder:
            optimized = Path(folder) / "layer.onnx"
            options.optimized_model_filepath = str(optimized)
            try:
                session = ort.InferenceSession(
                    cut.model.SerializeToString(), options, providers=["CPUExecutionProvider"]
                )
                output: NDArray[Any] = session.run(None, {"source": source})[0]
            except Exception as error:  # ONNX Runtime raises its own types, which share no base but Exception
                raise ModelError(
                    f"ONNX Runtime cannot run {reference.layer} alone",
                    expected="a model that it can load and run",
                    got=" ".join(str(error).split())[:300],
                    next_step="report it with the versions that `flatq doctor` prints",
                ) from error
            kernels = tuple(node.op_type for node in onnx.load(optimized).graph.node)
        return Ran(output.astype(np.float32, copy=False), kernels)
