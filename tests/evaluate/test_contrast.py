"""Contrasts, drifts judged otherwise, differences of drifts, and the bootstrap as their check."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from flatq.errors import DataError
from flatq.evaluate.difference import MeasuredDrift, drift_difference
from flatq.evaluate.drift import at_confidence, beyond_relative_tolerance, fid_contrast, fid_drift
from flatq.evaluate.frechet import frechet_distance, frechet_side
from flatq.evaluate.kid import kid_drift
from flatq.evaluate.moments import Moments, reference_from_features

D = 8
RNG = np.random.default_rng(0)
SCALES = np.linspace(0.5, 1.5, D)
REFERENCE = reference_from_features(RNG.normal(size=(4000, D)) * SCALES)


def _models(n: int, rng: np.random.Generator, *noises: float) -> list[np.ndarray]:
    """x ~ N(0.1, diag(SCALES^2)), then x with independent noise of these sizes."""
    x = 0.1 + rng.normal(size=(n, D)) * SCALES
    return [x, *(x + noise * rng.normal(size=x.shape) for noise in noises)]


def _truth(noise: float) -> float:
    cov = np.diag(SCALES**2)
    fids = [
        frechet_distance(Moments(9, np.full(D, 0.1), cov + s**2 * np.eye(D)), REFERENCE) for s in (0, noise)
    ]
    return fids[1] - fids[0]


def _influence(x: np.ndarray, q: np.ndarray) -> np.ndarray:
    sides = [frechet_side(side, REFERENCE).influence for side in (x, q)]
    assert sides[0] is not None
    assert sides[1] is not None
    return sides[1] - sides[0]


def test_a_drift_is_a_contrast() -> None:
    x, q = _models(60, np.random.default_rng(1), 0.4)
    sides = {name: frechet_side(side, REFERENCE) for name, side in (("x", x), ("q", q))}
    found = fid_contrast(sides, {"x": -1, "q": 1}, REFERENCE, 0.9)
    drift = fid_drift(x, q, REFERENCE, 0.9)
    for name in ("raw", "corrected", "standard_error", "half_width", "low", "high", "n_over_rank"):
        assert getattr(found, name) == pytest.approx(getattr(drift, name), rel=1e-9), name


def test_a_contrast_of_four_covers() -> None:
    """FID_d - FID_c - FID_b + FID_a = drift(d) - drift(c) - drift(b); 300 replicates, 90 % is 4 SE below."""
    truth = _truth(0.6) - _truth(0.5) - _truth(0.1)
    rng, hits = np.random.default_rng(2), []
    weights = {"d": 1, "c": -1, "b": -1, "a": 1}
    for _ in range(300):
        sides = {
            name: frechet_side(side, REFERENCE)
            for name, side in zip("abcd", _models(80, rng, 0.1, 0.5, 0.6), strict=True)
        }
        found = fid_contrast(sides, weights, REFERENCE)
        assert found.low is not None
        assert found.high is not None
        hits.append(found.low <= truth <= found.high)
    assert 0.90 <= np.mean(hits) <= 0.99


def test_a_contrast_of_few_samples_has_no_interval() -> None:
    x, _ = _models(60, np.random.default_rng(1), 0.4)
    few = fid_contrast({"x": frechet_side(x[:10], REFERENCE)}, {"x": 1.0}, REFERENCE)
    assert few.corrected is few.low is None
    assert "10 samples" in str(few.reason)


@pytest.mark.parametrize("n", [50, 200])
def test_a_drift_at_another_confidence_is_the_measured_one(n: int) -> None:
    x, q = _models(n, np.random.default_rng(3), 0.4)
    found, expected = at_confidence(fid_drift(x, q, REFERENCE), 0.8), fid_drift(x, q, REFERENCE, 0.8)
    for name, value in vars(expected).items():
        other = getattr(found, name)
        assert other == (pytest.approx(value, rel=1e-9) if isinstance(value, float) else value), name


def test_restating_without_what_it_needs() -> None:
    x, q = _models(100, np.random.default_rng(3), 0.4)
    drift = fid_drift(x, q, REFERENCE)
    with pytest.raises(DataError, match="influence values"):
        beyond_relative_tolerance(drift, 0.1, None, None)
    with pytest.raises(DataError, match="bias of each side"):
        beyond_relative_tolerance(replace(drift, bias_float=None), 0.1, np.zeros(100), np.zeros(100))
    with pytest.raises(DataError, match="out of range"):
        beyond_relative_tolerance(drift, -0.1, None, None)
    with pytest.raises(DataError, match="confidence"):
        at_confidence(drift, 1.0)
    same = beyond_relative_tolerance(fid_drift(x, x, REFERENCE), 0.1, None, None)
    assert (same.low, same.high, same.relative_tolerance) == (0.0, 0.0, 0.1)
    few = beyond_relative_tolerance(fid_drift(x[:6], q[:6], REFERENCE), 0.1, None, None)
    assert few.raw == pytest.approx(few.fid_quantized - 1.1 * few.fid_float)
    assert few.low is None


def _measured(x: np.ndarray, q: np.ndarray, first: int = 0) -> MeasuredDrift:
    return MeasuredDrift(fid_drift(x, q, REFERENCE), np.arange(first, first + len(x)), _influence(x, q))


def test_the_difference_of_two_drifts_covers_where_it_is_paired() -> None:
    """Also where the evaluations share only half of their images: 300 replicates, 90 % is 4 SE below."""
    truth = _truth(0.5) - _truth(0.3)
    rng, hits, widths = np.random.default_rng(4), [], []
    for _ in range(300):
        x, a, b = _models(150, rng, 0.3, 0.5)
        found = drift_difference(_measured(x[:100], a[:100]), _measured(x[50:], b[50:], 50))
        assert found.low is not None
        assert found.high is not None
        assert (found.paired, found.shared, found.n) == (True, 50, (100, 100))
        hits.append(found.low <= truth <= found.high)
        apart = drift_difference(
            _measured(x[:100], a[:100]), _measured(x[50:], b[50:]), unpaired="other seeds"
        )
        widths.append((found.half_width, apart.half_width))
    assert 0.90 <= np.mean(hits) <= 0.995
    assert apart.unpaired == "other seeds"
    assert not apart.paired


def test_pairing_is_worth_it() -> None:
    """One model twice is exactly no difference; a model a little off is told apart only in pairs."""
    rng = np.random.default_rng(5)
    x, a = _models(400, rng, 0.4)
    b = a + 0.03 + 0.01 * rng.normal(size=a.shape)
    old, new = _measured(x, a), _measured(x, b)
    same = drift_difference(old, old)
    assert (same.corrected, same.low, same.high, same.standard_error) == (0.0, 0.0, 0.0, 0.0)
    paired, apart = drift_difference(old, new), drift_difference(old, new, unpaired="other seeds")
    assert paired.low is not None
    assert paired.low > 0
    assert apart.half_width is not None
    assert paired.half_width is not None
    assert apart.half_width > 3 * paired.half_width
    assert apart.low is not None
    assert apart.low < 0
    assert apart.corrected == paired.corrected
    assert apart.standard_error == pytest.approx(
        np.hypot(old.drift.standard_error or 0, new.drift.standard_error or 0), rel=1e-12
    )


def test_the_difference_says_why_not() -> None:
    x, q = _models(100, np.random.default_rng(6), 0.4)
    full = _measured(x, q)
    few = MeasuredDrift(fid_drift(x[:10], q[:10], REFERENCE))
    assert "the old drift has no interval" in str(drift_difference(few, full).reason)
    assert "the new drift has no interval" in str(drift_difference(full, few).reason)
    bare = drift_difference(full, MeasuredDrift(full.drift))
    assert "not kept" in str(bare.unpaired)
    elsewhere = MeasuredDrift(full.drift, np.arange(500, 600), full.values)
    assert "share no image" in str(drift_difference(full, elsewhere).unpaired)
    identical = MeasuredDrift(fid_drift(x, x, REFERENCE), np.arange(100))  # needs no values: they are 0
    assert drift_difference(identical, full).corrected == full.drift.corrected


def test_kid_intervals_cover() -> None:
    rng = np.random.default_rng(9)
    real = 0.6 + 1.5 * rng.normal(size=(200, D)) * SCALES  # far from x: else the U-statistic degenerates
    pool_x, pool_q = _models(6000, rng, 0.5)
    truth = kid_drift(pool_x, pool_q, real).drift
    hits = []
    for _ in range(300):
        rows = rng.choice(len(pool_x), 60, replace=False)
        drift = kid_drift(pool_x[rows], pool_q[rows], real)
        hits.append(drift.low <= truth <= drift.high)
    assert 0.89 <= np.mean(hits) <= 0.99  # nominal 95 %


def _bootstrap(x: np.ndarray, q: np.ndarray, factor: float, replicates: int) -> tuple[float, np.ndarray]:
    """The deviation of resampled drifts, and their 95 % percentiles reflected about the plug-in drift.

    Source: the basic bootstrap (Davison, Hinkley 1997, section 5.2). Resampling repeats the bias of the
    plug-in drift, so the percentiles are off by twice the bias; reflected they are off by none of it, to
    first order.
    """

    def drift(rows: np.ndarray) -> float:
        return frechet_distance(q[rows], REFERENCE) - factor * frechet_distance(x[rows], REFERENCE)

    rng = np.random.default_rng(0)
    drawn = [drift(rng.integers(len(x), size=len(x))) for _ in range(replicates)]
    ends = 2 * drift(np.arange(len(x))) - np.quantile(drawn, [0.975, 0.025])
    return float(np.std(drawn, ddof=1)), ends


@pytest.mark.parametrize("tau", [0.0, 0.2])
def test_the_reflected_bootstrap_agrees_with_the_closed_form(tau: float) -> None:
    """400 replicates: the deviation is known to 3.5 %, an end of the interval to about 0.15 SE."""
    x, q = _models(400, np.random.default_rng(10), 0.5)
    sides = frechet_side(x, REFERENCE).influence, frechet_side(q, REFERENCE).influence
    fast = beyond_relative_tolerance(fid_drift(x, q, REFERENCE), tau, *sides)
    slow_error, ends = _bootstrap(x, q, 1 + tau, 400)
    assert fast.standard_error is not None
    assert slow_error == pytest.approx(fast.standard_error, rel=0.15)
    assert ends == pytest.approx([fast.low, fast.high], abs=0.5 * fast.standard_error)


def test_a_drift_beyond_a_relative_tolerance_covers() -> None:
    """300 replicates, 90 % is 4 SE below."""
    truth = _truth(0.5) - 0.5 * frechet_distance(Moments(9, np.full(D, 0.1), np.diag(SCALES**2)), REFERENCE)
    rng, hits = np.random.default_rng(11), []
    for _ in range(300):
        x, q = _models(80, rng, 0.5)
        sides = frechet_side(x, REFERENCE).influence, frechet_side(q, REFERENCE).influence
        found = beyond_relative_tolerance(fid_drift(x, q, REFERENCE), 0.5, *sides)
        assert found.low is not None
        assert found.high is not None
        hits.append(found.low <= truth <= found.high)
    assert np.mean(hits) >= 0.90
    assert found.raw == pytest.approx(found.fid_quantized - 1.5 * found.fid_float, rel=1e-12)
