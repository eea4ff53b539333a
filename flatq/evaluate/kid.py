"""KID, and the paired KID drift with its standard error.

Needs the reference's features, not only its moments; exists for any n >= 2. What follows from it is
decided in `flatq.evaluate.gate`.

Source: Binkowski, Sutherland, Arbel, Gretton 2018 (arXiv 1801.01401): the unbiased MMD^2 with the kernel
k(x, y) = (x.y / d + 1)^3; Bounliphone et al. 2016 (arXiv 1511.04581) for variances of MMD differences.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flatq.errors import DataError
from flatq.evaluate.moments import (
    F64,
    as_features,
    check_pairs,
    cluster_index,
    normal_quantile,
    standard_error_of_mean,
)

__all__ = ["KidDrift", "kid", "kid_drift"]

_BLOCK_ENTRIES = 4_000_000  # kernel entries held at a time: 32 MB, a few times over


@dataclass(frozen=True)
class KidDrift:
    """KID(q) - KID(x) against fixed reference features, from paired samples.

    drift, standard_error, half_width, low and high are in units of the squared MMD. spread_float is
    mean k(x_i, x_i) - mean_{i != j} k(x_i, x_j): the KID, averaged over i, of a model that repeats the one
    image i, measured against the float samples. variance_share is tr Cov(q) / tr Cov(x) (infinite where x is
    constant and q is not). On these two the gate calls a drift a collapse.
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


def _kernel(a: F64, b: F64) -> F64:
    k: F64 = a @ b.T
    k /= a.shape[1]
    k += 1.0
    return k * k * k


def _row_sums(a: F64, b: F64) -> F64:
    """sum_j k(a_i, b_j) [len(a)], in blocks of rows."""
    rows = max(1, _BLOCK_ENTRIES // len(b))
    return np.concatenate([_kernel(a[i : i + rows], b).sum(axis=1) for i in range(0, len(a), rows)])


def _diagonal(a: F64) -> F64:
    k: F64 = np.einsum("ij,ij->i", a, a) / a.shape[1] + 1.0
    return k * k * k


def _same_dim(reference: F64, *others: F64) -> None:
    for other in others:
        if other.shape[1] != reference.shape[1]:
            raise DataError(
                "Features and reference features do not fit.",
                expected=f"{reference.shape[1]} dimensions",
                got=str(other.shape[1]),
                next_step="use the reference of the same feature extractor",
            )


def kid(features: ArrayLike, reference_features: ArrayLike) -> float:
    """Unbiased KID between features [n, d] and [m, d]; O((n + m)^2 d) time, bounded memory.

    Raises:
        DataError: bad features, or different dimensions.
    """
    x = as_features(features)
    r = as_features(reference_features, name="reference features")
    _same_dim(r, x)
    n, m = len(x), len(r)
    within_x = (_row_sums(x, x).sum() - _diagonal(x).sum()) / (n * (n - 1))
    within_r = (_row_sums(r, r).sum() - _diagonal(r).sum()) / (m * (m - 1))
    return float(within_x + within_r - 2.0 * _row_sums(x, r).sum() / (n * m))


def kid_drift(
    x: ArrayLike,
    q: ArrayLike,
    reference_features: ArrayLike,
    confidence: float = 0.95,
    clusters: ArrayLike | None = None,
) -> KidDrift:
    """Paired KID drift of features x (float) and q (quantized), both [n, d], row i from the same noise.

    H_ij = k(q_i, q_j) - k(x_i, x_j), G_ij = k(q_i, r_j) - k(x_i, r_j);
    drift = mean_{i != j} H - 2 mean G; a_i = 2 (mean_{j != i} H_ij - mean_j G_ij), SE^2 = var(a) / n.
    With clusters (labels [n]) the pairs within a cluster are left out of H (as the pairs i = j are), and the
    a_i are summed within each cluster.
    Identical features give exactly 0 with the interval [0, 0]. At n = 2 or 3 the standard error is crude.

    Raises:
        DataError: bad features, shapes that differ, confidence outside (0, 1), fewer than 2 clusters.
    """
    xs, qs = as_features(x, name="float features"), as_features(q, name="quantized features")
    r = as_features(reference_features, name="reference features")
    check_pairs(xs, qs, confidence)
    _same_dim(r, xs)
    n, d = xs.shape
    m = len(r)
    index, count = (np.arange(n), n) if clusters is None else cluster_index(clusters, n)
    if count < 2:
        raise DataError("All samples are in one cluster.", expected="at least 2 clusters", got=str(count))
    within_x = _within_means(xs, index, count)
    spread_x = float(_diagonal(xs).mean() - within_x.mean())
    if np.array_equal(xs, qs):
        return KidDrift(0.0, 0.0, 0.0, 0.0, 0.0, confidence, n, m, d, spread_x, 1.0, True)
    within_q = _within_means(qs, index, count)
    variance_x, variance_q = float(xs.var(axis=0).sum()), float(qs.var(axis=0).sum())
    h = within_q - within_x
    g = (_row_sums(qs, r) - _row_sums(xs, r)) / m
    drift = float(h.mean() - 2.0 * g.mean())
    se = standard_error_of_mean(2.0 * (h - g), clusters)
    half = normal_quantile(confidence) * se
    return KidDrift(
        drift=drift,
        standard_error=se,
        half_width=half,
        low=drift - half,
        high=drift + half,
        confidence=confidence,
        n=n,
        n_reference=m,
        dim=d,
        spread_float=spread_x,
        variance_share=variance_q / variance_x if variance_x > 0 else math.inf,
        identical=False,
    )


def _within_means(a: F64, index: NDArray[np.intp], count: int) -> F64:
    """mean_j k(a_i, a_j) [n] over the j of other clusters than i's; index [n] in 0 .. count - 1."""
    n = len(a)
    sums = _row_sums(a, a)
    if count == n:
        return (sums - _diagonal(a)) / (n - 1)
    sizes = np.bincount(index, minlength=count)
    order = np.argsort(index, kind="stable")
    for rows in np.split(order, np.cumsum(sizes)[:-1]):
        sums[rows] -= _row_sums(a[rows], a[rows])
    means: F64 = sums / (n - sizes[index])
    return means
