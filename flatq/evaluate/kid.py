"""The paired KID drift with its standard error, and the KID of a model from the float model.

The KID drift needs the reference's features, not only its moments; the KID from the float samples needs no
reference. Both exist for any n >= 2. What follows from them is decided in `flatq.evaluate.gate`.

Source: Binkowski, Sutherland, Arbel, Gretton 2018 (arXiv 1801.01401): the unbiased MMD^2 with the kernel
k(x, y) = (x.y / d + 1)^3; Bounliphone et al. 2016 (arXiv 1511.04581) for variances of MMD differences;
Gretton et al. 2012 (JMLR 13) for the U-statistic of pairs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from flatq.evaluate.moments import (
    F64,
    Rows,
    as_rows,
    check_pairs,
    normal_quantile,
    same_rows,
    standard_error_of_mean,
)

__all__ = ["KidDrift", "KidTerms", "kid_drift", "kid_terms"]

_BLOCK = 2048  # rows of a side at a time: 32 MB of kernel entries, a few times over


@dataclass(frozen=True)
class KidDrift:
    """KID(q) - KID(x) against fixed reference features, from paired samples.

    Where against is "float" there were no reference features, and drift is the KID of q from the float
    samples x themselves: 0 for a model that gives the same distribution of images, whatever the data.
    drift, standard_error, half_width, low and high are in units of the squared MMD. spread_float is
    mean k(x_i, x_i) - mean_{i != j} k(x_i, x_j): the KID, averaged over i, of a model that repeats the one
    image i, measured against the float samples. variance_share is tr Cov(q) / tr Cov(x) (infinite where x is
    constant and q is not). On these two the gate calls a drift a collapse. n: of the pairs that were taken,
    which may be fewer than the FID drift's.
    """

    drift: float
    standard_error: float
    half_width: float
    low: float
    high: float
    confidence: float
    n: int
    n_reference: int
    dim: int
    spread_float: float
    variance_share: float
    identical: bool
    against: Literal["reference", "float"] = "reference"


@dataclass(frozen=True, eq=False)
class KidTerms:
    """What a KID needs of one model's features [n, d] alone: within f64 [n], the mean of k(x_i, x_j) over
    j != i; across f64 [n], the mean of k(x_i, r_j) over the n_reference reference features, None without;
    own, the mean of k(x_i, x_i)."""

    features: Rows
    within: F64
    own: float
    across: F64 | None
    n_reference: int


def kid_terms(features: ArrayLike, reference_features: ArrayLike | None) -> KidTerms:
    """O((n + m) n d) time for m reference features, bounded memory.

    Raises:
        DataError: bad features, or different dimensions.
    """
    x = as_rows(features)
    n, across, m = len(x), None, len(x)
    if reference_features is not None:
        r = as_rows(reference_features, name="reference features")
        m = len(r)
        across = _row_sums(x, r) / m
    diagonal = _diagonal(x, x)
    within = (_row_sums(x, x) - diagonal) / (n - 1)
    return KidTerms(x, within, float(diagonal.mean()), across, m)


def kid_drift(
    x: ArrayLike | KidTerms,
    q: ArrayLike,
    reference_features: ArrayLike | None,
    confidence: float = 0.95,
) -> KidDrift:
    """Paired KID drift of features x (float) and q (quantized), both [n, d], row i from the same noise.

    With reference features r: H_ij = k(q_i, q_j) - k(x_i, x_j), G_ij = k(q_i, r_j) - k(x_i, r_j);
    drift = mean_{i != j} H - 2 mean G; a_i = 2 (mean_{j != i} H_ij - mean_j G_ij), SE^2 = var(a) / n.
    Without, the KID of q from x: the U-statistic of the pairs z_i = (x_i, q_i), which need not be independent
    within themselves (Gretton et al. 2012, lemma 6), mean over i != j of h(z_i, z_j) = k(x_i, x_j)
    + k(q_i, q_j) - k(x_i, q_j) - k(q_i, x_j); a_i = 2 mean_{j != i} h(z_i, z_j) (crude where the KID is near
    0). Identical features give exactly 0 with the interval [0, 0]. At n = 2 or 3 the standard error is crude.

    Args:
        x: features, or their `kid_terms` with the same reference features.

    Raises:
        DataError: bad features, shapes that differ, confidence outside (0, 1).
    """
    terms = x if isinstance(x, KidTerms) else kid_terms(x, reference_features)
    xs, qs = terms.features, as_rows(q, name="quantized features")
    check_pairs(xs, qs, confidence)
    identical = same_rows(xs, qs)
    drift = se = 0.0
    if not identical:
        other = kid_terms(qs, reference_features)
        if terms.across is not None and other.across is not None:
            h = other.within - terms.within
            values = h - (other.across - terms.across)
            drift = float(h.mean() - 2.0 * (other.across - terms.across).mean())
        else:
            n, pairs = len(xs), _diagonal(xs, qs)
            values = terms.within + other.within
            values -= (_row_sums(xs, qs) + _row_sums(qs, xs) - 2.0 * pairs) / (n - 1)
            drift = float(values.mean())
        se = standard_error_of_mean(2.0 * values)
    half = normal_quantile(confidence) * se
    return KidDrift(
        drift=drift,
        standard_error=se,
        half_width=half,
        low=drift - half,
        high=drift + half,
        confidence=confidence,
        n=len(xs),
        n_reference=terms.n_reference,
        dim=xs.shape[1],
        spread_float=terms.own - float(terms.within.mean()),
        variance_share=1.0 if identical else _variance_share(xs, qs),
        identical=identical,
        against="float" if terms.across is None else "reference",
    )


def _blocks(rows: Rows) -> list[Rows]:
    return [rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK)]


def _cube(products: F64, dim: int) -> F64:
    k = products / dim + 1.0
    return k * k * k


def _row_sums(a: Rows, b: Rows) -> F64:
    """sum_j k(a_i, b_j) [len(a)], block by block in float64."""
    sums = []
    for left in _blocks(a):
        x = left.astype(np.float64)
        sums.append(
            sum(_cube(x @ right.astype(np.float64).T, a.shape[1]).sum(axis=1) for right in _blocks(b))
        )
    return np.concatenate(sums)


def _diagonal(a: Rows, b: Rows) -> F64:
    """k(a_i, b_i) [n]."""
    return _cube(np.einsum("ij,ij->i", a, b, dtype=np.float64), a.shape[1])


def _variance_share(x: Rows, q: Rows) -> float:
    """tr Cov(q) / tr Cov(x)."""
    of_x = float(x.var(axis=0, dtype=np.float64).sum())
    return float(q.var(axis=0, dtype=np.float64).sum()) / of_x if of_x > 0 else math.inf
