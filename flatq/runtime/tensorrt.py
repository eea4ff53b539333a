"""TensorRT engines on an NVIDIA GPU: device buffers, one stream, a CUDA graph for the batch size in use.

Memory and streams go through cuda-bindings, so that sampling needs no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flatq.errors import ArtifactError, MissingRuntimeError, ModelError, one_line
from flatq.runtime.base import CheckedRuntime, inputs_of_file
from flatq.runtime.cuda import Buffer, checked, import_cudart, open_device
from flatq.runtime.engines import find_engine

__all__ = ["TensorRtRuntime", "import_tensorrt", "make_logger"]


def import_tensorrt() -> Any:
    """The package `tensorrt`.

    Raises:
        MissingRuntimeError: it, or the libraries behind it, are not installed.
    """
    try:
        import tensorrt

        tensorrt.__version__  # noqa: B018  (a stub without its libraries imports, and is empty)
    except (ImportError, OSError, AttributeError) as error:
        raise MissingRuntimeError(
            "TensorRT is not installed",
            expected="the package tensorrt with its libraries",
            got=one_line(error),
            next_step='pip install "flatq[tensorrt]" on the machine with the GPU',
        ) from error
    return tensorrt


def make_logger(trt: Any) -> Any:
    """A logger that keeps errors in its list `errors` and prints nothing."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(" ".join(message.split()))

    return Logger()


class TensorRtRuntime(CheckedRuntime):
    """Runs the engine that was built for this GPU and this TensorRT.

    A batch above the engine's largest is run in parts, one below its smallest is filled up; an image does not
    depend on its batch.

    Args:
        folder: the deployment folder.
        onnx_sha256: of its model file.

    Raises:
        MissingRuntimeError: no tensorrt, no cuda-bindings, no GPU, or no engine for them.
        ArtifactError: the engine is not that of the model, or TensorRT refuses it.
    """

    def __init__(self, folder: Path, onnx_sha256: str) -> None:
        trt = import_tensorrt()
        self._cudart = import_cudart()
        self._device = open_device()
        self._version = str(trt.__version__)
        self._record, path = find_engine(folder, onnx_sha256, self._device.architecture, self._version)
        self._logger = make_logger(trt)
        # TensorRT's objects hold no reference to each other: the runtime has to outlive the engine.
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        self._context: Any = self._engine.create_execution_context() if self._engine else None
        if self._context is None:
            raise ArtifactError(
                f"TensorRT {self._version} refuses {path}",
                expected="an engine that it can load",
                got="; ".join(self._logger.errors)[:300] or "no engine",
                next_step=f"flatq export {folder} --trt",
            )
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        is_input = {n: self._engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT for n in names}
        (self._output,) = (n for n in names if not is_input[n])
        self._shapes = {n: tuple(self._engine.get_tensor_shape(n))[1:] for n in names}
        types = {n: np.dtype(trt.nptype(self._engine.get_tensor_dtype(n))).name for n in names}
        found = [(n, types[n], (-1, *self._shapes[n])) for n in names if is_input[n]]
        self._inputs = inputs_of_file(path, found)
        self._stream = checked(self._cudart.cudaStreamCreate())
        largest = self._record.batch[2]
        self._buffers = {n: Buffer(self._cudart, (largest, *self._shapes[n]), types[n]) for n in names}
        for name, buffer in self._buffers.items():
            self._context.set_tensor_address(name, buffer.device)
        self._batch = 0
        self._graph: Any = None

    def inspect(self) -> str:
        """What the engine's inspector says of its layers, JSON."""
        form = import_tensorrt().LayerInformationFormat.JSON
        return str(self._engine.create_engine_inspector().get_engine_information(form))

    @property
    def identity(self) -> dict[str, Any]:
        return {
            "runtime": "tensorrt",
            "version": self._version,
            "device": self._device.name,
            "architecture": self._device.architecture,
            "engine": self._record.sha256[:16],
            "batch": ":".join(map(str, self._record.batch)),
            "cuda graph": True,
        }

    def _run(self, feed: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
        smallest, _, largest = self._record.batch
        total, outputs = len(next(iter(feed.values()))), []
        for start in range(0, total, largest):
            count = min(largest, total - start)
            batch = max(count, smallest)
            for name, value in feed.items():
                array = self._buffers[name].array
                array[:count] = value[start : start + count]
                array[count:batch] = array[count - 1]
            if batch == self._batch:
                checked(self._cudart.cudaGraphLaunch(self._graph, self._stream))
            else:
                self._capture(batch)
            checked(self._cudart.cudaStreamSynchronize(self._stream))
            outputs.append(self._buffers[self._output].array[:count].copy())
        return np.concatenate(outputs)

    def _capture(self, batch: int) -> None:
        """Run a batch of a new size, then record its graph.

        The first run after a change of shape sets the context up, which a capture may not do. A graph holds
        only as long as its context is not changed, so there is one at a time.
        """
        self._drop_graph()
        for name in (spec.name for spec in self._inputs):
            if not self._context.set_input_shape(name, (batch, *self._shapes[name])):
                raise self._failure(f"the shape of {name} for a batch of {batch}")
        self._enqueue(batch)
        checked(self._cudart.cudaStreamSynchronize(self._stream))
        mode = self._cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        checked(self._cudart.cudaStreamBeginCapture(self._stream, mode))
        try:
            self._enqueue(batch)
        finally:
            graph = checked(self._cudart.cudaStreamEndCapture(self._stream))
        self._graph = checked(self._cudart.cudaGraphInstantiate(graph, 0))
        checked(self._cudart.cudaGraphDestroy(graph))
        self._batch = batch

    def _enqueue(self, batch: int) -> None:
        copy, kinds = self._cudart.cudaMemcpyAsync, self._cudart.cudaMemcpyKind
        for buffer in (self._buffers[spec.name] for spec in self._inputs):
            size_bytes, to_device = buffer.array[:batch].nbytes, kinds.cudaMemcpyHostToDevice
            checked(copy(buffer.device, buffer.host, size_bytes, to_device, self._stream))
        if not self._context.execute_async_v3(int(self._stream)):
            raise self._failure(f"a batch of {batch}")
        out, to_host = self._buffers[self._output], kinds.cudaMemcpyDeviceToHost
        checked(copy(out.host, out.device, out.array[:batch].nbytes, to_host, self._stream))

    def _failure(self, what: str) -> ModelError:
        return ModelError(
            f"TensorRT refuses {what}",
            expected="a batch within " + ":".join(map(str, self._record.batch)),
            got="; ".join(self._logger.errors)[-300:] or "no reason given",
            next_step="build the engine with another --batch",
        )

    def _drop_graph(self) -> None:
        if self._graph is not None:
            checked(self._cudart.cudaGraphExecDestroy(self._graph))
        self._graph, self._batch = None, 0

    def close(self) -> None:
        self._drop_graph()
        for buffer in self._buffers.values():
            buffer.free()
        checked(self._cudart.cudaStreamDestroy(self._stream))
        del self._context, self._engine, self._runtime
