"""KID, the paired KID drift with its standard error, and the KID of a model from the float model.

KID and its drift need the reference's features, not only its moments; `kid_from_float` needs no reference.
All exist for any n >= 2. What follows from them is decided in `flatq.evaluate.gate`.

Source: Binkowski, Sutherland, Arbel, Gretton 2018 (arXiv 1801.01401): the unbiased MMD^2 with the kernel
k(x, y) = (x.y / d + 1)^3; Bounliphone et al. 2016 (arXiv 1511.04581) for variances of MMD differences;
Gretton et al. 2012 (JMLR 13) for the U-statistic of pairs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flatq.errors import DataError
from flatq.evaluate.moments import (
    F64,
    as_features,
    check_pairs,
    check_relative_tolerance,
    cluster_index,
    normal_quantile,
    standard_error_of_mean,
)

__all__ = ["KidDrift", "kid", "kid_drift", "kid_from_float", "kid_subsets"]

_BLOCK_ENTRIES = 4_000_000  # kernel entries held at a time: 32 MB, a few times over


@dataclass(frozen=True)
class KidDrift:
    """KID(q) - KID(x) against fixed reference features, from paired samples.

    Where against is "float" there were no reference features, and drift is the KID of q from the float
    samples x themselves: 0 for a model that gives the same distribution of images, whatever the data.
    drift, standard_error, half_width, low and high are in units of the squared MMD. spread_float is
    mean k(x_i, x_i) - mean_{i != j} k(x_i, x_j): the KID, averaged over i, of a model that repeats the one
    image i, measured against the float samples. variance_share is tr Cov(q) / tr Cov(x) (infinite where x is
    constant and q is not). On these two the gate calls a drift a collapse. With a relative_tolerance tau,
    drift is KID(q) - (1 + tau) KID(x), and such a KidDrift is not the gate's to judge a collapse by.
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
    relative_tolerance: float | None = None


def _kernel(a: F64, b: F64) -> F64:
    k: F64 = a @ b.T
    k /= a.shape[1]
    k += 1.0
    return k * k * k


def _row_sums(a: F64, b: F64) -> F64:
    """sum_j k(a_i, b_j) [len(a)], in blocks of rows."""
    rows = max(1, _BLOCK_ENTRIES // len(b))
    return np.concatenate([_kernel(a[i : i + rows], b).sum(axis=1) for i in range(0, len(a), rows)])


def _diagonal(a: F64, b: F64 | None = None) -> F64:
    """k(a_i, b_i) [n]; b is a where it is left out."""
    k: F64 = np.einsum("ij,ij->i", a, a if b is None else b) / a.shape[1] + 1.0
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
    relative_tolerance: float | None = None,
) -> KidDrift:
    """Paired KID drift of features x (float) and q (quantized), both [n, d], row i from the same noise.

    H_ij = k(q_i, q_j) - k(x_i, x_j), G_ij = k(q_i, r_j) - k(x_i, r_j);
    drift = mean_{i != j} H - 2 mean G; a_i = 2 (mean_{j != i} H_ij - mean_j G_ij), SE^2 = var(a) / n.
    With clusters (labels [n]) the pairs within a cluster are left out of H (as the pairs i = j are), and the
    a_i are summed within each cluster.
    Identical features give exactly 0 with the interval [0, 0]. At n = 2 or 3 the standard error is crude.
    With a relative tolerance tau the float model's terms count (1 + tau) times, and the reference's own term,
    which cancels else, is taken tau times; identical features give 0 then too (their excess is at most 0).

    Raises:
        DataError: bad features, shapes that differ, confidence outside (0, 1), fewer than 2 clusters, a
            tolerance that is negative or not finite.
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
    within_x = _means_of_others(xs, xs, index, count)
    spread_x = float(_diagonal(xs).mean() - within_x.mean())
    tau = check_relative_tolerance(relative_tolerance)
    if np.array_equal(xs, qs):
        return KidDrift(
            0.0, 0.0, 0.0, 0.0, 0.0, confidence, n, m, d, spread_x, 1.0, True, "reference", relative_tolerance
        )
    h = _means_of_others(qs, qs, index, count) - (1.0 + tau) * within_x
    g = (_row_sums(qs, r) - (1.0 + tau) * _row_sums(xs, r)) / m
    drift = float(h.mean() - 2.0 * g.mean())
    if tau > 0.0:
        drift -= tau * float((_row_sums(r, r).sum() - _diagonal(r).sum()) / (m * (m - 1)))
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
        variance_share=_variance_share(xs, qs),
        identical=False,
        relative_tolerance=relative_tolerance,
    )


def kid_from_float(
    x: ArrayLike, q: ArrayLike, confidence: float = 0.95, clusters: ArrayLike | None = None
) -> KidDrift:
    """KID of features q (quantized) from x (float), both [n, d], row i from the same noise; no reference.

    The U-statistic of the pairs z_i = (x_i, q_i), which need not be independent within themselves (Gretton
    et al. 2012, lemma 6): mean over i != j of h(z_i, z_j) = k(x_i, x_j) + k(q_i, q_j) - k(x_i, q_j)
    - k(q_i, x_j); a_i = 2 mean_{j != i} h(z_i, z_j), SE^2 = var(a) / n (crude where the KID is near 0).
    Clusters as `kid_drift`. Identical features give exactly 0 with the interval [0, 0].

    Raises:
        DataError: bad features, shapes that differ, confidence outside (0, 1), fewer than 2 clusters.
    """
    xs, qs = as_features(x, name="float features"), as_features(q, name="quantized features")
    check_pairs(xs, qs, confidence)
    n, d = xs.shape
    index, count = (np.arange(n), n) if clusters is None else cluster_index(clusters, n)
    if count < 2:
        raise DataError("All samples are in one cluster.", expected="at least 2 clusters", got=str(count))
    within_x = _means_of_others(xs, xs, index, count)
    spread_x = float(_diagonal(xs).mean() - within_x.mean())
    if np.array_equal(xs, qs):
        return KidDrift(0.0, 0.0, 0.0, 0.0, 0.0, confidence, n, n, d, spread_x, 1.0, True, "float")
    h = within_x + _means_of_others(qs, qs, index, count)
    h -= _means_of_others(xs, qs, index, count) + _means_of_others(qs, xs, index, count)
    value = float(h.mean())
    se = standard_error_of_mean(2.0 * h, clusters)
    half = normal_quantile(confidence) * se
    return KidDrift(
        drift=value,
        standard_error=se,
        half_width=half,
        low=value - half,
        high=value + half,
        confidence=confidence,
        n=n,
        n_reference=n,
        dim=d,
        spread_float=spread_x,
        variance_share=_variance_share(xs, qs),
        identical=False,
        against="float",
    )


def kid_subsets(
    features: ArrayLike,
    reference_features: ArrayLike,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 2020,
) -> tuple[float, float]:
    """Mean and standard deviation of the KID over random subsets: the published protocol.

    Each subset draws subset_size rows of both sides without replacement, from numpy's `RandomState(seed)`
    (frozen for ever), as torch-fidelity does with its defaults. The deviation (divided by the number of
    subsets) is that between subsets, no standard error of the mean. `kid` is the better estimate.

    Raises:
        DataError: bad features, different dimensions, no subsets, or subsets of fewer than 2 rows or of more
            than a side has.
    """
    x = as_features(features)
    r = as_features(reference_features, name="reference features")
    _same_dim(r, x)
    if subsets < 1 or not 2 <= subset_size <= min(len(x), len(r)):
        raise DataError(
            "The subsets of the KID do not fit the features.",
            expected=f"at least 1 subset of 2 to {min(len(x), len(r))} rows",
            got=f"{subsets} subsets of {subset_size}",
            next_step="take smaller subsets, or more samples",
        )
    rng = np.random.RandomState(seed)
    values = []
    for _ in range(subsets):
        rows = rng.choice(len(x), subset_size, replace=False)
        values.append(kid(x[rows], r[rng.choice(len(r), subset_size, replace=False)]))
    return float(np.mean(values)), float(np.std(values))


def _variance_share(x: F64, q: F64) -> float:
    """tr Cov(q) / tr Cov(x)."""
    of_x = float(x.var(axis=0).sum())
    return float(q.var(axis=0).sum()) / of_x if of_x > 0 else math.inf


def _means_of_others(a: F64, b: F64, index: NDArray[np.intp], count: int) -> F64:
    """mean_j k(a_i, b_j) [n] over the j of other clusters than i's; index [n] in 0 .. count - 1."""
    n = len(a)
    sums = _row_sums(a, b)
    if count == n:
        return (sums - _diagonal(a, b)) / (n - 1)
    sizes = np.bincount(index, minlength=count)
    order = np.argsort(index, kind="stable")
    for rows in np.split(order, np.cumsum(sizes)[:-1]):
        sums[rows] -= _row_sums(a[rows], b[rows])
    means: F64 = sums / (n - sizes[index])
    return means
