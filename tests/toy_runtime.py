"""A runtime that is plain numpy, for tests of what stands on runtimes."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from flatq.runtime.base import UNCONDITIONED, Condition


class Toy:
    """An elementwise model, so that an image does not depend on its batch."""

    def __init__(self, channels: int = 3) -> None:
        self.channels = channels
        self.calls: list[tuple[int, int]] = []

    @property
    def identity(self) -> dict[str, Any]:
        return {"runtime": "toy"}

    def __call__(
        self, x: NDArray[np.float32], t: NDArray[np.int64], cond: Condition = UNCONDITIONED
    ) -> NDArray[np.float32]:
        assert x.dtype == np.float32
        assert t.dtype == np.int64
        assert t.shape == (len(x),)
        assert (t == t[0]).all()
        self.calls.append((len(x), int(t[0])))
        output = np.tanh(x) * np.float32(0.8) + t[:, None, None, None].astype(np.float32) / 5000
        return np.concatenate([output, output])[: len(x)].repeat(2, axis=1)[:, : self.channels]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass
