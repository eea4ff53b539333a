"""What every backend offers."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

__all__ = ["Runtime", "default_threads"]


class Runtime(Protocol):
    """A model that is ready to run.

    Two runs give the same numbers only at equal identity (and on the same machine).
    """

    @property
    def identity(self) -> dict[str, Any]:
        """Backend, version, device, threads and precision: whatever moves the numbers."""
        ...

    def __call__(self, x: NDArray[np.float32], t: NDArray[np.int64]) -> NDArray[np.float32]:
        """Model output for noised images x [N, C, H, W] at training timesteps t [N]."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def default_threads() -> int:
    """The number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
