"""Contrasts, restated drifts, differences of drifts, and the bootstrap as their check."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from flatq.errors import DataError
from flatq.evaluate.bootstrap import bootstrap_drift
from flatq.evaluate.contrast import fid_contrast
from flatq.evaluate.difference import Measured, difference_over_seeds, drift_difference
from flatq.evaluate.drift import Drift, fid_drift
from flatq.evaluate.frechet import frechet_distance, frechet_side
from flatq.evaluate.kid import kid, kid_drift
from flatq.evaluate.moments import Moments, Reference, moments_of, reference_from_features
from flatq.evaluate.restate import at_confidence, beyond_relative_tolerance

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
    labels = np.arange(60) // 2
    for clusters in (None, labels):
        sides = {name: frechet_side(side, REFERENCE, clusters) for name, side in (("x", x), ("q", q))}
        found = fid_contrast(sides, {"x": -1, "q": 1}, REFERENCE, 0.9, clusters)
        drift = fid_drift(x, q, REFERENCE, 0.9, clusters)
        for field in ("raw", "corrected", "standard_error", "half_width", "low", "high", "n_over_rank"):
            assert getattr(found, field) == pytest.approx(getattr(drift, field), rel=1e-9), field


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


def test_a_contrast_refuses() -> None:
    x, q = _models(60, np.random.default_rng(1), 0.4)
    sides = {"x": frechet_side(x, REFERENCE), "q": frechet_side(q[:-1], REFERENCE)}
    for weights in ({"x": 1.0, "q": -1.0}, {"other": 1.0}, {}):
        with pytest.raises(DataError, match="no contrast"):
            fid_contrast(sides, weights, REFERENCE)
    few = fid_contrast({"x": frechet_side(x[:10], REFERENCE)}, {"x": 1.0}, REFERENCE)
    assert few.corrected is few.low is None
    assert "10 clusters" in str(few.reason)


@pytest.mark.parametrize("n", [50, 200])
def test_a_restated_drift_is_the_measured_one(n: int) -> None:
    x, q = _models(n, np.random.default_rng(3), 0.4)
    drift = fid_drift(x, q, REFERENCE)
    sides = frechet_side(x, REFERENCE).influence, frechet_side(q, REFERENCE).influence
    _same(at_confidence(drift, 0.8), fid_drift(x, q, REFERENCE, 0.8))
    _same(
        at_confidence(beyond_relative_tolerance(drift, 0.3, *sides), 0.99),
        fid_drift(x, q, REFERENCE, 0.99, relative_tolerance=0.3),
    )
    labels = np.arange(n) // 2
    clustered = fid_drift(x, q, REFERENCE, clusters=labels)
    _same(
        beyond_relative_tolerance(clustered, 0.3, *sides, labels),
        fid_drift(x, q, REFERENCE, clusters=labels, relative_tolerance=0.3),
    )


def _same(found: Drift, expected: Drift) -> None:
    for field, value in vars(expected).items():
        other = getattr(found, field)
        assert other == (pytest.approx(value, rel=1e-9) if isinstance(value, float) else value), field


def test_restating_without_what_it_needs() -> None:
    x, q = _models(100, np.random.default_rng(3), 0.4)
    drift = fid_drift(x, q, REFERENCE)
    with pytest.raises(DataError, match="influence values"):
        beyond_relative_tolerance(drift, 0.1, None, None)
    with pytest.raises(DataError, match="not of the drift's samples"):
        beyond_relative_tolerance(drift, 0.1, np.zeros(99), np.zeros(99))
    with pytest.raises(DataError, match="bias of each side"):
        beyond_relative_tolerance(replace(drift, bias_float=None), 0.1, np.zeros(100), np.zeros(100))
    with pytest.raises(DataError, match="out of range"):
        beyond_relative_tolerance(drift, -0.1, None, None)
    with pytest.raises(DataError, match="already"):
        beyond_relative_tolerance(replace(drift, relative_tolerance=0.1), 0.1, None, None)
    with pytest.raises(DataError, match="confidence"):
        at_confidence(drift, 1.0)
    same = beyond_relative_tolerance(fid_drift(x, x, REFERENCE), 0.1, None, None)
    assert (same.low, same.high, same.relative_tolerance) == (0.0, 0.0, 0.1)
    few = beyond_relative_tolerance(fid_drift(x[:6], q[:6], REFERENCE), 0.1, None, None)
    assert few.raw == pytest.approx(few.fid_quantized - 1.1 * few.fid_float)
    assert few.low is None


def _measured(x: np.ndarray, q: np.ndarray, first: int = 0) -> Measured:
    return Measured(fid_drift(x, q, REFERENCE), np.arange(first, first + len(x)), _influence(x, q))


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
    few = Measured(fid_drift(x[:10], q[:10], REFERENCE))
    assert "the old drift has no interval" in str(drift_difference(few, full).reason)
    assert "the new drift has no interval" in str(drift_difference(full, few).reason)
    bare = drift_difference(full, Measured(full.drift))
    assert "not kept" in str(bare.unpaired)
    elsewhere = Measured(full.drift, np.arange(500, 600), full.values)
    assert "share no image" in str(drift_difference(full, elsewhere).unpaired)
    identical = Measured(fid_drift(x, x, REFERENCE), np.arange(100))  # needs no values: they are 0
    assert drift_difference(identical, full).corrected == full.drift.corrected
    with pytest.raises(DataError, match="do not fit"):
        drift_difference(full, Measured(full.drift, np.zeros(100, np.int64), full.values))
    with pytest.raises(DataError, match="relative tolerance"):
        drift_difference(full, Measured(replace(full.drift, relative_tolerance=0.1)))


def test_the_difference_over_seeds() -> None:
    """Against scipy's paired t interval."""
    stats = pytest.importorskip("scipy.stats")
    x, q = _models(100, np.random.default_rng(7), 0.4)
    base = fid_drift(x, q, REFERENCE)
    a, b = RNG.normal(size=(2, 5))
    found = difference_over_seeds(
        [replace(base, corrected=v) for v in a], [replace(base, corrected=v) for v in b], 0.9
    )
    expected = stats.ttest_rel(b, a).confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-9)
    assert found.seeds == 5
    assert difference_over_seeds([base] * 3, [base] * 3).t == pytest.approx(4.302653, rel=1e-6)
    with pytest.raises(DataError, match="pair up"):
        difference_over_seeds([base], [base])
    with pytest.raises(DataError, match="no interval"):
        difference_over_seeds([base, replace(base, corrected=None)], [base, base])


def test_kid_beyond_a_relative_tolerance() -> None:
    rng = np.random.default_rng(8)
    real = rng.normal(size=(50, D))
    x, q = _models(40, rng, 0.4)
    found = kid_drift(x, q, real, relative_tolerance=0.5)
    assert found.drift == pytest.approx(kid(q, real) - 1.5 * kid(x, real), rel=1e-9)
    assert kid_drift(x, x, real, relative_tolerance=0.5).drift == 0.0
    with pytest.raises(DataError, match="relative tolerance"):
        kid_drift(x, q, real, relative_tolerance=-1)


def test_kid_intervals_cover_also_beyond_a_tolerance() -> None:
    rng = np.random.default_rng(9)
    real = 0.6 + 1.5 * rng.normal(size=(200, D)) * SCALES  # far from x: else the U-statistic degenerates
    pool_x, pool_q = _models(6000, rng, 0.5)
    truth = {tau: kid(pool_q, real) - (1 + tau) * kid(pool_x, real) for tau in (0.0, 0.5)}
    hits: dict[float, list[bool]] = {0.0: [], 0.5: []}
    for _ in range(300):
        rows = rng.choice(len(pool_x), 60, replace=False)
        for tau, found in hits.items():
            drift = kid_drift(pool_x[rows], pool_q[rows], real, relative_tolerance=tau)
            found.append(drift.low <= truth[tau] <= drift.high)
    for found in hits.values():
        assert 0.89 <= np.mean(found) <= 0.99  # nominal 95 %


def _bootstrap_case(n: int, clusters: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, Reference]:
    rng = np.random.default_rng(10)
    if not clusters:
        x, q = _models(n, rng, 0.5)
        return x, q, None, REFERENCE
    x, q = (np.repeat(side, 2, axis=0) for side in _models(n // 2, rng, 0.5))
    x, q = (side + 0.3 * rng.normal(size=side.shape) for side in (x, q))
    return x, q, np.arange(n) // 2, REFERENCE


@pytest.mark.parametrize("clusters", [False, True])
@pytest.mark.parametrize("tau", [None, 0.2])
def test_the_reflected_bootstrap_agrees_with_the_closed_form(clusters: bool, tau: float | None) -> None:
    """400 replicates: the deviation is known to 3.5 %, an end of the interval to about 0.15 SE."""
    x, q, labels, reference = _bootstrap_case(400, clusters)
    slow = bootstrap_drift(x, q, reference, clusters=labels, relative_tolerance=tau, replicates=400)
    fast = fid_drift(x, q, reference, clusters=labels, relative_tolerance=tau)
    assert fast.standard_error is not None
    assert fast.low is not None
    assert fast.high is not None
    assert slow.raw == pytest.approx(fast.raw, rel=1e-9)
    assert slow.standard_error == pytest.approx(fast.standard_error, rel=0.15)
    assert slow.corrected == pytest.approx(fast.corrected, abs=0.25 * fast.standard_error)
    assert slow.low == pytest.approx(fast.low, abs=0.5 * fast.standard_error)
    assert slow.high == pytest.approx(fast.high, abs=0.5 * fast.standard_error)


def test_the_bootstrap_is_seeded_and_refuses() -> None:
    x, q, _, reference = _bootstrap_case(60, False)
    assert bootstrap_drift(x, q, reference, replicates=20) == bootstrap_drift(x, q, reference, replicates=20)
    with pytest.raises(DataError, match="replicates"):
        bootstrap_drift(x, q, reference, replicates=3)
    assert moments_of(x).n == 60
