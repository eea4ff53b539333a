"""The difference of two evaluations' drifts, image by image where they pair."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flatq.evaluate.drift import Drift, interval_around
from flatq.evaluate.moments import F64

__all__ = ["DriftDifference", "MeasuredDrift", "drift_difference"]


@dataclass(frozen=True, eq=False)
class MeasuredDrift:
    """A drift and what it rests on: indices i64 [n] of the images (each once), and values f64 [n], the
    influence of each on the drift, IF_q - IF_x. Both None where they were not kept."""

    drift: Drift
    indices: NDArray[np.int64] | None = None
    values: F64 | None = None


@dataclass(frozen=True)
class DriftDifference:
    """Drift of the new model - drift of the old one.

    corrected, standard_error, half_width, low, high, confidence: as in `flatq.evaluate.drift.Drift`; None
    with a reason. paired: whether the images that both share were told from one another; unpaired says why
    not. shared: how many those are. n: (old, new).
    """

    corrected: float | None
    standard_error: float | None
    half_width: float | None
    low: float | None
    high: float | None
    confidence: float
    n: tuple[int, int]
    paired: bool
    unpaired: str | None
    shared: int
    reason: str | None


def drift_difference(
    old: MeasuredDrift, new: MeasuredDrift, *, unpaired: str | None = None
) -> DriftDifference:
    """Difference of the corrected drifts, at the new drift's confidence.

    Paired: z_i = new_i / n_new - old_i / n_old over all images, a term that is missing counting 0, and
    SE^2 = sum z_i^2. So images of which only one evaluation knows count as independent, and those of both
    cancel as far as they agree. Unpaired: SE^2 = SE_new^2 + SE_old^2, which is far too wide where the models
    are alike.

    Args:
        unpaired: why the images of an index are not from the same noise; None where they are.
    """
    drifts = old.drift, new.drift
    n = old.drift.n, new.drift.n
    confidence = new.drift.confidence
    for name, drift in zip(("old", "new"), drifts, strict=True):
        if drift.corrected is None:
            reason = f"the {name} drift has no interval: {drift.reason}"
            return DriftDifference(None, None, None, None, None, confidence, n, False, unpaired, 0, reason)
    sides = [_images(side) for side in (old, new)]
    if unpaired is None and (sides[0] is None or sides[1] is None):
        unpaired = "the influence values of the images were not kept"
    a, b = sides
    shared = 0
    if unpaired is None and a is not None and b is not None:
        every = np.union1d(a[0], b[0])
        z = np.zeros(len(every))
        z[np.searchsorted(every, b[0])] += b[1] / n[1]
        z[np.searchsorted(every, a[0])] -= a[1] / n[0]
        shared = len(a[0]) + len(b[0]) - len(every)
        se = math.sqrt(float(z @ z) * len(every) / max(len(every) - 1, 1))
        if shared == 0:
            unpaired = "they share no image"
    else:
        se = math.hypot(old.drift.standard_error or 0.0, new.drift.standard_error or 0.0)
    value = (new.drift.corrected or 0.0) - (old.drift.corrected or 0.0)
    return DriftDifference(
        **interval_around(value, se, confidence),
        confidence=confidence,
        n=n,
        paired=unpaired is None,
        unpaired=unpaired,
        shared=shared,
        reason=None,
    )


def _images(side: MeasuredDrift) -> tuple[NDArray[np.int64], F64] | None:
    """Indices and values; for identical features, whose influence on the drift is 0, without being kept."""
    if side.indices is None:
        return None
    values = np.zeros(len(side.indices)) if side.drift.identical else side.values
    return None if values is None else (side.indices, values)
