"""Planned looks, and what looking repeatedly costs in wrong verdicts, by simulation."""

from __future__ import annotations

import numpy as np
import pytest

from flatq.errors import UsageError
from flatq.evaluate.drift import fid_drift
from flatq.evaluate.frechet import frechet_distance
from flatq.evaluate.gate import Verdict, decide
from flatq.evaluate.kid import KidDrift
from flatq.evaluate.looks import Looks, plan_looks, until_decided
from flatq.evaluate.moments import Moments, reference_from_features

D = 4
NO_COLLAPSE = KidDrift(0.0, 0.0, 0.0, 0.0, 0.0, 0.9, 640, 640, D, 1.0, 1.0, identical=False)


def test_the_plan() -> None:
    looks = plan_looks(100, 800, 4, 0.95)
    assert looks.planned == (100, 200, 400, 800)
    assert looks.each == pytest.approx(0.9875)
    assert plan_looks(100, 100, 4, 0.95).planned == (100,)
    assert plan_looks(100, 102, 4, 0.95).planned == (100, 101, 102)  # three sizes are all there are
    assert plan_looks(100, 102, 4, 0.95).each == pytest.approx(1 - 0.05 / 3)
    assert plan_looks(2, 10**6, 3, 0.9).planned == (2, 1414, 10**6)
    for bad in ((100, 99, 4), (100, 200, 1), (100, 100, 0)):
        with pytest.raises(UsageError, match="looks"):
            plan_looks(*bad, 0.95)


def test_it_stops_at_the_first_decision() -> None:
    looks = plan_looks(100, 800, 4, 0.95)
    seen: list[tuple[int, float]] = []

    def judge(n: int, confidence: float) -> Verdict:
        seen.append((n, confidence))
        return Verdict("fail" if n >= 400 else "inconclusive", "", "fid")

    verdict, taken = until_decided(looks, judge)
    assert (verdict.outcome, taken.taken, taken.planned) == ("fail", 3, looks.planned)
    assert seen == [(n, looks.each) for n in (100, 200, 400)]
    verdict, taken = until_decided(looks, lambda n, c: Verdict("inconclusive", str(n), "fid"))
    assert (verdict.reason, taken.taken) == ("800", 4)


def _rates(each: float | None, replicates: int) -> tuple[float, float]:
    """Shares of pass and of fail where the true drift is the tolerance; `each` in place of the planned share.

    x ~ N(0.5, 1), q = x + shift + noise in 4 dimensions, against N(0, 1.3^2): the truth is a closed form.
    """
    rng = np.random.default_rng(0)
    reference = reference_from_features(1.3 * rng.normal(size=(5000, D)))
    noise, shift = 0.4, 0.1
    x, q = (
        frechet_distance(Moments(9, np.full(D, mean), scale * np.eye(D)), reference)
        for mean, scale in ((0.5, 1.0), (0.5 + shift, 1.0 + noise**2))
    )
    tau = q - x
    assert tau > 0
    looks, outcomes = plan_looks(40, 640, 5, 0.9), []
    for _ in range(replicates):
        xs = 0.5 + rng.normal(size=(640, D))
        qs = xs + shift + noise * rng.normal(size=xs.shape)

        def judge(n: int, confidence: float, xs: np.ndarray = xs, qs: np.ndarray = qs) -> Verdict:
            return decide(fid_drift(xs[:n], qs[:n], reference, each or confidence), NO_COLLAPSE, tau)

        outcomes.append(until_decided(looks, judge)[0].outcome)
    return outcomes.count("pass") / replicates, outcomes.count("fail") / replicates


@pytest.mark.slow
def test_wrong_verdicts_at_the_tolerance_stay_within_the_nominal_share() -> None:
    """A drift of exactly tau must not pass more often than alpha / 2 = 5 %, nor fail (one-sided each).

    600 replicates: a standard error of 0.9 %; 7.7 % is three above. Looking as often at the whole alpha
    each time is what the shares are for.
    """
    passed, failed = _rates(None, 600)
    assert passed <= 0.077
    assert failed <= 0.077
    naive_passed, naive_failed = _rates(0.9, 200)
    assert naive_passed + naive_failed > 0.15


def test_looks_are_plain_values() -> None:
    assert Looks((1, 2), 0.95) == Looks((1, 2), 0.95, 0)
