"""Drawing one batch of a model's samples, with features, and timing the network's calls on the way.

Which batches, `flatq.evaluate.growing` says; other processes draw some of them by `flatq.evaluate.team`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from flatq.evaluate.extractor import Extractor
from flatq.evaluate.samples import Batch, sample_key
from flatq.images import to_uint8
from flatq.models import Model
from flatq.runtime.base import UNCONDITIONED, Condition, Runtime
from flatq.sampler import SamplePlan, sample

__all__ = ["Drawing"]


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


@dataclass(frozen=True, eq=False)
class Drawing:
    """Whatever moves a model's images and their features: the model (its runtime open), the extractor, how
    images are drawn. first: index of the first image. threads: of the extractor."""

    model: Model
    net: Extractor
    plan: SamplePlan
    first: int
    batch_size: int
    rounding: Literal["round", "truncate"]
    threads: int

    @cached_property
    def key(self) -> dict[str, Any]:
        """As `flatq.evaluate.samples.sample_key`."""
        return sample_key(
            self.model,
            self.plan,
            self.net,
            first=self.first,
            batch_size=self.batch_size,
            rounding=self.rounding,
            threads=self.threads,
        )

    def draw(self, begin: int, stop: int, full: int) -> Batch:
        """The images first + begin to first + stop - 1, one batch; its calls are timed if it holds `full`."""
        start = time.perf_counter()
        timed = _Timed(self.model.runtime, full)
        images = sample(
            timed,
            self.model.process,
            self.plan,
            range(self.first + begin, self.first + stop),
            self.model.image_shape,
            classes=self.model.classes,
            batch_size=self.batch_size,
        )
        features = None
        if np.isfinite(images).all():
            features = self.net.extract(to_uint8(images, self.rounding), threads=self.threads)
        return Batch(images, features, time.perf_counter() - start, np.array(timed.seconds, np.float64))
