from __future__ import annotations

import numpy as np
import pytest

from flatq.errors import DataError
from flatq.evaluate.frechet import frechet_distance, frechet_side, population_root_sum
from flatq.evaluate.moments import (
    Moments,
    Reference,
    moments_of,
    reference_from_features,
    reference_from_moments,
)


def _skewed(seed: int, n: int, d: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x: np.ndarray = np.maximum(rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) / np.sqrt(d) + 0.3, -0.5)
    return x


@pytest.fixture(scope="module")
def reference() -> Reference:
    return reference_from_features(_skewed(0, 400, 8))


def test_against_sqrtm(reference: Reference) -> None:
    linalg = pytest.importorskip("scipy.linalg")
    x = _skewed(1, 60, 8)
    s = np.cov(x.T)
    root = linalg.sqrtm(s @ reference.cov).real  # the unsymmetric form of pytorch-fid
    expected = ((x.mean(0) - reference.mean) ** 2).sum() + np.trace(s + reference.cov - 2 * root)
    assert frechet_distance(x, reference) == pytest.approx(expected, rel=1e-10)
    assert frechet_distance(moments_of(x), reference) == frechet_distance(x, reference)


@pytest.mark.parametrize("n", [2, 5, 8, 9])
def test_few_samples(reference: Reference, n: int) -> None:
    """The distance from n x n matrices is that from d x d ones."""
    x = _skewed(1, n, 8)
    side = frechet_side(x, reference)
    assert side.distance == pytest.approx(frechet_distance(moments_of(x), reference), rel=1e-10)
    values = np.linalg.eigvals(np.cov(x.T) @ reference.cov).real
    assert side.rank == (values > 1e-10 * values.max()).sum() == min(n - 1, 8)


def test_equal_covariances_leave_the_means(reference: Reference) -> None:
    shift = np.linspace(-1, 2, 8)
    moments = Moments(n=100, mean=reference.mean + shift, cov=reference.cov)
    assert frechet_distance(moments, reference) == pytest.approx(shift @ shift, rel=1e-12)
    same = Moments(n=100, mean=reference.mean, cov=reference.cov)
    assert abs(frechet_distance(same, reference)) < 1e-12 * np.trace(reference.cov) * 8


def test_commuting_covariances_in_closed_form() -> None:
    a, b = np.array([1.0, 4.0, 9.0]), np.array([4.0, 4.0, 0.25])
    reference = reference_from_moments(Moments(n=100, mean=np.zeros(3), cov=np.diag(b)))
    got = frechet_distance(Moments(n=50, mean=np.ones(3), cov=np.diag(a)), reference)
    assert got == pytest.approx(3 + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum(), rel=1e-13)


@pytest.mark.parametrize("n", [30, 200])
def test_influence_is_the_derivative(reference: Reference, n: int) -> None:
    x = _skewed(2, n, 8)
    moments, values = moments_of(x), frechet_side(x, reference).influence
    assert values is not None
    derivatives = np.empty(n)
    h = 1e-3 / (n - 1)  # the mixture (1 - t) P + t delta_x: a step relative to the covariance's least part
    for i, row in enumerate(x - moments.mean):
        step = np.outer(row, row) - moments.cov

        def distance(t: float, row: np.ndarray = row, step: np.ndarray = step) -> float:
            return frechet_distance(Moments(n, moments.mean + t * row, moments.cov + t * step), reference)

        # five points, error O(h^4)
        derivatives[i] = (8 * (distance(h) - distance(-h)) - distance(2 * h) + distance(-2 * h)) / (12 * h)
    derivatives -= derivatives.mean()
    np.testing.assert_allclose(values, derivatives, rtol=0, atol=1e-8 * np.abs(values).max())
    assert abs(values.mean()) < 1e-14 * np.abs(values).max() * n


def test_influence_of_dead_features(reference: Reference) -> None:
    x, r = _skewed(2, 50, 8), _skewed(0, 400, 8)
    pad = ((0, 0), (0, 2))
    dead = frechet_side(np.pad(x, pad), reference_from_features(np.pad(r, pad))).influence
    alive = frechet_side(x, reference).influence
    assert dead is not None
    assert alive is not None
    np.testing.assert_allclose(dead, alive, rtol=0, atol=1e-11 * np.abs(dead).max())


def test_no_gradient(reference: Reference) -> None:
    for x in (_skewed(3, 8, 8), np.zeros((50, 8)), _skewed(3, 50, 8) * [1, 1, 1, 1, 1, 1, 1, 0]):
        side = frechet_side(x, reference)
        assert side.influence is None
        assert side.bias is None
        assert np.isfinite(side.distance)


def test_b2_against_the_plain_double_sum(reference: Reference) -> None:
    x = _skewed(4, 40, 8)
    n, side = len(x), frechet_side(x, reference)
    m = reference.root @ np.cov(x.T) @ reference.root
    values, u = np.linalg.eigh(m)
    s, y = np.sqrt(values), (x - x.mean(0)) @ reference.root @ u
    b2 = gauss = np.trace(np.cov(x.T))
    for i in range(8):
        for j in range(8):
            b2 += 0.5 * np.var(y[:, i] * y[:, j]) / (s[i] * s[j] * (s[i] + s[j]))
            gauss += 0.5 * (1 + (i == j)) * s[i] * s[j] / (s[i] + s[j])
    assert side.b2 == pytest.approx(b2 / n, rel=1e-9)
    assert side.b2_gauss == pytest.approx(gauss / n, rel=1e-9)
    assert side.b2 is not None
    assert side.b_rmt is not None
    assert side.b2_gauss is not None
    assert side.bias == pytest.approx(side.b_rmt + side.b2 - side.b2_gauss, rel=1e-12)


def test_bias_over_replicates(reference: Reference) -> None:
    population = reference_from_features(_skewed(5, 4000, 8))
    values, vectors = np.linalg.eigh(population.cov)
    root = (vectors * np.sqrt(values)) @ vectors.T
    truth = frechet_distance(Moments(9, population.mean, population.cov), reference)
    rng = np.random.default_rng(6)
    plug_in, corrected = [], []
    for _ in range(400):
        side = frechet_side(population.mean + rng.normal(size=(24, 8)) @ root, reference)
        assert side.bias is not None
        plug_in.append(side.distance - truth)
        corrected.append(side.distance - side.bias - truth)
    noise = np.std(corrected) / 20
    assert np.mean(plug_in) > 10 * noise  # the bias is there at n = 3 d
    assert abs(np.mean(corrected)) < 0.05 * np.mean(plug_in) + 3 * noise


@pytest.mark.parametrize(("n", "spread"), [(55, 1.5), (100, 1.5), (500, 1.5), (100, 5.0)])
def test_population_root_sum(n: int, spread: float) -> None:
    rng = np.random.default_rng(8)
    population = np.exp(spread * rng.normal(size=50))
    truth, plug_in, estimate = np.sqrt(population).sum(), [], []
    for _ in range(60):
        x = rng.normal(size=(n, 50)) * np.sqrt(population)
        values = np.linalg.eigvalsh(np.cov(x.T))
        plug_in.append(np.sqrt(values).sum() - truth)
        estimate.append(population_root_sum(values, n) - truth)
        assert population_root_sum(values, n, 400) == pytest.approx(population_root_sum(values, n), rel=1e-6)
    noise = np.std(estimate) / np.sqrt(60)
    assert abs(np.mean(estimate)) < 3 * noise + 0.05 * abs(np.mean(plug_in))


def test_population_root_sum_scales_and_refuses() -> None:
    values = np.linspace(1, 9, 10)
    assert population_root_sum(values * 1e-12, 30) == pytest.approx(1e-6 * population_root_sum(values, 30))
    assert population_root_sum([], 30) == 0.0
    for bad, n in ((values, 11), (values - 1, 30), (values * np.nan, 30)):
        with pytest.raises(DataError, match="cannot be estimated"):
            population_root_sum(bad, n)
