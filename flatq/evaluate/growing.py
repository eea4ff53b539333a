"""A model's samples and their features, which may grow: drawn batch by batch, by index, so that more images
never redraw a batch that is there, in memory or in the cache.

What is compared with what is `flatq.evaluate.compare`'s; opening models, `flatq.models`'.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import numpy as np

from flatq.evaluate.compare import Referee, Rounding
from flatq.evaluate.drawing import Drawing
from flatq.evaluate.frechet import FrechetSide, frechet_side
from flatq.evaluate.moments import F64
from flatq.evaluate.samples import Batch, SampleCache
from flatq.evaluate.team import Team
from flatq.models import Model
from flatq.sampler import SamplePlan, check_batch_size

__all__ = ["Growing"]

Progress = Callable[[str, int, int], None]


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
        team: Team | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Args:
        cache: where batches are kept, and looked for first; a team needs one.
        team: other processes that draw a part of them.
        progress: called with (name of the model, images times steps done, total).
        """
        self.model, self.identity = model, model.runtime.identity
        self.images = np.empty((0, *model.image_shape), np.float32)
        self.finite = True
        self._referee, self._progress = referee, progress
        self._cache, self._team = cache, team
        self._drawing = Drawing(model, referee.net, plan, first, batch_size, rounding, referee.threads)
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
        size = self._drawing.batch_size
        check_batch_size(size)
        self._batches = [batch for batch in self._batches if len(batch.images) == size]
        have = size * len(self._batches)
        ranges = [(begin, min(begin + size, n)) for begin in range(have, n, size)]
        others = self._shared(ranges, min(size, n))
        for begin, stop in ranges:
            batch = others.get(begin)
            if batch is None and self._cache is not None:
                batch = self._cache.load(self._drawing.key, begin, stop, self._referee.net.dim)
            if batch is None:
                batch = self._drawing.draw(begin, stop, min(size, n))
                if self._cache is not None:
                    self._cache.store(self._drawing.key, begin, batch)
            self._batches.append(batch)
            self._report(stop - have, n - have)
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

    def _shared(self, ranges: Sequence[tuple[int, int]], full: int) -> dict[int, Batch]:
        """Those that nobody has yet, drawn by the team; by their begin."""
        if self._team is None:
            return {}
        assert self._cache is not None
        key, sizes = self._drawing.key, [stop - begin for begin, stop in ranges]
        missing = [span for span in ranges if not self._cache.path(key, *span).exists()]
        there = sum(sizes) - sum(stop - begin for begin, stop in missing)

        def advance(batches: int) -> None:
            self._report(there + sum(stop - begin for begin, stop in missing[:batches]), sum(sizes))

        return self._team.draw(self._drawing, self._cache, missing, full, advance) if missing else {}

    def _report(self, done: int, total: int) -> None:
        if self._progress is not None:
            evaluations = self._drawing.plan.evaluations
            self._progress(self.model.name, done * evaluations, total * evaluations)
