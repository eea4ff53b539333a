"""OpenVINO on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from flatq.errors import ArtifactError, MissingRuntimeError, one_line
from flatq.failures import shortage
from flatq.packages import require
from flatq.runtime.base import CheckedRuntime, Precision, default_threads, inputs_of_file

__all__ = ["SETTINGS", "Hint", "OpenVinoRuntime", "import_openvino"]

Hint = Literal["latency", "throughput"]
SETTINGS: dict[str, Any] = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
"""With which every model runs here: a product with a narrow weight and a float input is computed in float; by
default OpenVINO quantizes the input to 8 bits, which nobody asked for."""

_TYPES = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


def import_openvino() -> Any:
    """The package `openvino`.

    Raises:
        MissingRuntimeError: it is not installed.
    """
    return require("openvino", "OpenVINO", "openvino")


class OpenVinoRuntime(CheckedRuntime):
    """Runs an IR whose inputs are the noised images, the timesteps and any conditions.

    The batch stays dynamic: OpenVINO 2026.4 crashes when a graph reshaped to one batch is compiled for
    float32.

    Args:
        path: the .xml file; the .bin stands beside it.
        threads: all cores by default.
        hint: OpenVINO's performance hint.
        precision: of the layers that are not quantized. By default OpenVINO's own choice, which is bf16 on a
            CPU that has it; `identity` has it.

    Raises:
        MissingRuntimeError: openvino is not installed, or this CPU does not compute in that precision.
        ArtifactError: OpenVINO refuses the file, or its inputs are others.
    """

    _backend = "OpenVINO"
    _errors = (RuntimeError,)

    def __init__(
        self,
        path: Path,
        *,
        threads: int | None = None,
        hint: Hint = "latency",
        precision: Precision | None = None,
    ) -> None:
        openvino = import_openvino()
        self._version = str(openvino.get_version())
        self._hint = hint
        core = openvino.Core()
        settings: dict[str, Any] = {
            **SETTINGS,
            "PERFORMANCE_HINT": hint.upper(),
            "INFERENCE_NUM_THREADS": threads or default_threads(),
        }
        if precision is not None:
            able = list(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
            if precision.upper() not in able:
                raise MissingRuntimeError(
                    f"OpenVINO does not compute in {precision} on this CPU",
                    expected="one of " + ", ".join(name for name in _TYPES if name.upper() in able),
                    got=precision,
                    next_step="leave --precision out",
                )
            settings["INFERENCE_PRECISION_HINT"] = _TYPES[precision]
        try:
            model = core.read_model(path)
            self._model = core.compile_model(model, "CPU", settings)
        except RuntimeError as error:
            raise shortage(error) or ArtifactError(
                f"OpenVINO {self._version} refuses {path}",
                expected="an IR that this version can load and compile",
                got=one_line(error),
                next_step="export again with this version, or install the one that wrote it",
            ) from error
        types = {"f32": "float32", "i64": "int64"}
        found = [
            (
                value.get_any_name(),
                types.get(value.element_type.get_type_name(), value.element_type.get_type_name()),
                [size.get_length() if size.is_static else None for size in value.partial_shape],
            )
            for value in model.inputs
        ]
        self._inputs = inputs_of_file(path, found)
        effective = self._model.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        self._precision = next(name for name, value in _TYPES.items() if value == effective)
        self._threads = int(self._model.get_property("INFERENCE_NUM_THREADS"))
        self._request = self._model.create_infer_request()

    @property
    def compiled(self) -> Any:
        """OpenVINO's compiled model, for what it says of itself."""
        return self._model

    @property
    def identity(self) -> dict[str, Any]:
        return {
            "runtime": "openvino",
            "version": self._version,
            "device": "cpu",
            "threads": self._threads,
            "hint": self._hint,
            "float precision": self._precision,
        }

    def _run(self, feed: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
        self._request.infer({name: np.ascontiguousarray(value) for name, value in feed.items()})
        # The tensor's memory is the request's own and is written again by the next call.
        output: NDArray[np.float32] = self._request.get_output_tensor(0).data.copy()
        return output

    def close(self) -> None:
        del self._request, self._model
