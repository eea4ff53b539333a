"""A model's samples: drawn batch by batch, kept on disk as uint8, with their features in memory.

A sample depends on its index alone, so a set may grow, a batch that is kept is never drawn again, and another
gate, metric or feature network samples nothing again. Memory does not grow with the size of an image.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flatq.errors import DataError
from flatq.evaluate.cache import Cache
from flatq.evaluate.compare import FeatureSet
from flatq.evaluate.extractor import Extractor
from flatq.evaluate.moments import F64, Rows
from flatq.evaluate.reference import MeasuredReference
from flatq.images import Rounding, to_uint8
from flatq.launch import Processes
from flatq.models import Model
from flatq.noise import NOISE_VERSION
from flatq.runtime.base import Condition
from flatq.runtime.cpu import instruction_set
from flatq.sampler import sample
from flatq.sampling_settings import SamplingSettings
from flatq.version import __version__

__all__ = ["SampleSet", "Sampling", "sample_key"]

_VERSION = 3
_RESOLVED = {"path", "runtime", "weights"}
"""Fields of an `Opening` that the key holds as they turned out: the model's digest, its runtime's identity
with every default filled in, and its weights."""

Span = tuple[int, int]
U8 = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Sampling:
    """How an evaluation draws images, keeps them and turns them into features.

    Attributes:
        settings: the steps and the noise of an image.
        first: index of the first image.
        batch_size: images at a time; kernels may sum in another order for another one.
        rounding: of samples to uint8, as `to_uint8`.
        extractor: the feature network.
        cache: where samples and features lie.
        processes: that draw batches round-robin.
        progress: called with (name of the model, images times steps done, total).
    """

    settings: SamplingSettings
    first: int
    batch_size: int
    rounding: Rounding
    extractor: Extractor
    cache: Cache
    processes: Processes = field(default_factory=Processes)
    progress: Callable[[str, int, int], None] = lambda *_: None


@dataclass(frozen=True, eq=False)
class _Batch:
    """images uint8 [k, C, H, W]; not_finite: how many of them were not finite, which are mid-grey; features
    [k, d]. seconds: wall time of sampling, and of extracting. calls: seconds of each evaluation of the
    network, where the batch was a full one."""

    images: U8
    not_finite: int
    calls: F64
    features: Rows
    seconds: tuple[float, float]


@dataclass(frozen=True, eq=False)
class _Kept:
    """What a set keeps in memory of a batch."""

    stop: int
    not_finite: int
    calls: F64
    seconds: float


class SampleSet:
    """The first n samples of one model, n growing; the model's runtime has to be open to grow.

    At n images they are those of any other growth to n: only a last batch that is not full is drawn again.
    With several processes all of them grow it together, and the first one holds it.

    Attributes:
        n: number of images so far.
        not_finite: number of images with a value that is not finite; these are mid-grey, 0 in [-1, 1].
        identity: of the runtime.
    """

    def __init__(self, model: Model, sampling: Sampling) -> None:
        """Raises:
        DataError: a process would draw other samples than the first one.
        """
        self.model, self.identity = model, model.runtime.identity
        self.n, self.not_finite = 0, 0
        self._sampling = sampling
        self._key = sample_key(model, sampling)
        extractor = sampling.extractor
        self._feature_key = {**self._key, "extractor": extractor.digest, "extracted": extractor.identity}
        self._features: Rows = np.empty((0, extractor.dim), np.float32)
        self._batches: list[_Kept] = []
        self._side: FeatureSet | None = None
        sampling.processes.each(self._check_key)

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
        """Draw what is missing to n images, and extract their features.

        Raises:
            DataError: the cache cannot be written, or features as `Extractor.extract`.
            FlatqError: that of the process that failed first in the order of the ranks.
        """
        if n <= self.n:
            return
        size, processes = self._sampling.batch_size, self._sampling.processes
        have = self.n // size * size
        spans = [(begin, min(begin + size, n)) for begin in range(have, n, size)]
        found: dict[Span, tuple[_Kept, Rows]] = {}
        done = 0

        def keep(span: Span, batch: _Batch) -> None:
            nonlocal done
            kept = _Kept(span[1], batch.not_finite, batch.calls, sum(batch.seconds))
            found[span] = kept, batch.features
            done += span[1] - span[0]
            steps = self._sampling.settings.evaluations
            self._sampling.progress(self.model.name, done * steps, (n - have) * steps)

        def look_up() -> list[Span]:
            missing = []
            for span in spans if processes.main else ():
                batch = self._load(span)
                if batch is None:
                    missing.append(span)
                else:
                    keep(span, batch)
            return missing

        missing = processes.agree(processes.each(look_up))
        for start in range(0, len(missing), processes.count):
            turn = missing[start : start + processes.count]
            for span, batch in zip(turn, self._draw_together(turn, min(size, n)), strict=True):
                keep(span, batch)
        self._batches = self._batches[: have // size] + [found[span][0] for span in spans if span in found]
        self.n = n
        self.not_finite = processes.agree(sum(batch.not_finite for batch in self._batches))
        if processes.main:
            self._features = np.concatenate([self._features[:have], *(found[span][1] for span in spans)])

    def images(self, rows: NDArray[np.integer[Any]]) -> U8:
        """The images of these rows, uint8 [k, C, H, W]."""
        pixels = np.empty((len(rows), *self.model.image_shape), np.uint8)
        batches = rows // self._sampling.batch_size
        for number in np.unique(batches):
            begin, at = int(number) * self._sampling.batch_size, batches == number
            arrays = self._arrays((begin, self._batches[number].stop))
            if arrays is None:
                raise DataError(
                    f"samples of {self.model.name} have gone from the cache {self._sampling.cache.folder}",
                    next_step="evaluate again, and leave the cache alone meanwhile",
                )
            pixels[at] = arrays["images"][rows[at] - begin]
        return pixels

    def features(self, n: int, reference: MeasuredReference) -> FeatureSet:
        """Of the first n images. That of the last n is kept."""
        if self._side is None or len(self._side.features) != n:
            self._side = FeatureSet(self._features[:n], reference)
        return self._side

    def _check_key(self) -> None:
        processes = self._sampling.processes
        own = {name: str(value) for name, value in self._feature_key.items()}
        first = processes.agree(own)
        differ = sorted(name for name, value in own.items() if first[name] != value)
        if differ:
            raise DataError(
                f"process {processes.rank} would draw other samples of {self.model.name} than the first one",
                expected="the same " + ", ".join(f"{name} {first[name]}" for name in differ),
                got=", ".join(f"{name} {own[name]}" for name in differ),
                next_step="run all processes on the same files, versions and kind of machine",
            )

    def _draw_together(self, turn: list[Span], full: int) -> list[_Batch]:
        """A batch of each process, drawn by it and kept by the first one."""
        processes = self._sampling.processes
        own = processes.each(
            lambda: self._draw(turn[processes.rank], full) if processes.rank < len(turn) else None
        )
        batches: list[_Batch] = processes.gather_objects(own)[: len(turn)]

        def store() -> None:
            for span, batch in zip(turn, batches, strict=True) if processes.main else ():
                self._store(span, batch)

        processes.each(store)
        return batches

    def _draw(self, span: Span, full: int) -> _Batch:
        """The images first + begin to first + stop - 1; the network's calls are timed if it holds `full`."""
        how, model = self._sampling, self.model
        start = time.perf_counter()
        calls: list[float] = []

        def timed(x: NDArray[np.float32], t: NDArray[np.int64], cond: Condition) -> NDArray[np.float32]:
            begin = time.perf_counter()
            output = model.runtime(x, t, cond)
            if len(x) == full:
                calls.append(time.perf_counter() - begin)
            return output

        samples = sample(
            timed,
            model.process,
            how.settings,
            range(how.first + span[0], how.first + span[1]),
            model.image_shape,
            classes=model.classes,
            batch_size=how.batch_size,
        )
        finite = np.asarray(np.isfinite(samples).all(axis=(1, 2, 3)), np.bool_)
        samples[~finite] = 0.0
        images = to_uint8(samples, how.rounding)
        seconds = time.perf_counter() - start
        features, extracting = self._extract(images)
        not_finite = int(np.count_nonzero(~finite))
        return _Batch(images, not_finite, np.array(calls), features, (seconds, extracting))

    def _extract(self, images: U8) -> tuple[Rows, float]:
        start = time.perf_counter()
        return self._sampling.extractor.extract(images), time.perf_counter() - start

    def _load(self, span: Span) -> _Batch | None:
        """From the cache; features that it lacks are extracted."""
        arrays = self._arrays(span)
        if arrays is None:
            return None
        images, seconds = arrays["images"], float(arrays["seconds"])
        kept = self._sampling.cache.load("features", self._feature_key, _part(span))
        if kept is not None:
            features, extracting = kept["features"], float(kept["seconds"])
        else:
            features, extracting = self._extract(images)
            self._store_features(span, features, extracting)
        return _Batch(images, int(arrays["not_finite"]), arrays["calls"], features, (seconds, extracting))

    def _arrays(self, span: Span) -> dict[str, NDArray[Any]] | None:
        return self._sampling.cache.load("samples", self._key, _part(span))

    def _store(self, span: Span, batch: _Batch) -> None:
        arrays: dict[str, ArrayLike] = {
            "images": batch.images,
            "not_finite": batch.not_finite,
            "calls": batch.calls,
            "seconds": batch.seconds[0],
        }
        self._sampling.cache.store("samples", self._key, arrays, _part(span))
        self._store_features(span, batch.features, batch.seconds[1])

    def _store_features(self, span: Span, features: Rows, seconds: float) -> None:
        arrays: dict[str, ArrayLike] = {"features": features, "seconds": seconds}
        self._sampling.cache.store("features", self._feature_key, arrays, _part(span))


def sample_key(model: Model, sampling: Sampling) -> dict[str, Any]:
    """Whatever changes a model's samples, in plain values.

    The batch size is among it, as kernels may sum in another order, and `first`, which the batches start at.
    Of the opening every field is, but for those that `_RESOLVED` names.
    """
    return {
        "version": _VERSION,
        "model": model.digest,
        "weights": model.weights,
        "precision": model.precision,
        "runtime": model.runtime.identity,
        "opening": {name: value for name, value in vars(model.opening).items() if name not in _RESOLVED},
        "machine": instruction_set(),
        "flatq": __version__,
        "numpy": np.__version__,
        "noise": NOISE_VERSION,
        "process": model.process.model_dump(mode="json"),
        "classes": None if model.classes is None else model.classes.model_dump(mode="json"),
        "shape": list(model.image_shape),
        "plan": sampling.settings.model_dump(mode="json"),
        "first": sampling.first,
        "batch_size": sampling.batch_size,
        "rounding": sampling.rounding,
    }


def _part(span: Span) -> str:
    return f"{span[0]}-{span[1]}"
