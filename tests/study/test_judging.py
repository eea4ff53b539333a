"""Verdicts over seeds: planted claims, error rates by simulation, Holm against its definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from flatq.errors import DataError
from flatq.study.judging import Claim, Condition, judge_claims


def _claim(values: Any, threshold: float = 0.0, side: Any = "below", name: str = "c") -> Claim:
    condition = Condition(name=name, values=tuple(map(float, values)), side=side, threshold=threshold)
    return Claim(name=name, conditions=(condition,))


def _values(mean: float, spread: float = 1.0, n: int = 8, seed: int = 0) -> Any:
    drawn = np.random.default_rng(seed).standard_normal(n)
    drawn = (drawn - drawn.mean()) / drawn.std(ddof=1)
    return mean + spread * drawn


def test_wins_losses_and_ties_by_construction() -> None:
    found = judge_claims([_claim(_values(m), name=str(m)) for m in (-3.0, 3.0, 0.0, -0.5)])
    assert [claim.verdict for claim in found] == ["confirmed", "refuted", "undecided", "undecided"]
    above = judge_claims([_claim(_values(3.0), side="above")])[0]
    assert above.verdict == "confirmed"
    assert judge_claims([_claim(_values(3.0), threshold=5.0, side="above")])[0].verdict == "refuted"


def test_p_values_and_intervals_are_those_of_the_t_test() -> None:
    values = _values(-0.7, n=6)
    (part,) = judge_claims([_claim(values, threshold=-0.1)])[0].conditions
    expected = ttest_1samp(values, -0.1)
    assert part.p == pytest.approx(expected.pvalue)
    interval = ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert (part.low, part.high) == pytest.approx((interval.low, interval.high))


def test_holm_by_its_definition() -> None:
    claims = [_claim(_values(m, seed=i), name=str(i)) for i, m in enumerate((-0.9, -1.2, -0.2, -0.8))]
    parts = [claim.conditions[0] for claim in judge_claims(claims)]
    ordered = sorted(parts, key=lambda part: part.p or 0)
    running = 0.0
    for rank, part in enumerate(ordered):
        running = max(running, min(1.0, (4 - rank) * (part.p or 0)))
        assert part.p_adjusted == pytest.approx(running)


def test_a_claim_needs_all_its_conditions_and_falls_by_one() -> None:
    good, bad, open_ = (_claim(_values(m)).conditions[0] for m in (-3.0, 3.0, -0.1))
    verdicts = [
        judge_claims([Claim(name="c", conditions=conditions)])[0].verdict
        for conditions in ((good, good), (good, open_), (good, bad), (open_, bad))
    ]
    assert verdicts == ["confirmed", "undecided", "refuted", "refuted"]


def test_fewer_than_five_seeds_have_no_verdict() -> None:
    found = judge_claims([_claim(_values(-5.0, n=4)), _claim(_values(-5.0, n=8))])
    assert [claim.verdict for claim in found] == ["too few seeds", "confirmed"]
    assert found[0].conditions[0].p_adjusted is None
    assert found[1].conditions[0].p_adjusted == found[1].conditions[0].p  # one test alone
    assert judge_claims([_claim([1.0])])[0].conditions[0].low is None


@pytest.mark.slow
def test_family_wise_error_is_within_nominal() -> None:
    """Nine claims at their thresholds, correlated within a seed: any verdict at all is an error."""
    rng, runs = np.random.default_rng(0), 600
    wrong = 0
    for _ in range(runs):
        shared = rng.standard_normal((8, 1))
        values = 0.6 * shared + 0.8 * rng.standard_normal((8, 9))
        found = judge_claims([_claim(values[:, i], name=str(i)) for i in range(9)])
        wrong += any(claim.verdict != "undecided" for claim in found)
    assert wrong / runs < 0.05 + 2 * (0.05 * 0.95 / runs) ** 0.5


def test_the_seeds_named_have_the_power() -> None:
    (part,) = judge_claims([_claim(_values(-0.5))])[0].conditions
    assert part.seeds_needed is not None
    rng, runs, n = np.random.default_rng(1), 2000, part.seeds_needed
    drawn = -0.5 + rng.standard_normal((runs, n))
    decided = np.mean([ttest_1samp(row, 0.0).pvalue <= 0.05 for row in drawn])
    assert decided == pytest.approx(0.8, abs=0.04)


def test_no_spread_and_bad_values() -> None:
    assert judge_claims([_claim([-1.0] * 5)])[0].verdict == "confirmed"
    assert judge_claims([_claim([0.0] * 5)])[0].verdict == "undecided"
    for values in ([], [1.0, float("nan")]):
        with pytest.raises(DataError, match="cannot be judged"):
            judge_claims([_claim(values)])
