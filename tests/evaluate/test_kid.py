from __future__ import annotations

import numpy as np
import pytest

from flatq.errors import DataError
from flatq.evaluate import kid as kid_module
from flatq.evaluate.kid import kid_drift, kid_terms


def _three(seed: int = 0, n: int = 12, m: int = 17, d: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.exponential(size=(n, d))
    return x, x + 0.3 * rng.normal(size=(n, d)) + 0.1, rng.exponential(size=(m, d))


def _k(a: np.ndarray, b: np.ndarray) -> float:
    return float((a @ b / len(a) + 1) ** 3)


def _direct_kid(x: np.ndarray, r: np.ndarray) -> float:
    n, m = len(x), len(r)
    within_x = sum(_k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within_r = sum(_k(r[i], r[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within_x + within_r - 2 * sum(_k(a, b) for a in x for b in r) / (n * m)


@pytest.mark.parametrize("block", [2048, 5, 1])
def test_against_the_direct_formula(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kid_module, "_BLOCK", block)
    x, q, r = _three()
    n = len(x)
    got = kid_drift(x, q, r)
    assert got == kid_drift(kid_terms(x, r), q, r)
    assert got.drift == pytest.approx(_direct_kid(q, r) - _direct_kid(x, r), rel=1e-10)
    h = [[_k(q[i], q[j]) - _k(x[i], x[j]) for j in range(n)] for i in range(n)]
    g = [[_k(q[i], c) - _k(x[i], c) for c in r] for i in range(n)]
    a = [2 * (np.mean([h[i][j] for j in range(n) if j != i]) - np.mean(g[i])) for i in range(n)]
    assert got.standard_error == pytest.approx(np.std(a, ddof=1) / np.sqrt(n), rel=1e-10)
    assert got.low == pytest.approx(got.drift - 1.959964 * got.standard_error, rel=1e-6)
    assert (got.n, got.n_reference, got.dim, got.identical) == (12, 17, 5, False)
    point = [
        _k(x[i], x[i]) + _direct_within(x) - 2 * np.mean([_k(x[i], x[j]) for j in range(n) if j != i])
        for i in range(n)
    ]
    assert got.spread_float == pytest.approx(np.mean(point), rel=1e-10)
    assert got.variance_share == pytest.approx(np.trace(np.cov(q.T)) / np.trace(np.cov(x.T)), rel=1e-10)


def _direct_within(x: np.ndarray) -> float:
    n = len(x)
    return sum(_k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))


@pytest.mark.parametrize("block", [2048, 5])
def test_from_float_against_the_direct_formula(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kid_module, "_BLOCK", block)
    x, q, r = _three()
    n = len(x)

    def h(i: int, j: int) -> float:
        return _k(x[i], x[j]) + _k(q[i], q[j]) - _k(x[i], q[j]) - _k(q[i], x[j])

    rows = [2 * np.mean([h(i, j) for j in range(n) if j != i]) for i in range(n)]
    got = kid_drift(x, q, None)
    assert got == kid_drift(kid_terms(x, None), q, None)
    assert got.drift == pytest.approx(np.mean(rows) / 2, rel=1e-10)
    assert got.standard_error == pytest.approx(np.std(rows, ddof=1) / np.sqrt(n), rel=1e-10)
    assert (got.against, got.n_reference) == ("float", n)
    beside = kid_drift(x, q, r)
    assert beside.against == "reference"
    assert got.spread_float == pytest.approx(beside.spread_float, rel=1e-12)
    assert got.variance_share == pytest.approx(beside.variance_share, rel=1e-12)


def test_from_float_is_the_spread_for_a_repeated_image() -> None:
    """What spread_float is defined as: the KID, from the float samples, of repeating one of their images."""
    x = _three(n=40)[0]
    each = [kid_drift(x, np.repeat(x[i : i + 1], 40, axis=0), None).drift for i in range(40)]
    # the sample i itself is left out in its own row only: an error of order 1 / n
    assert np.mean(each) == pytest.approx(kid_drift(x, x, None).spread_float, rel=0.1)


def test_identical_is_exactly_zero() -> None:
    x, _, r = _three()
    for got in (kid_drift(x, x.copy(), r), kid_drift(x, x.copy(), None)):
        assert got.identical
        assert (got.drift, got.low, got.high, got.standard_error) == (0.0, 0.0, 0.0, 0.0)


def test_bad_input() -> None:
    x, q, r = _three()
    with pytest.raises(DataError, match="pair up"):
        kid_drift(x, q[:-1], r)
    with pytest.raises(DataError, match="confidence"):
        kid_drift(x, q, r, confidence=95)
    with pytest.raises(DataError, match="not finite"):
        kid_drift(x, q * np.nan, r)


@pytest.mark.parametrize("n", [12, 60])
def test_coverage(n: int) -> None:
    """Nominal 95 % over 300 replicates, also for n < d; 90 % is 4 standard errors below."""
    rng = np.random.default_rng(9)
    d, noise = 16, 0.5
    r = rng.normal(size=(300, d))

    def pairs(count: int) -> tuple[np.ndarray, np.ndarray]:
        x = rng.normal(size=(count, d))
        return x, x + noise * rng.normal(size=(count, d)) + 0.2

    # E k(q, q') and E k(q, r) in closed form would need third moments: a large sample is the truth here
    truth = float(np.mean([kid_drift(*pairs(1500), r).drift for _ in range(4)]))
    hits = [(got := kid_drift(*pairs(n), r)).low <= truth <= got.high for _ in range(300)]
    assert 0.90 <= np.mean(hits) <= 0.99
