"""The difference of two drifts: of two evaluations, image by image where they pair, or over training seeds.

`drift_difference` says how sure one is of these two models; `difference_over_seeds`, of the two ways to train
them, for which the unit is the training seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flatq.errors import DataError, MissingRuntimeError
from flatq.evaluate.contrast import half_width
from flatq.evaluate.drift import Drift
from flatq.evaluate.moments import F64

__all__ = ["DriftDifference", "Measured", "SeedDifference", "difference_over_seeds", "drift_difference"]


@dataclass(frozen=True, eq=False)
class Measured:
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


def drift_difference(old: Measured, new: Measured, *, unpaired: str | None = None) -> DriftDifference:
    """Difference of the corrected drifts, at the new drift's confidence.

    Paired: z_i = new_i / n_new - old_i / n_old over all images, a term that is missing counting 0, and
    SE^2 = sum z_i^2. So images of which only one evaluation knows count as independent, and those of both
    cancel as far as they agree. Unpaired: SE^2 = SE_new^2 + SE_old^2, which is far too wide where the models
    are alike.

    Args:
        unpaired: why the images of an index are not from the same noise; None where they are.

    Raises:
        DataError: a drift with a relative tolerance, or indices that do not fit their values.
    """
    for side in (old, new):
        if side.drift.relative_tolerance is not None:
            raise DataError(
                "Drifts beyond a relative tolerance are not compared.",
                next_step="compare them without the tolerance",
            )
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
    half = half_width(se, confidence)
    return DriftDifference(
        corrected=value,
        standard_error=se,
        half_width=half,
        low=value - half,
        high=value + half,
        confidence=confidence,
        n=n,
        paired=unpaired is None,
        unpaired=unpaired,
        shared=shared,
        reason=None,
    )


@dataclass(frozen=True)
class SeedDifference:
    """Mean difference of two drifts over training seeds, with the t interval of so few: low, high."""

    mean: float
    standard_error: float
    t: float
    low: float
    high: float
    confidence: float
    seeds: int


def difference_over_seeds(
    first: Sequence[Drift], second: Sequence[Drift], confidence: float = 0.95
) -> SeedDifference:
    """Second's drifts - first's, element k of both from the same training seed.

    The spread between seeds holds that of sampling too, so no standard error of a drift enters. With 3 seeds
    t is 4.3: take 5 or more where a seed is cheap.

    Raises:
        DataError: fewer than 2 seeds, lists that do not pair up, a drift without an interval.
        MissingRuntimeError: scipy, which the quantile of t comes from, is not installed.
    """
    count = len(first)
    if count < 2 or len(second) != count:
        raise DataError(
            "The drifts do not pair up by training seed.",
            expected="two lists of one length, of 2 seeds or more",
            got=f"{count} and {len(second)}",
        )
    if not 0.0 < confidence < 1.0:
        raise DataError("The confidence is out of range.", expected="0 < confidence < 1", got=f"{confidence}")
    differences = []
    for a, b in zip(first, second, strict=True):
        if a.corrected is None or b.corrected is None:
            raise DataError("A drift has no interval.", got=a.reason or b.reason)
        differences.append(b.corrected - a.corrected)
    try:
        from scipy.special import stdtrit
    except ImportError as error:
        raise MissingRuntimeError(
            "scipy is not installed", next_step='pip install "flatq[cpu]"', got=str(error)
        ) from error
    mean = float(np.mean(differences))
    se = float(np.std(differences, ddof=1)) / math.sqrt(count)
    t = float(stdtrit(count - 1, (1.0 + confidence) / 2.0))
    return SeedDifference(mean, se, t, mean - t * se, mean + t * se, confidence, count)


def _images(side: Measured) -> tuple[NDArray[np.int64], F64] | None:
    """Indices and values; for identical features, whose influence on the drift is 0, without being kept."""
    if side.indices is None:
        return None
    values = np.zeros(len(side.indices)) if side.drift.identical else side.values
    if values is None:
        return None
    images = len(np.unique(side.indices))
    if not values.shape == side.indices.shape == (side.drift.n,) or images != len(values):
        raise DataError(
            "The influence values do not fit their images.",
            expected=f"{side.drift.n} values, each of another image",
            got=f"{len(values)} values of {images} images",
        )
    return side.indices, values
