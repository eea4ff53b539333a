"""A model's samples and their features, which may grow: drawn by index, so that more images never redraw
those that are there.

What is compared with what is `flatq.evaluate.compare`'s; opening models, `flatq.models`'.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from flatq.evaluate.compare import Referee, Rounding
from flatq.evaluate.frechet import FrechetSide, frechet_side
from flatq.evaluate.moments import F64
from flatq.models import Model
from flatq.runtime.base import UNCONDITIONED, Condition, Runtime
from flatq.sampler import SamplePlan, sample

__all__ = ["Growing"]

Progress = Callable[[str, int, int], None]


class _Timed:
    """A runtime that notes how long each call of a full batch takes."""

    def __init__(self, runtime: Runtime, batch_size: int) -> None:
        self._runtime, self._batch_size = runtime, batch_size
        self.seconds: list[float] = []

    @property
    def identity(self) -> dict[str, Any]:
        return self._runtime.identity

    def __call__(
        self, x: NDArray[np.float32], t: NDArray[np.int64], cond: Condition = UNCONDITIONED
    ) -> NDArray[np.float32]:
        start = time.perf_counter()
        output = self._runtime(x, t, cond)
        if len(x) == self._batch_size:
            self.seconds.append(time.perf_counter() - start)
        return output

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing: who opened the runtime closes it."""


class Growing:
    """Samples of the indices first, first + 1, ... of one model; the model's runtime has to be open to grow.

    images: float32 [n, C, H, W]. finite: whether all of them are. seconds: wall time of sampling and
    extracting so far. identity: of the runtime.
    """

    def __init__(
        self,
        model: Model,
        referee: Referee,
        plan: SamplePlan,
        *,
        first: int,
        batch_size: int,
        rounding: Rounding,
        progress: Progress | None = None,
    ) -> None:
        self.model, self.identity = model, model.runtime.identity
        self.images = np.empty((0, *model.image_shape), np.float32)
        self.finite = True
        self.seconds = 0.0
        self._referee, self._plan, self._rounding = referee, plan, rounding
        self._first, self._batch_size, self._progress = first, batch_size, progress
        self._features: F64 = np.empty((0, referee.net.dim))
        self._side: tuple[int, FrechetSide] | None = None
        self._calls: list[float] = []

    @property
    def latency_ms(self) -> float | None:
        """Median of one evaluation of a full batch; None where there was none."""
        return statistics.median(self._calls) * 1e3 if self._calls else None

    def grow(self, n: int) -> None:
        """Draw what is missing to n images, and extract features as long as all images are finite."""
        have = len(self.images)
        if n <= have:
            return
        done, total = 0, (n - have) * self._plan.steps

        def advance(count: int) -> None:
            nonlocal done
            done += count
            if self._progress is not None:
                self._progress(self.model.name, done, total)

        start = time.perf_counter()
        timed = _Timed(self.model.runtime, min(self._batch_size, n - have))
        drawn = sample(
            timed,
            self.model.process,
            self._plan,
            range(self._first + have, self._first + n),
            self.model.image_shape,
            classes=self.model.classes,
            batch_size=self._batch_size,
            progress=advance,
        )
        self._calls += timed.seconds
        self.finite = self.finite and bool(np.isfinite(drawn).all())
        self.images = np.concatenate([self.images, drawn])
        if self.finite:
            new = self._referee.extract(drawn, rounding=self._rounding)
            self._features = np.concatenate([self._features, new])
        self.seconds += time.perf_counter() - start

    def features(self, n: int) -> F64 | None:
        """Of the first n images, f64 [n, d]; None where not all images are finite."""
        return self._features[:n] if self.finite else None

    def side(self, n: int) -> FrechetSide:
        """Of the first n images, whose features are finite; the last one is kept."""
        if self._side is None or self._side[0] != n:
            self._side = n, frechet_side(self._features[:n], self._referee.reference)
        return self._side[1]
