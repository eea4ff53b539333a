"""The runtime for TensorRT's engines: its buffers, parts of a batch and graphs, over a CUDA that is played.

The player keeps "device" memory on the host and runs a copy when the stream would. It says nothing about a
real GPU: that is what the tests marked `gpu` are for.
"""

from __future__ import annotations

import ctypes
import enum
import hashlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from flatq.backends import RuntimeSettings
from flatq.checkpoint import Checkpoint
from flatq.errors import ArtifactError, MissingRuntimeError, ModelError
from flatq.export.deploy import export_artifact
from flatq.export.engine import build_engine
from flatq.models import open_model
from flatq.quantize.artifact import Artifact, write_artifact
from flatq.quantize.lowering import lower
from flatq.runtime import tensorrt as module
from flatq.runtime.cuda import CudaDevice, checked, open_device
from flatq.runtime.engines import EngineRecord, engine_stem, find_engine, is_engine_file
from flatq.runtime.tensorrt import TensorRtRuntime

SHAPE = (3, 4, 4)
SHA = "a" * 64


_Code = enum.IntEnum("_Code", {"cudaSuccess": 0, "cudaErrorMemoryAllocation": 2})


class _Cuda:
    """The calls of `cuda.bindings.runtime` that the runtime makes, over host memory."""

    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)  # noqa: N815
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)  # noqa: N815

    def __init__(self) -> None:
        self.memory: dict[int, Any] = {}
        self.recording: list[Callable[[], None]] | None = None
        self.pending: list[Callable[[], None]] = []
        self.streams = self.graphs = self.launches = self.captures = 0

    def do(self, work: Callable[[], None]) -> None:
        (self.pending if self.recording is None else self.recording).append(work)

    def _allocate(self, size: int) -> tuple[_Code, int]:
        memory = ctypes.create_string_buffer(b"\x7f" * size, size)
        self.memory[ctypes.addressof(memory)] = memory
        return _Code.cudaSuccess, ctypes.addressof(memory)

    def _free(self, address: int) -> tuple[_Code]:
        del self.memory[address]
        return (_Code.cudaSuccess,)

    cudaMalloc = cudaMallocHost = _allocate  # noqa: N815
    cudaFree = cudaFreeHost = _free  # noqa: N815

    def cudaStreamCreate(self) -> tuple[_Code, int]:  # noqa: N802
        self.streams += 1
        return _Code.cudaSuccess, 77

    def cudaStreamDestroy(self, stream: int) -> tuple[_Code]:  # noqa: N802
        self.streams -= 1
        return (_Code.cudaSuccess,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[_Code]:  # noqa: N802
        assert stream == 77
        assert self.recording is None, "a stream that is captured cannot be waited for"
        for work in self.pending:
            work()
        self.pending.clear()
        return (_Code.cudaSuccess,)

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: int, stream: int) -> tuple[_Code]:  # noqa: N802
        assert to in self.memory
        assert source in self.memory
        assert size <= min(ctypes.sizeof(self.memory[to]), ctypes.sizeof(self.memory[source]))
        self.do(lambda: ctypes.memmove(to, source, size) and None)
        return (_Code.cudaSuccess,)

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[_Code]:  # noqa: N802
        assert not self.pending, "the first run has to be over"
        self.recording = []
        self.captures += 1
        return (_Code.cudaSuccess,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[_Code, list[Callable[[], None]]]:  # noqa: N802
        assert self.recording is not None
        graph, self.recording = self.recording, None
        return _Code.cudaSuccess, graph

    def cudaGraphInstantiate(self, graph: Any, flags: int) -> tuple[_Code, Any]:  # noqa: N802
        self.graphs += 1
        return _Code.cudaSuccess, list(graph)

    def cudaGraphDestroy(self, graph: Any) -> tuple[_Code]:  # noqa: N802
        return (_Code.cudaSuccess,)

    def cudaGraphExecDestroy(self, graph: Any) -> tuple[_Code]:  # noqa: N802
        self.graphs -= 1
        return (_Code.cudaSuccess,)

    def cudaGraphLaunch(self, graph: Any, stream: int) -> tuple[_Code]:  # noqa: N802
        self.launches += 1
        self.pending += graph
        return (_Code.cudaSuccess,)


class _Context:
    def __init__(self, cuda: _Cuda, largest: int) -> None:
        self.cuda, self.largest = cuda, largest
        self.addresses: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = tuple(shape)
        return shape[0] <= self.largest

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == 77
        shapes = dict(self.shapes)

        def array(name: str, dtype: Any, shape: tuple[int, ...]) -> Any:
            memory = self.cuda.memory[self.addresses[name]]
            return np.frombuffer(memory, dtype=dtype)[: int(np.prod(shape))].reshape(shape)

        def work() -> None:
            x, t = array("x", np.float32, shapes["x"]), array("t", np.int64, shapes["t"])
            array("out", np.float32, shapes["x"])[...] = _model(x, t)

        self.cuda.do(work)
        return True


def _model(x: Any, t: Any) -> Any:
    return (np.tanh(x) + t[:, None, None, None] / 1000).astype(np.float32)


class _Mode(enum.Enum):
    INPUT = 1
    OUTPUT = 2


class _Engine:
    num_io_tensors = 3

    def __init__(self, cuda: _Cuda, largest: int) -> None:
        self.cuda, self.largest = cuda, largest

    def get_tensor_name(self, index: int) -> str:
        return ("x", "t", "out")[index]

    def get_tensor_mode(self, name: str) -> _Mode:
        return _Mode.OUTPUT if name == "out" else _Mode.INPUT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1,) if name == "t" else (-1, *SHAPE)

    def get_tensor_dtype(self, name: str) -> str:
        return "int64" if name == "t" else "float32"

    def create_execution_context(self) -> _Context:
        return _Context(self.cuda, self.largest)


def _tensorrt(cuda: _Cuda, largest: int) -> Any:
    class Logger:
        Severity = SimpleNamespace(ERROR=1, INTERNAL_ERROR=0)

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, plan: bytes) -> _Engine | None:
            return None if plan == b"another version's" else _Engine(cuda, largest)

    return SimpleNamespace(
        __version__="10.9.0", ILogger=Logger, Runtime=Runtime, TensorIOMode=_Mode, nptype=np.dtype
    )


def _engine(
    folder: Path, plan: bytes = b"plan", batch: tuple[int, int, int] = (2, 4, 8), **fields: Any
) -> None:
    stem = engine_stem("sm89", "10.9.0")
    (folder / f"{stem}.plan").write_bytes(plan)
    record = EngineRecord(
        file=f"{stem}.plan",
        sha256=hashlib.sha256(plan).hexdigest(),
        onnx_sha256=SHA,
        architecture="sm89",
        gpu="played",
        tensorrt="10.9.0",
        batch=batch,
    )
    (folder / f"{stem}.json").write_text(record.model_dump_json())


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> _Cuda:
    played = _Cuda()
    monkeypatch.setattr(module, "import_tensorrt", lambda: _tensorrt(played, 8))
    monkeypatch.setattr(module, "import_cudart", lambda: played)
    monkeypatch.setattr(module, "open_device", lambda: CudaDevice("played", "sm89"))
    return played


def _inputs(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, *SHAPE)).astype(np.float32), rng.integers(0, 1000, n)


@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 20])
def test_any_batch_runs_in_parts_that_the_engine_takes(n: int, cuda: _Cuda, tmp_path: Path) -> None:
    _engine(tmp_path)
    with TensorRtRuntime(tmp_path, SHA) as runtime:
        for seed in range(3):
            x, t = _inputs(n, seed)
            found = runtime(x, t)
            np.testing.assert_array_equal(found, _model(x, t))
        kept, first = found.copy(), found
        runtime(*_inputs(n, 9))
        np.testing.assert_array_equal(first, kept)
    assert (cuda.memory, cuda.streams, cuda.graphs) == ({}, 0, 0)


def test_one_batch_size_is_captured_once_and_launched_after(cuda: _Cuda, tmp_path: Path) -> None:
    _engine(tmp_path)
    with TensorRtRuntime(tmp_path, SHA) as runtime:
        for _ in range(4):
            runtime(*_inputs(8))
        assert (cuda.captures, cuda.launches) == (1, 3)
        runtime(*_inputs(3))
        runtime(*_inputs(8))
        assert (cuda.captures, cuda.launches, cuda.graphs) == (3, 3, 1)


def test_the_runtime_refuses_bad_inputs_and_batches(cuda: _Cuda, tmp_path: Path) -> None:
    _engine(tmp_path, batch=(1, 4, 16))  # its record says more than the engine takes
    x, t = _inputs(12)
    with TensorRtRuntime(tmp_path, SHA) as runtime:
        with pytest.raises(ModelError, match="TensorRT refuses the shape of x"):
            runtime(x, t)
        for bad in (x[:0], x[:, :1], x * np.float32("inf")):
            with pytest.raises(ModelError):
                runtime(bad, t[: len(bad)])
        assert runtime.identity["architecture"] == "sm89"


def test_engines_are_found_by_gpu_and_version_and_checked(cuda: _Cuda, tmp_path: Path) -> None:
    with pytest.raises(MissingRuntimeError, match="no engine for this GPU") as caught:
        TensorRtRuntime(tmp_path, SHA)
    assert f"flatq export {tmp_path} --trt" in str(caught.value)
    _engine(tmp_path)
    record, path = find_engine(tmp_path, SHA, "sm89", "10.9.0")
    assert path.name == record.file == "engine.sm89.trt10.9.0.plan"
    for architecture, version in (("sm90", "10.9.0"), ("sm89", "11.4.0.106")):
        with pytest.raises(MissingRuntimeError, match=r"engine\.sm89\.trt10\.9\.0"):
            find_engine(tmp_path, SHA, architecture, version)
    with pytest.raises(ArtifactError, match="not the engine of this folder's model"):
        find_engine(tmp_path, "b" * 64, "sm89", "10.9.0")
    path.write_bytes(b"changed")
    with pytest.raises(ArtifactError, match="not the engine of this folder's model"):
        TensorRtRuntime(tmp_path, SHA)
    _engine(tmp_path, plan=b"another version's")
    with pytest.raises(ArtifactError, match=r"TensorRT 10\.9\.0 refuses"):
        TensorRtRuntime(tmp_path, SHA)
    (tmp_path / "engine.sm89.trt10.9.0.json").write_text("{}")
    with pytest.raises(ArtifactError, match="not the record of an engine"):
        TensorRtRuntime(tmp_path, SHA)


def test_the_names_of_engine_files() -> None:
    stem = engine_stem("sm120", "11.4.0.106")
    names = (f"{stem}.plan", f"{stem}.json", f"timing.{stem}.cache")
    assert all(is_engine_file(name) for name in names)
    assert not any(
        is_engine_file(name) for name in ("engine.plan", "notes.json", "model.onnx", f"{stem}.txt")
    )


def test_codes_of_cuda() -> None:
    assert checked((_Code.cudaSuccess,)) is None
    assert checked((_Code.cudaSuccess, 3)) == 3
    assert checked((_Code.cudaSuccess, 3, 4)) == (3, 4)
    with pytest.raises(ModelError, match="cudaErrorMemoryAllocation"):
        checked((_Code.cudaErrorMemoryAllocation, None))


def test_without_the_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sys

    for name in ("tensorrt", "cuda.bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingRuntimeError, match=r'pip install "flatq\[tensorrt\]"'):
        TensorRtRuntime(tmp_path, SHA)
    with pytest.raises(MissingRuntimeError, match=r'pip install "flatq\[tensorrt\]"'):
        open_device()


@pytest.mark.gpu
@pytest.mark.parametrize("floats", ["fp32", "fp16"])
def test_an_engine_computes_what_the_lowered_graph_does(
    floats: Any, tiny: Checkpoint, tiny_artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    import torch

    pytest.importorskip("tensorrt")
    pytest.importorskip("cuda.bindings")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    write_artifact(tiny_artifacts["w8a8"], tmp_path / "a")
    export_artifact(tmp_path / "a", "tensorrt", tmp_path / "a" / "tensorrt", float_precision=floats)
    engine = build_engine(tmp_path / "a" / "tensorrt", (2, 4, 8))
    assert engine.is_file()
    rng = np.random.default_rng(0)
    x, t = rng.standard_normal((13, 3, 16, 16)).astype(np.float32), np.linspace(0, 999, 13).astype(np.int64)
    with torch.no_grad():
        graph = lower(tiny_artifacts["w8a8"], "tensorrt").graph
        expected = graph(torch.from_numpy(x), torch.from_numpy(t)).numpy()
    with open_model(tmp_path / "a", RuntimeSettings(runtime="tensorrt")).runtime as runtime:
        found = runtime(x, t)
        again = runtime(x, t)
        one = runtime(x[:1], t[:1])
    np.testing.assert_array_equal(found, again)
    assert np.sqrt(np.mean((found - expected) ** 2)) < 0.1 * np.sqrt(np.mean(expected**2))
    assert np.sqrt(np.mean((one - found[:1]) ** 2)) < 0.1 * np.sqrt(np.mean(found[:1] ** 2))


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_onnx_runtime_runs_on_its_providers(
    device: str, tiny: Checkpoint, tiny_artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    import onnxruntime
    import torch

    from flatq.export.deploy import export_checkpoint

    wanted = "CUDAExecutionProvider" if device == "cuda" else "TensorrtExecutionProvider"
    if wanted not in onnxruntime.get_available_providers():
        pytest.skip(f"no {wanted}")
    export_checkpoint(tiny, "onnxruntime", tmp_path / "fp32")
    x = np.random.default_rng(0).standard_normal((5, 3, 16, 16)).astype(np.float32)
    t = np.full(5, 400)
    with torch.no_grad():
        expected = tiny.network()(torch.from_numpy(x), torch.from_numpy(t)).numpy()
    with open_model(
        tmp_path / "fp32", RuntimeSettings(runtime="onnxruntime", device=device)
    ).runtime as runtime:
        assert wanted in runtime.identity["providers"]
        # TF32 is on by default in both: 11 bits.
        np.testing.assert_allclose(runtime(x, t), expected, atol=1e-2 * float(np.abs(expected).max()))
    if device == "tensorrt":
        write_artifact(tiny_artifacts["w8a8"], tmp_path / "a")
        export_artifact(tmp_path / "a", "tensorrt", tmp_path / "a" / "tensorrt")
        with open_model(tmp_path / "a", RuntimeSettings(device="tensorrt")).runtime as runtime:
            assert np.isfinite(runtime(x, t)).all()
