"""The paired FID drift of a quantized model, with bias correction and confidence interval, in closed form.

A drift is the contrast of two FIDs with the weights -1 and 1; the ladder's kernel error is one of four.

Source: the delta method on the derivative in Rippl, Munk, Sturm 2016 (arXiv 1507.04090); the bias of the
FID in Chong, Forsyth 2020 (arXiv 1911.07023).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from flatq.errors import DataError
from flatq.evaluate.frechet import FrechetSide, frechet_distance, frechet_side
from flatq.evaluate.moments import (
    F64,
    Reference,
    as_rows,
    check_confidence,
    check_pairs,
    normal_quantile,
    same_rows,
    standard_error_of_mean,
)

__all__ = [
    "FULL_RATIO",
    "MIN_RATIO",
    "MIN_SAMPLES",
    "Contrast",
    "Drift",
    "at_confidence",
    "beyond_relative_tolerance",
    "fid_contrast",
    "fid_drift",
    "interval_around",
]

MIN_RATIO = 2.5
"""Samples per feature rank under which there is no interval."""
FULL_RATIO = 10.0
"""Samples per feature rank from which on the bias is known well."""
MIN_SAMPLES = 20
"""Samples under which there is no interval: the normal quantile needs about that many."""


@dataclass(frozen=True)
class Contrast:
    """sum_k w_k FID_k. raw, bias_correction, corrected, standard_error, half_width, low, high, reason,
    n_over_rank: as in `Drift`. weights: w_k by the model's name."""

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


@dataclass(frozen=True)
class Drift:
    """FID(q) - (1 + tau) FID(x) against a fixed reference; tau = relative_tolerance, 0 where it is None.

    raw: the plug-in value, from the published kind of FID (fid_float, fid_quantized). corrected: raw -
    bias_correction; [low, high] = corrected -+ half_width. These five and standard_error are None where no
    interval exists, and reason then says why (raw stays). rank: of the side with the lower rank;
    n_over_rank: n over the largest rank of x, q and reference.
    settles: whether more samples can give an interval where there is none. bias_float, bias_quantized: b_x
    and b_q, of which bias_correction is made; None also in reports that are older than they.
    """

    fid_float: float
    fid_quantized: float
    raw: float
    bias_correction: float | None
    corrected: float | None
    standard_error: float | None
    half_width: float | None
    low: float | None
    high: float | None
    confidence: float
    n: int
    dim: int
    rank: int
    reference_rank: int
    n_over_rank: float
    identical: bool
    reason: str | None
    settles: bool
    relative_tolerance: float | None
    bias_float: float | None = None
    bias_quantized: float | None = None


def fid_drift(
    x: ArrayLike,
    q: ArrayLike,
    reference: Reference,
    confidence: float = 0.95,
    *,
    sides: tuple[FrechetSide, FrechetSide] | None = None,
) -> Drift:
    """Drift of features x (float model) and q (quantized), both [n, d], row i from the same noise.

    Standard error std(IF_q(q_i) - IF_x(x_i)) / sqrt(n), bias b_q - b_x. Identical features: 0 with [0, 0],
    at any n. No interval where n <= d, n < 20, n < 2.5 rank, or the rank of a side is below the reference's.

    Args:
        sides: `frechet_side` of x and of q with the same reference, where the caller has them.

    Raises:
        DataError: bad features, shapes or dimensions that differ, confidence outside (0, 1).
    """
    xs, qs = as_rows(x, name="float features"), as_rows(q, name="quantized features")
    check_pairs(xs, qs, confidence)
    n, d = xs.shape
    if same_rows(xs, qs):
        fid = sides[0].distance if sides is not None else frechet_distance(xs, reference)
        return Drift(
            fid_float=fid,
            fid_quantized=fid,
            raw=0.0,
            bias_correction=0.0,
            **interval_around(0.0, 0.0, confidence),
            confidence=confidence,
            n=n,
            dim=d,
            rank=min(reference.rank, n - 1),
            reference_rank=reference.rank,
            n_over_rank=n / reference.rank,
            identical=True,
            reason=None,
            settles=True,
            relative_tolerance=None,
            bias_float=0.0,
            bias_quantized=0.0,
        )
    if sides is None:
        sides = frechet_side(xs, reference), frechet_side(qs, reference)
    side_x, side_q = sides
    found, settles = _weigh(
        {"float": side_x, "quantized": side_q}, {"float": -1.0, "quantized": 1.0}, reference, confidence
    )
    return Drift(
        fid_float=side_x.distance,
        fid_quantized=side_q.distance,
        **found,
        dim=d,
        rank=min(side_x.rank, side_q.rank),
        reference_rank=reference.rank,
        identical=False,
        settles=settles,
        relative_tolerance=None,
        bias_float=None if found["reason"] is not None else side_x.bias,
        bias_quantized=None if found["reason"] is not None else side_q.bias,
    )


def fid_contrast(
    sides: Mapping[str, FrechetSide],
    weights: Mapping[str, float],
    reference: Reference,
    confidence: float = 0.95,
) -> Contrast:
    """The contrast of sides whose rows i are all from the same noise.

    Standard error std(sum_k w_k IF_k(i)) / sqrt(n); bias sum_k w_k b_k.

    Args:
        sides: `frechet_side` with this reference, by the model's name.
        weights: w_k of the models that count, by name; the other sides are left alone.
    """
    return Contrast(weights=dict(weights), **_weigh(sides, weights, reference, confidence)[0])


def at_confidence(drift: Drift, confidence: float) -> Drift:
    """The same drift with the interval of another confidence.

    Raises:
        DataError: confidence outside (0, 1).
    """
    check_confidence(confidence)
    if drift.corrected is None or drift.standard_error is None:
        return replace(drift, confidence=confidence)
    interval = interval_around(drift.corrected, drift.standard_error, confidence)
    return replace(drift, confidence=confidence, **interval)


def beyond_relative_tolerance(
    drift: Drift, tolerance: float, influence_float: F64 | None, influence_quantized: F64 | None
) -> Drift:
    """FID(q) - (1 + tolerance) FID(x) of the samples that gave `drift`; nothing is sampled again.

    Standard error std(IF_q(q_i) - (1 + tau) IF_x(x_i)) / sqrt(n), bias b_q - (1 + tau) b_x. For identical
    features it stays 0, as their excess over the tolerance is at most 0.

    Args:
        drift: without a relative tolerance.
        influence_float, influence_quantized: f64 [n], of the same samples, as the sidecar of a report keeps
            them; needed where there is an interval.

    Raises:
        DataError: a tolerance that is negative or not finite, influence values or biases that are not there.
    """
    if not 0.0 <= tolerance < np.inf:
        raise DataError("The relative tolerance is out of range.", expected=">= 0", got=f"{tolerance}")
    if drift.identical:
        return replace(drift, relative_tolerance=tolerance)
    factor = 1.0 + tolerance
    raw = drift.fid_quantized - factor * drift.fid_float
    if drift.corrected is None:
        return replace(drift, raw=raw, relative_tolerance=tolerance)
    if influence_float is None or influence_quantized is None:
        raise DataError(
            "A relative tolerance needs the influence values of the samples.",
            expected="the sidecar that `flatq eval` wrote beside the report",
            got="none",
            next_step="keep the report's folder together, or evaluate with --max-drift-rel",
        )
    if drift.bias_float is None or drift.bias_quantized is None:
        raise DataError(
            "A relative tolerance needs the bias of each side, which this report does not hold.",
            next_step="evaluate again; an older flatq wrote the report",
        )
    bias = drift.bias_quantized - factor * drift.bias_float
    se = standard_error_of_mean(influence_quantized - factor * influence_float)
    interval = interval_around(raw - bias, se, drift.confidence)
    return replace(drift, raw=raw, bias_correction=bias, relative_tolerance=tolerance, **interval)


def _weigh(
    sides: Mapping[str, FrechetSide],
    weights: Mapping[str, float],
    reference: Reference,
    confidence: float,
) -> tuple[dict[str, Any], bool]:
    """The fields that `Contrast` and `Drift` share, and whether more samples can give an interval."""
    used = {name: sides[name] for name in weights}
    n = next(iter(used.values())).n
    raw = float(sum(w * used[name].distance for name, w in weights.items()))
    reason, settles = _why_no_interval(used, reference)
    bias = None
    interval: dict[str, Any] = dict.fromkeys(("corrected", "standard_error", "half_width", "low", "high"))
    if reason is None:
        values: F64 = np.zeros(n)
        bias = 0.0
        for name, w in weights.items():
            side = used[name]
            assert side.influence is not None
            assert side.bias is not None
            values += w * side.influence
            bias += w * side.bias
        interval |= interval_around(raw - bias, standard_error_of_mean(values), confidence)
    found = {"raw": raw, "bias_correction": bias, **interval, "confidence": confidence}
    return found | {"n": n, "n_over_rank": n / _rank(used, reference), "reason": reason}, settles


def interval_around(corrected: float, standard_error: float, confidence: float) -> dict[str, Any]:
    """corrected -+ z SE. Nothing is added for what is not known of the bias: the standard error, which counts
    the noise of the gradient too, is too large rather than too small where that matters
    (`benchmarks/coverage.py`)."""
    half = normal_quantile(confidence) * standard_error
    return {
        "corrected": corrected,
        "standard_error": standard_error,
        "half_width": half,
        "low": corrected - half,
        "high": corrected + half,
    }


def _rank(sides: Mapping[str, FrechetSide], reference: Reference) -> int:
    return max(reference.rank, *(side.rank for side in sides.values()))


def _why_no_interval(sides: Mapping[str, FrechetSide], reference: Reference) -> tuple[str | None, bool]:
    """Why there is no interval (None where there is one), and whether more samples can change that."""
    first, rank = next(iter(sides.values())), _rank(sides, reference)
    n, d = first.n, first.dim
    if n <= d:
        return f"{n} samples are not more than the {d} feature dimensions", True
    for name, side in sides.items():
        if side.rank < reference.rank:
            return (
                f"the {name} model's features span {side.rank} directions, the reference's "
                f"{reference.rank}: features are missing, and the FID has no gradient there"
            ), False
    if n < MIN_SAMPLES:
        return f"{n} samples are fewer than {MIN_SAMPLES}", True
    if n / rank < MIN_RATIO:
        return f"{n} samples are {n / rank:.2f} per feature rank, under {MIN_RATIO} of {rank}", True
    return None, True
