from __future__ import annotations

import numpy as np
import pytest

from flatq.errors import DataError
from flatq.evaluate.drift import Drift, fid_drift
from flatq.evaluate.frechet import frechet_distance
from flatq.evaluate.moments import Moments, Reference, reference_from_features, reference_from_moments

D = 16
Pair = tuple[np.ndarray, np.ndarray]


class Gaussian:
    """x ~ N(mu, S) and q = x + shift + N(0, noise^2 S): the true drift is known in closed form."""

    def __init__(self, seed: int = 0, noise: float = 0.3, shift: float = 0.05, dim: int = D) -> None:
        rng = np.random.default_rng(seed)
        self.rng, self.noise, self.dim = rng, noise, dim
        self.shift = shift * rng.normal(size=dim)
        self.reference = reference_from_features(self._shape(rng, 2000))
        self.root = np.linalg.cholesky(np.cov(self._shape(rng, 2000).T))
        self.mean = self.reference.mean + 0.1
        s = self.root @ self.root.T
        self.fid_x = frechet_distance(Moments(9, self.mean, s), self.reference)
        self.fid_q = frechet_distance(Moments(9, self.mean + self.shift, s * (1 + noise**2)), self.reference)

    def _shape(self, rng: np.random.Generator, n: int) -> np.ndarray:
        return rng.normal(size=(n, self.dim)) * np.linspace(0.3, 2.0, self.dim)

    def pairs(self, n: int) -> Pair:
        z = self.rng.normal(size=(2, n, self.dim)) @ self.root.T
        return self.mean + z[0], self.mean + z[0] + self.shift + self.noise * z[1]


def _covers(drift: Drift, truth: float) -> bool:
    assert drift.low is not None
    assert drift.high is not None
    return drift.low <= truth <= drift.high


def test_gaussian_oracle() -> None:
    gaussian = Gaussian()
    truth = gaussian.fid_q - gaussian.fid_x
    drift = fid_drift(*gaussian.pairs(4000), gaussian.reference)
    assert drift.standard_error is not None
    assert drift.bias_correction is not None
    assert drift.corrected == pytest.approx(truth, abs=3 * drift.standard_error)
    assert drift.standard_error < 0.25 * abs(truth)
    assert drift.raw == pytest.approx(drift.fid_quantized - drift.fid_float, rel=1e-12)
    assert drift.corrected == pytest.approx(drift.raw - drift.bias_correction, rel=1e-9)
    assert drift.half_width == pytest.approx(1.959964 * drift.standard_error, rel=1e-6)
    assert (drift.n, drift.dim, drift.rank, drift.n_over_rank) == (4000, D, D, 250.0)
    assert drift.reason is None
    assert not drift.identical


@pytest.mark.parametrize("n", [50, 100, 400])
@pytest.mark.parametrize("noise", [0.1, 0.6])
def test_coverage_gaussian(n: int, noise: float) -> None:
    """Nominal 95 % over 300 replicates; 90 % is 4 standard errors below."""
    gaussian = Gaussian(1, noise)
    truth = gaussian.fid_q - gaussian.fid_x
    hits = [_covers(fid_drift(*gaussian.pairs(n), gaussian.reference), truth) for _ in range(300)]
    assert np.mean(hits) >= 0.90


def test_the_plug_in_would_not_cover() -> None:
    gaussian = Gaussian(1, 0.6, 0.0, dim=128)
    truth = gaussian.fid_q - gaussian.fid_x
    errors, naive, hits = [], [], []
    for _ in range(60):
        drift = fid_drift(*gaussian.pairs(384), gaussian.reference)
        assert drift.corrected is not None
        assert drift.standard_error is not None
        errors.append((drift.raw - truth, drift.corrected - truth))
        hits.append(_covers(drift, truth))
        naive.append(abs(drift.raw - truth) <= 1.96 * drift.standard_error)
    plug_in, corrected = np.mean(errors, axis=0)
    assert np.mean(naive) < 0.2
    assert np.mean(hits) >= 0.9
    assert abs(corrected) < 0.05 * abs(plug_in)


def test_coverage_relu() -> None:
    """Features of a random net, not gaussian; the truth is the population of 40,000 it is drawn from."""
    rng = np.random.default_rng(2)
    weights = rng.normal(size=(12, D)) / np.sqrt(12)

    def net(z: np.ndarray) -> np.ndarray:
        out: np.ndarray = np.maximum(z @ weights + 0.3, 0) + 0.05 * z[:, :1]
        return out

    z = rng.normal(size=(40_000, 12))
    x, q = net(z), net(z + 0.25 * rng.normal(size=z.shape))
    reference = reference_from_features(net(rng.normal(size=(4000, 12)) * 1.1))
    truth = frechet_distance(q, reference) - frechet_distance(x, reference)
    hits = []
    for _ in range(300):
        rows = rng.choice(len(z), 100, replace=False)
        hits.append(_covers(fid_drift(x[rows], q[rows], reference), truth))
    assert np.mean(hits) >= 0.90


@pytest.mark.parametrize("n", [2, 10, 500])
def test_identical_is_exactly_zero(n: int) -> None:
    gaussian = Gaussian()
    x, _ = gaussian.pairs(n)
    drift = fid_drift(x, x.copy(), gaussian.reference)
    assert drift.identical
    assert drift.reason is None
    assert (drift.raw, drift.corrected, drift.low, drift.high) == (0.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("n", "reason"), [(10, "not more than the 16"), (19, "fewer than 20"), (39, "under 2.5 of 16")]
)
def test_too_few(n: int, reason: str) -> None:
    gaussian = Gaussian()
    drift = fid_drift(*gaussian.pairs(n), gaussian.reference)
    assert reason in str(drift.reason)
    assert drift.low is drift.high is drift.corrected is drift.standard_error is drift.bias_correction is None
    assert np.isfinite(drift.raw)
    assert drift.settles
    assert fid_drift(*gaussian.pairs(40), gaussian.reference).reason is None


def test_missing_features_have_no_interval() -> None:
    gaussian = Gaussian()
    x, q = gaussian.pairs(400)
    q[:, 3] = 0.0
    drift = fid_drift(x, q, gaussian.reference)
    assert "quantized model's features span 15 directions" in str(drift.reason)
    assert drift.low is None
    assert not drift.settles
    assert (drift.rank, drift.reference_rank) == (15, 16)


def test_dead_features_everywhere_keep_the_interval() -> None:
    gaussian = Gaussian()
    x, q = gaussian.pairs(100)
    pad = ((0, 0), (0, 4))
    padded = Moments(2000, np.pad(gaussian.reference.mean, (0, 4)), np.pad(gaussian.reference.cov, (0, 4)))
    dead = fid_drift(np.pad(x, pad), np.pad(q, pad), reference_from_moments(padded))
    alive = fid_drift(x, q, gaussian.reference)
    assert dead.corrected == pytest.approx(alive.corrected, rel=1e-8)
    assert dead.half_width == pytest.approx(alive.half_width, rel=1e-8)
    assert (dead.rank, dead.dim) == (16, 20)


@pytest.mark.parametrize("n", [40, 160])
def test_the_half_width_is_the_quantiles(n: int) -> None:
    gaussian = Gaussian(5, 0.6)
    drift = fid_drift(*gaussian.pairs(n), gaussian.reference, confidence=0.9)
    assert drift.half_width is not None
    assert drift.standard_error is not None
    assert drift.half_width == pytest.approx(1.644854 * drift.standard_error, rel=1e-6)


def test_bad_input() -> None:
    gaussian = Gaussian()
    x, q = gaussian.pairs(100)
    reference: Reference = gaussian.reference
    with pytest.raises(DataError, match="pair up"):
        fid_drift(x, q[:-1], reference)
    with pytest.raises(DataError, match="confidence"):
        fid_drift(x, q, reference, confidence=1.0)
    with pytest.raises(DataError, match="not finite"):
        fid_drift(x, np.where(q > 2, np.inf, q), reference)
