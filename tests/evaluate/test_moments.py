from __future__ import annotations

import numpy as np
import pytest

from flatq.errors import DataError
from flatq.evaluate.moments import (
    Moments,
    as_rows,
    moments_of,
    normal_quantile,
    reference_from_features,
    reference_from_moments,
    standard_error_of_mean,
)


def test_moments_agree_with_numpy_and_come_from_float32() -> None:
    x = np.random.default_rng(0).normal(size=(30, 5)).astype(np.float32)
    moments = moments_of(x)
    assert moments.mean.dtype == moments.cov.dtype == np.float64
    np.testing.assert_allclose(moments.mean, x.astype(np.float64).mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(moments.cov, np.cov(x.astype(np.float64).T), rtol=1e-12)
    assert (moments.n, moments.dim) == (30, 5)


def test_root_squares_to_the_covariance_and_is_read_only() -> None:
    x = np.random.default_rng(1).normal(size=(100, 6)) @ np.diag([0.3, 0.5, 1, 2, 5, 30])
    reference = reference_from_features(x)
    np.testing.assert_allclose(reference.root @ reference.root, reference.cov, atol=1e-12 * 900)
    assert reference.rank == 6
    assert (
        reference_from_features(x * [1e-3, 1, 1, 1, 1, 1]).rank == 5
    )  # lost in the rounding of R^(1/2) S R^(1/2)
    with pytest.raises(ValueError, match="read-only"):
        reference.root[0, 0] = 1.0


def test_dead_features_lower_the_rank() -> None:
    x = np.random.default_rng(2).normal(size=(100, 6))
    x[:, 2] = 0.5
    assert reference_from_features(x).rank == 5


@pytest.mark.parametrize("bad", [np.zeros(3), np.zeros((1, 3)), np.zeros((3, 0)), [[np.nan, 1], [0, 1]]])
def test_bad_features(bad: object) -> None:
    with pytest.raises(DataError):
        as_rows(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "cov",
    [
        np.eye(3),
        np.zeros((2, 2)),
        np.diag([1.0, -1.0]),
        np.array([[1.0, 0.5], [0.0, 1.0]]),
        np.full((2, 2), np.inf),
    ],
)
def test_bad_reference(cov: np.ndarray) -> None:
    with pytest.raises(DataError):
        reference_from_moments(Moments(n=10, mean=np.zeros(2), cov=cov))


def test_standard_error() -> None:
    values = np.random.default_rng(4).normal(size=40)
    assert standard_error_of_mean(values) == pytest.approx(values.std(ddof=1) / np.sqrt(40), rel=1e-12)
    assert normal_quantile(0.95) == pytest.approx(1.959964, abs=1e-6)
