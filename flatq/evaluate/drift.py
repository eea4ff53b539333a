"""The paired FID drift of a quantized model, with bias correction and confidence interval.

Closed form, no bootstrap; `kid_drift` and `KidDrift` are offered here too, from `flatq.evaluate.kid`. What
a drift means for a tolerance is decided in `flatq.evaluate.gate`.

Source: the delta method on the derivative in Rippl, Munk, Sturm 2016 (arXiv 1507.04090); the bias of the
FID in Chong, Forsyth 2020 (arXiv 1911.07023).
"""

from __future__ import annotations

from dataclasses import dataclass

from numpy.typing import ArrayLike

from flatq.evaluate.contrast import weigh
from flatq.evaluate.frechet import FrechetSide, frechet_distance, frechet_side
from flatq.evaluate.kid import KidDrift, kid_drift
from flatq.evaluate.moments import (
    Reference,
    as_rows,
    check_pairs,
    check_relative_tolerance,
    cluster_index,
    same_rows,
)

__all__ = ["Drift", "KidDrift", "fid_drift", "kid_drift"]


@dataclass(frozen=True)
class Drift:
    """FID(q) - (1 + tau) FID(x) against a fixed reference; tau = relative_tolerance, 0 where it is None.

    raw: the plug-in value, from the published kind of FID (fid_float, fid_quantized). corrected: raw -
    bias_correction; [low, high] = corrected -+ half_width. These five and standard_error are None where no
    interval exists, and reason then says why (raw stays). rank: of the side with the lower rank;
    n_over_rank: n (less where clusters make samples alike) over the largest rank of x, q and reference.
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
    clusters: ArrayLike | None = None,
    relative_tolerance: float | None = None,
    *,
    sides: tuple[FrechetSide, FrechetSide] | None = None,
) -> Drift:
    """Drift of features x (float model) and q (quantized), both [n, d], row i from the same noise.

    Standard error std(IF_q(q_i) - (1 + tau) IF_x(x_i)) / sqrt(n), summed per cluster first where clusters
    (labels [n]) are given. Bias b_q - (1 + tau) b_x. Identical features: 0 with [0, 0], at any n (with a
    relative tolerance too: the excess over it is then at most 0). No interval where n <= d,
    n < 2.5 rank, or the rank of a side is below the reference's.

    Args:
        sides: `frechet_side` of x and of q with the same reference and clusters, where the caller has them.

    Raises:
        DataError: bad features, shapes or dimensions that differ, confidence outside (0, 1), a tolerance
            that is negative or not finite, or bad labels.
    """
    xs, qs = as_rows(x, name="float features"), as_rows(q, name="quantized features")
    check_pairs(xs, qs, confidence)
    n, d = xs.shape
    if clusters is not None:
        cluster_index(clusters, n)  # labels that do not fit are refused for identical features too
    factor = 1.0 + check_relative_tolerance(relative_tolerance)

    if same_rows(xs, qs):
        fid = sides[0].distance if sides is not None else frechet_distance(xs, reference)
        rank = min(reference.rank, n - 1)
        return Drift(
            fid_float=fid,
            fid_quantized=fid,
            raw=0.0,
            bias_correction=0.0,
            corrected=0.0,
            standard_error=0.0,
            half_width=0.0,
            low=0.0,
            high=0.0,
            confidence=confidence,
            n=n,
            dim=d,
            rank=rank,
            reference_rank=reference.rank,
            n_over_rank=n / reference.rank,
            identical=True,
            reason=None,
            settles=True,
            relative_tolerance=relative_tolerance,
            bias_float=0.0,
            bias_quantized=0.0,
        )

    if sides is None:
        sides = frechet_side(xs, reference, clusters), frechet_side(qs, reference, clusters)
    side_x, side_q = sides
    weights = {"float": -factor, "quantized": 1.0}
    found, settles = weigh({"float": side_x, "quantized": side_q}, weights, reference, confidence, clusters)
    return Drift(
        fid_float=side_x.distance,
        fid_quantized=side_q.distance,
        raw=found.raw,
        bias_correction=found.bias_correction,
        corrected=found.corrected,
        standard_error=found.standard_error,
        half_width=found.half_width,
        low=found.low,
        high=found.high,
        confidence=confidence,
        n=n,
        dim=d,
        rank=min(side_x.rank, side_q.rank),
        reference_rank=reference.rank,
        n_over_rank=found.n_over_rank,
        identical=False,
        reason=found.reason,
        settles=settles,
        relative_tolerance=relative_tolerance,
        bias_float=None if found.reason is not None else side_x.bias,
        bias_quantized=None if found.reason is not None else side_q.bias,
    )
