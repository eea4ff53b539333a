"""ONNX Runtime on the CPU."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from flatq.errors import ArtifactError, MissingRuntimeError
from flatq.runtime.base import UNCONDITIONED, Condition, check_condition, default_threads

__all__ = ["OnnxRuntime", "import_onnxruntime"]


def import_onnxruntime() -> Any:
    """The package `onnxruntime`.

    Raises:
        MissingRuntimeError: it is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingRuntimeError(
            "ONNX Runtime is not installed",
            expected="the package onnxruntime",
            got=str(error),
            next_step='pip install "flatq[cpu]"',
        ) from error
    return onnxruntime


class OnnxRuntime:
    """Runs an ONNX file with inputs `x` float32 [N, C, H, W], `t` int64 [N] and maybe `label` int64 [N].

    Args:
        path: the model file.
        threads: intra-op threads; all cores by default.
        optimized_path: where to write the graph that ONNX Runtime itself optimized, for reading only.

    Raises:
        MissingRuntimeError: onnxruntime is not installed.
        ArtifactError: ONNX Runtime refuses the file, or its inputs are others.
    """

    def __init__(self, path: Path, *, threads: int | None = None, optimized_path: Path | None = None) -> None:
        ort = import_onnxruntime()
        self._threads = threads or default_threads()
        self._version = str(ort.__version__)
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.log_severity_level = 3
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        if optimized_path is not None:
            options.optimized_model_filepath = str(optimized_path)
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime raises its own types, which share no base but Exception
            raise ArtifactError(
                f"ONNX Runtime {self._version} refuses {path}",
                expected="an ONNX model that this version can load",
                got=" ".join(str(error).split())[:300],
                next_step="export again with this version of flatq",
            ) from error
        names = [value.name for value in self._session.get_inputs()]
        if names not in (["x", "t"], ["x", "t", "label"]):
            raise ArtifactError(
                f"{path} is not a flatq export",
                expected="the inputs x, t and, with classes, label",
                got=", ".join(names) or "no inputs",
                next_step="write it with `flatq export --onnx`",
            )
        self._conditions = tuple(names[2:])

    @property
    def identity(self) -> dict[str, Any]:
        return {
            "runtime": "onnxruntime",
            "version": self._version,
            "device": "cpu",
            "threads": self._threads,
        }

    def __call__(
        self, x: NDArray[np.float32], t: NDArray[np.int64], cond: Condition = UNCONDITIONED
    ) -> NDArray[np.float32]:
        check_condition(cond, self._conditions)
        output: NDArray[np.float32] = self._session.run(None, {"x": x, "t": t, **cond})[0]
        return output

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del self._session
