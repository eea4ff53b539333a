"""CUDA through NVIDIA's own bindings: devices, memory, streams, graphs, without torch.

`cuda-bindings` is a wheel of a few megabytes, so a machine that only samples needs no framework for it.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flatq.errors import MissingRuntimeError, ModelError
from flatq.packages import require

__all__ = ["Buffer", "CudaDevice", "checked", "import_cudart", "open_device"]


@dataclass(frozen=True)
class CudaDevice:
    """A GPU: its name, and its architecture such as `sm89`."""

    name: str
    architecture: str


def import_cudart() -> Any:
    """The module `cuda.bindings.runtime`.

    Raises:
        MissingRuntimeError: it is not installed.
    """
    return require("cuda.bindings.runtime", "cuda-bindings", "tensorrt", "cuda-bindings")


def checked(result: tuple[Any, ...]) -> Any:
    """What a call returned beside its error code: nothing, one value, or a tuple.

    Raises:
        ModelError: CUDA reports an error.
    """
    code, *values = result
    if int(code) != 0:
        raise ModelError(
            "CUDA reports an error",
            expected="cudaSuccess",
            got=str(getattr(code, "name", code)),
            next_step="check the GPU's memory, or take a smaller batch",
        )
    return values[0] if len(values) == 1 else tuple(values) or None


def open_device(index: int = 0) -> CudaDevice:
    """The GPU of this number, made the current one.

    Raises:
        MissingRuntimeError: no bindings, no driver or no GPU.
    """
    cudart = import_cudart()
    code, count = cudart.cudaGetDeviceCount()
    if int(code) != 0 or count <= index:
        raise MissingRuntimeError(
            "there is no CUDA GPU here",
            expected="an NVIDIA GPU and its driver",
            got=str(getattr(code, "name", code)) if int(code) else f"{count} devices",
            next_step="run this on the machine that has one",
        )
    checked(cudart.cudaSetDevice(index))
    attributes = cudart.cudaDeviceAttr
    major = checked(cudart.cudaDeviceGetAttribute(attributes.cudaDevAttrComputeCapabilityMajor, index))
    minor = checked(cudart.cudaDeviceGetAttribute(attributes.cudaDevAttrComputeCapabilityMinor, index))
    name = checked(cudart.cudaGetDeviceProperties(index)).name
    return CudaDevice(name.decode() if isinstance(name, bytes) else str(name), f"sm{major}{minor}")


class Buffer:
    """An array in page-locked memory, which a stream copies while the CPU goes on, and as much on the device.

    Attributes:
        array: the host's memory as an array.
        host, device: addresses of the first bytes.
    """

    def __init__(self, cudart: Any, shape: tuple[int, ...], dtype: Any) -> None:
        self._cudart = cudart
        size_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self.host = int(checked(cudart.cudaMallocHost(size_bytes)))
        self.device = int(checked(cudart.cudaMalloc(size_bytes)))
        memory = (ctypes.c_byte * size_bytes).from_address(self.host)
        self.array: NDArray[Any] = np.frombuffer(memory, dtype=dtype).reshape(shape)

    def free(self) -> None:
        """Give the memory back; the array must not be used any more."""
        checked(self._cudart.cudaFree(self.device))
        checked(self._cudart.cudaFreeHost(self.host))
