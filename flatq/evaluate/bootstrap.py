"""The interval of a drift by resampling: a slow check of the closed form, which no verdict rests on.

Source: the basic bootstrap (Davison, Hinkley 1997, section 5.2). Resampling repeats the bias of the plug-in
drift, so the percentiles of the resampled drifts are off by twice the bias; reflected about the plug-in drift
they are off by none of it, to first order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from flatq.errors import DataError
from flatq.evaluate.frechet import frechet_distance
from flatq.evaluate.moments import (
    F64,
    Reference,
    as_features,
    check_pairs,
    check_relative_tolerance,
    cluster_index,
)

__all__ = ["Bootstrap", "bootstrap_drift"]


@dataclass(frozen=True)
class Bootstrap:
    """raw: the plug-in drift. corrected = 2 raw - mean of the resampled drifts; standard_error: their
    deviation; [low, high]: their percentiles, reflected about raw."""

    raw: float
    corrected: float
    standard_error: float
    low: float
    high: float
    confidence: float
    replicates: int


def bootstrap_drift(
    x: ArrayLike,
    q: ArrayLike,
    reference: Reference,
    confidence: float = 0.95,
    clusters: ArrayLike | None = None,
    relative_tolerance: float | None = None,
    *,
    replicates: int = 200,
    seed: int = 0,
) -> Bootstrap:
    """The reflected bootstrap of the pairs (or, where labels [n] are given, of whole clusters).

    Each replicate costs two eigenproblems [d, d]. Trust it for n >= 10 d; below, the resampled rows are too
    few different ones.

    Raises:
        DataError: as `flatq.evaluate.drift.fid_drift`, or fewer than 20 replicates.
    """
    xs, qs = as_features(x, name="float features"), as_features(q, name="quantized features")
    check_pairs(xs, qs, confidence)
    factor = 1.0 + check_relative_tolerance(relative_tolerance)
    if replicates < 20:
        raise DataError("Too few replicates.", expected="at least 20", got=str(replicates))
    n = len(xs)
    index, count = (np.arange(n), n) if clusters is None else cluster_index(clusters, n)
    order = np.argsort(index, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(index, minlength=count))[:-1])

    def drift(a: F64, b: F64) -> float:
        return frechet_distance(b, reference) - factor * frechet_distance(a, reference)

    raw = drift(xs, qs)
    rng = np.random.default_rng(seed)
    drawn = np.empty(replicates)
    for k in range(replicates):
        rows = np.concatenate([members[g] for g in rng.integers(count, size=count)])
        drawn[k] = drift(xs[rows], qs[rows])
    tail = (1.0 - confidence) / 2.0
    lower, upper = np.quantile(drawn, [tail, 1.0 - tail])
    return Bootstrap(
        raw=raw,
        corrected=2.0 * raw - float(drawn.mean()),
        standard_error=float(drawn.std(ddof=1)),
        low=2.0 * raw - float(upper),
        high=2.0 * raw - float(lower),
        confidence=confidence,
        replicates=replicates,
    )
