"""ONNX Runtime on the CPU, and on NVIDIA through its CUDA and TensorRT execution providers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from flatq.errors import ArtifactError, MissingRuntimeError
from flatq.failures import shortage
from flatq.packages import require
from flatq.runtime.base import CheckedRuntime, default_threads, inputs_of_file

__all__ = ["Device", "OnnxRuntime", "cpu_options", "import_onnxruntime"]

Device = Literal["cpu", "cuda", "tensorrt"]

_CPU, _CUDA, _TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
# What a provider cannot run goes to the next one; that is for the few shape operators, and the provider named
# first has to be there.
_PROVIDERS: dict[Device, list[str]] = {
    "cpu": [_CPU],
    "cuda": [_CUDA, _CPU],
    "tensorrt": [_TENSORRT, _CUDA, _CPU],
}


def import_onnxruntime() -> Any:
    """The package `onnxruntime`.

    Raises:
        MissingRuntimeError: it is not installed.
    """
    return require("onnxruntime", "ONNX Runtime", "cpu")


def cpu_options(ort: Any, threads: int) -> Any:
    """Session options with which every model runs here.

    A product with a narrow weight and a float input is computed in float; by default ONNX Runtime quantizes
    the input to 8 bits, which nobody asked for. Its threads wait for a call asleep, not in a loop that takes
    the cores from whoever else computes: another model that is measured, or torch between two calls. On x86
    CPUs without VNNI the 8-bit weights become unsigned, whose products do not saturate there.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry("session.x64quantprecision", "1")
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    return options


class OnnxRuntime(CheckedRuntime):
    """Runs an ONNX file whose inputs are the noised images, the timesteps and any conditions.

    Args:
        path: the model file.
        threads: intra-op threads; all cores by default.
        device: the CPU, or the execution provider that runs the model.
        options: of that provider, by name.
        optimized_path: where to write the graph that ONNX Runtime itself optimized, for reading only.
        profile_prefix: profile every run; `end_profiling` writes the file, whose name begins so.

    Raises:
        MissingRuntimeError: onnxruntime or the device's provider is not there.
        ArtifactError: ONNX Runtime refuses the file (one that keeps data outside its folder, too), or its
            inputs are others.
    """

    _backend = "ONNX Runtime"
    _errors = (Exception,)  # it raises its own types, which share no base but Exception

    def __init__(
        self,
        path: Path,
        *,
        threads: int | None = None,
        device: Device = "cpu",
        options: Mapping[str, str] = MappingProxyType({}),
        optimized_path: Path | None = None,
        profile_prefix: Path | None = None,
    ) -> None:
        ort = import_onnxruntime()
        self._ort = ort
        self._threads = threads or default_threads()
        self._version = str(ort.__version__)
        self._device = device
        first, *others = _PROVIDERS[device]
        offered = ort.get_available_providers()
        if first not in offered:
            raise MissingRuntimeError(
                f"this build of ONNX Runtime has no {first}",
                expected="the package onnxruntime-gpu, and onnxruntime uninstalled first",
                got="only " + ", ".join(offered),
                next_step='pip uninstall onnxruntime && pip install "flatq[gpu]", or take --device cpu',
            )
        session = cpu_options(ort, self._threads)
        if optimized_path is not None:
            session.optimized_model_filepath = str(optimized_path)
        if profile_prefix is not None:
            session.enable_profiling = True
            session.profile_file_prefix = str(profile_prefix)
        providers = [(first, dict(options)) if options else first, *others]
        try:
            self._session = ort.InferenceSession(str(path), session, providers=providers)
        except Exception as error:
            raise shortage(error) or _refusal(path, self._version, error) from error
        if first not in self._session.get_providers():
            raise MissingRuntimeError(
                f"ONNX Runtime did not start its {first}",
                expected=f"a working {device} device, with the libraries that onnxruntime-gpu needs",
                got="only " + ", ".join(self._session.get_providers()),
                next_step="check the driver and the CUDA libraries, or take --device cpu",
            )
        types = {"tensor(float)": "float32", "tensor(int64)": "int64"}
        found = [(v.name, types.get(v.type, v.type), v.shape) for v in self._session.get_inputs()]
        self._inputs = inputs_of_file(path, found)
        self._bound: _Bound | None = None

    @property
    def identity(self) -> dict[str, Any]:
        providers = self._session.get_providers()
        return {
            "runtime": "onnxruntime",
            "version": self._version,
            "device": self._device,
            "threads": self._threads,
            **({} if self._device == "cpu" else {"providers": ", ".join(providers)}),
        }

    def _run(self, feed: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
        if self._device == "cpu":
            output: NDArray[np.float32] = self._session.run(None, feed)[0]
            return output
        if self._bound is None or self._bound.batch != len(next(iter(feed.values()))):
            self._bound = _Bound(self._ort, self._session, feed, "cuda")
        return self._bound.run(feed)

    def end_profiling(self) -> Path:
        """Stop profiling and return the file, JSON; only where `profile_prefix` was given."""
        return Path(self._session.end_profiling())

    def close(self) -> None:
        self._bound = None
        del self._session


class _Bound:
    """A session's inputs and output in memory of the device, for one batch size."""

    def __init__(self, ort: Any, session: Any, feed: dict[str, NDArray[Any]], device: str) -> None:
        self.batch = len(next(iter(feed.values())))
        self._session, self._binding = session, session.io_binding()
        self._inputs = {
            name: ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value), device, 0)
            for name, value in feed.items()
        }
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        (output,) = session.get_outputs()
        shape = [self.batch, *output.shape[1:]]
        self._output = ort.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, device, 0)
        self._binding.bind_ortvalue_output(output.name, self._output)

    def run(self, feed: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
        for name, value in feed.items():
            self._inputs[name].update_inplace(np.ascontiguousarray(value))
        self._binding.synchronize_inputs()
        self._session.run_with_iobinding(self._binding)
        self._binding.synchronize_outputs()
        # On the CPU the array would be the bound memory itself, which the next run writes again.
        output: NDArray[np.float32] = self._output.numpy().copy()
        return output


def _refusal(path: Path, version: str, error: Exception) -> ArtifactError:
    said = " ".join(str(error).split())
    new = any(words in said.lower() for words in ("ir version", "opset"))
    return ArtifactError(
        f"{path} is too new for ONNX Runtime {version}" if new else f"ONNX Runtime {version} refuses {path}",
        expected="an ONNX model that this version can load",
        got=said[-300:],
        next_step="pip install -U onnxruntime, or export again with this version of flatq",
    )
