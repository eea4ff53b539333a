"""A model's samples and their features, which may grow: drawn batch by batch, by index, so that more images
never redraw a batch that is there, in memory or in the cache.

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
from flatq.evaluate.samples import Batch, SampleCache, sample_key
from flatq.models import Model
from flatq.runtime.base import UNCONDITIONED, Condition, Runtime
from flatq.sampler import SamplePlan, check_batch_size, sample

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

    At n images they are those of any other growth to n: only a last batch that is not full is drawn again.
    images: float32 [n, C, H, W]. finite: whether all of them are. identity: of the runtime.
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
        cache: SampleCache | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Args:
        cache: where batches are kept, and looked for first.
        progress: called with (name of the model, images times steps done, total).
        """
        self.model, self.identity = model, model.runtime.identity
        self.images = np.empty((0, *model.image_shape), np.float32)
        self.finite = True
        self._referee, self._plan, self._rounding = referee, plan, rounding
        self._first, self._batch_size, self._progress = first, batch_size, progress
        self._cache = cache
        self._key = sample_key(
            model,
            plan,
            referee.net,
            first=first,
            batch_size=batch_size,
            rounding=rounding,
            threads=referee.threads,
        )
        self._features: F64 = np.empty((0, referee.net.dim))
        self._side: tuple[int, FrechetSide] | None = None
        self._batches: list[Batch] = []

    @property
    def seconds(self) -> float:
        """Wall time of sampling and extracting, as it was when each batch was drawn."""
        return sum(batch.seconds for batch in self._batches)

    @property
    def latency_ms(self) -> float | None:
        """Median of one evaluation of a full batch; None where there was none."""
        calls = [call for batch in self._batches for call in batch.calls]
        return statistics.median(calls) * 1e3 if calls else None

    def grow(self, n: int) -> None:
        """Draw what is missing to n images, and extract features as long as all images are finite.

        Raises:
            UsageError: a batch size below 1.
        """
        if n <= len(self.images):
            return
        size = self._batch_size
        check_batch_size(size)
        self._batches = [batch for batch in self._batches if len(batch.images) == size]
        have = size * len(self._batches)
        for begin in range(have, n, size):
            stop = min(begin + size, n)
            batch = None
            if self._cache is not None:
                batch = self._cache.load(self._key, begin, stop, self._referee.net.dim)
            if batch is None:
                batch = self._draw(begin, stop, min(size, n))
                if self._cache is not None:
                    self._cache.store(self._key, begin, batch)
            self._batches.append(batch)
            if self._progress is not None:
                steps = self._plan.steps
                self._progress(self.model.name, (stop - have) * steps, (n - have) * steps)
        self.images = np.concatenate([batch.images for batch in self._batches])
        features = [batch.features for batch in self._batches]
        known = [found for found in features if found is not None]
        self.finite = len(known) == len(features)
        if self.finite:
            self._features = np.concatenate(known)
        self._side = None

    def features(self, n: int) -> F64 | None:
        """Of the first n images, f64 [n, d]; None where not all images are finite."""
        return self._features[:n] if self.finite else None

    def side(self, n: int) -> FrechetSide:
        """Of the first n images, whose features are finite; the last one is kept."""
        if self._side is None or self._side[0] != n:
            self._side = n, frechet_side(self._features[:n], self._referee.reference)
        return self._side[1]

    def _draw(self, begin: int, stop: int, full: int) -> Batch:
        start = time.perf_counter()
        timed = _Timed(self.model.runtime, full)
        images = sample(
            timed,
            self.model.process,
            self._plan,
            range(self._first + begin, self._first + stop),
            self.model.image_shape,
            classes=self.model.classes,
            batch_size=self._batch_size,
        )
        features = None
        if np.isfinite(images).all():
            features = self._referee.extract(images, rounding=self._rounding)
        return Batch(images, features, time.perf_counter() - start, np.array(timed.seconds, np.float64))
