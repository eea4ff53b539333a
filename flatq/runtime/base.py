"""What every backend offers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import MappingProxyType, TracebackType
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from flatq.errors import ModelError

__all__ = ["UNCONDITIONED", "Condition", "Runtime", "check_condition", "default_threads"]

Condition = Mapping[str, NDArray[np.int64]]
"""What else the network is told, by input name: `label` int64 [N] for a network with classes."""

UNCONDITIONED: Condition = MappingProxyType({})


class Runtime(Protocol):
    """A model that is ready to run.

    Two runs give the same numbers only at equal identity (and on the same machine).
    """

    @property
    def identity(self) -> dict[str, Any]:
        """Backend, version, device, threads and precision: whatever moves the numbers."""
        ...

    def __call__(
        self, x: NDArray[np.float32], t: NDArray[np.int64], cond: Condition = UNCONDITIONED
    ) -> NDArray[np.float32]:
        """Model output for noised images x [N, C, H, W] at training timesteps t [N].

        Raises:
            ModelError: `cond` lacks an input of the model, or names one that it does not have.
        """
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def check_condition(cond: Condition, wanted: tuple[str, ...]) -> None:
    """Refuse conditions that are not exactly the model's.

    Raises:
        ModelError: one is missing or left over.
    """
    if set(cond) != set(wanted):
        raise ModelError(
            "the model's conditions do not fit",
            expected=", ".join(wanted) or "x and t alone",
            got=", ".join(cond) or "x and t alone",
            next_step="give a label exactly where the network has classes",
        )


def default_threads() -> int:
    """The number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
