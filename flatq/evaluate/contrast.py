"""Any weighted sum of several models' FIDs, with its interval: all from the same noise, one reference.

A drift is the contrast with the weights -1 and 1; the ladder's kernel error has four. The rules on when there
is an interval, and how wide it is, stand here for both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from flatq.errors import DataError
from flatq.evaluate.frechet import FrechetSide
from flatq.evaluate.moments import F64, Reference, cluster_index, normal_quantile, standard_error_of_mean

__all__ = [
    "FULL_RATIO",
    "MIN_CLUSTERS",
    "MIN_RATIO",
    "Contrast",
    "fid_contrast",
    "half_width",
    "weigh",
    "why_no_interval",
]

MIN_RATIO = 2.5
"""Samples per rank under which there is no interval."""
FULL_RATIO = 10.0
"""Samples per rank that a plan asks for: from there on the bias is known well."""
MIN_CLUSTERS = 20
"""Clusters under which there is no interval: the normal quantile needs about that many."""


@dataclass(frozen=True)
class Contrast:
    """sum_k w_k FID_k. raw, bias_correction, corrected, standard_error, half_width, low, high, reason,
    n_over_rank: as in `flatq.evaluate.drift.Drift`. weights: w_k by the model's name."""

    weights: dict[str, float]
    raw: float
    bias_correction: float | None
    corrected: float | None
    standard_error: float | None
    half_width: float | None
    low: float | None
    high: float | None
    confidence: float
    n: int
    n_over_rank: float
    reason: str | None


def fid_contrast(
    sides: Mapping[str, FrechetSide],
    weights: Mapping[str, float],
    reference: Reference,
    confidence: float = 0.95,
    clusters: ArrayLike | None = None,
) -> Contrast:
    """The contrast of sides whose rows i are all from the same noise.

    Standard error std(sum_k w_k IF_k(i)) / sqrt(n), summed per cluster first where clusters are given; bias
    sum_k w_k b_k.

    Args:
        sides: `frechet_side` with this reference and these clusters, by the model's name.
        weights: w_k of the models that count, by name; the other sides are left alone.

    Raises:
        DataError: a weight without a side, no weight, or sides of different numbers of samples.
    """
    return weigh(sides, weights, reference, confidence, clusters)[0]


def weigh(
    sides: Mapping[str, FrechetSide],
    weights: Mapping[str, float],
    reference: Reference,
    confidence: float,
    clusters: ArrayLike | None,
) -> tuple[Contrast, bool]:
    """`fid_contrast`, and whether more samples can give an interval where there is none."""
    missing = [name for name in weights if name not in sides]
    used = {name: sides[name] for name in weights if name in sides}
    if missing or not used or len({(side.n, side.dim) for side in used.values()}) > 1:
        raise DataError(
            "These models' samples make no contrast.",
            expected="a side for every weight, all of the same samples",
            got=", ".join(f"{name}: {side.n} x {side.dim}" for name, side in used.items()) or "no sides",
        )
    n = next(iter(used.values())).n
    count = n if clusters is None else cluster_index(clusters, n)[1]
    ratio = min(side.n_effective for side in used.values()) / max(
        reference.rank, *(side.rank for side in used.values())
    )
    raw = float(sum(w * used[name].distance for name, w in weights.items()))
    reason, settles = why_no_interval(used, reference, ratio, count)
    bias = corrected = se = half = None
    if reason is None:
        values: F64 = np.zeros(n)
        bias = 0.0
        for name, w in weights.items():
            side = used[name]
            assert side.influence is not None
            assert side.bias is not None
            values += w * side.influence
            bias += w * side.bias
        corrected = raw - bias
        se = standard_error_of_mean(values, clusters)
        half = half_width(se, confidence)
    found = Contrast(
        weights=dict(weights),
        raw=raw,
        bias_correction=bias,
        corrected=corrected,
        standard_error=se,
        half_width=half,
        low=None if corrected is None or half is None else corrected - half,
        high=None if corrected is None or half is None else corrected + half,
        confidence=confidence,
        n=n,
        n_over_rank=ratio,
        reason=reason,
    )
    return found, settles


def half_width(standard_error: float, confidence: float) -> float:
    """z SE. Nothing is added for what is not known of the bias: the standard error, which counts the noise of
    the gradient too, is too large rather than too small where that matters (`benchmarks/coverage.py`)."""
    return normal_quantile(confidence) * standard_error


def why_no_interval(
    sides: Mapping[str, FrechetSide], reference: Reference, ratio: float, clusters: int
) -> tuple[str | None, bool]:
    """Why there is no interval (None where there is one), and whether more samples can change that.

    Args:
        sides: of one number of samples, by the name of the model.
        ratio: samples per direction, of the side that has the fewest.
    """
    first = next(iter(sides.values()))
    n, d = first.n, first.dim
    rank = max(reference.rank, *(side.rank for side in sides.values()))
    if n <= d:
        return f"{n} samples are not more than the {d} feature dimensions", True
    for name, side in sides.items():
        if side.rank < reference.rank:
            return (
                f"the {name} model's features span {side.rank} directions, the reference's "
                f"{reference.rank}: features are missing, and the FID has no gradient there"
            ), False
    if clusters < MIN_CLUSTERS:
        return f"{clusters} clusters are fewer than {MIN_CLUSTERS}", True
    if ratio < MIN_RATIO:
        alike = "" if n == clusters else " (counted by what the clusters leave independent)"
        return f"{n} samples are {ratio:.2f} per direction{alike}, under {MIN_RATIO} of {rank}", True
    return None, True
