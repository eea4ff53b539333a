"""Plans from a pilot, the gate of several tolerances, and the verdict on a difference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from flatq.errors import DataError, UsageError
from flatq.evaluate.difference import DriftDifference
from flatq.evaluate.drift import Drift, beyond_relative_tolerance, fid_drift
from flatq.evaluate.frechet import frechet_side
from flatq.evaluate.gate import Tolerances, Verdict, decide_difference, judge, worst
from flatq.evaluate.kid import KidDrift
from flatq.evaluate.moments import reference_from_features
from flatq.evaluate.sample_size import sizes_from_pilot

D = 8
RNG = np.random.default_rng(0)
REFERENCE = reference_from_features(RNG.normal(size=(4000, D)))
X = 0.3 + RNG.normal(size=(200, D))
Q = X + 0.05 + 0.3 * RNG.normal(size=X.shape)
DRIFT = fid_drift(X, Q, REFERENCE)
INFLUENCES = frechet_side(X, REFERENCE).influence, frechet_side(Q, REFERENCE).influence


def _number(value: float | None) -> float:
    assert value is not None
    return value


def test_a_plan_with_a_tolerance() -> None:
    s = _number(DRIFT.standard_error) * np.sqrt(200)
    tau = _number(DRIFT.corrected) + 0.2
    plan = sizes_from_pilot(DRIFT, 0.5, tau)
    assert (plan.pilot, plan.deviation, plan.resolvable) == (200, pytest.approx(s), DRIFT.half_width)
    images = {goal.purpose.split(",")[0]: goal.images for goal in plan.goals}
    assert images["10 samples per feature rank"] == 80
    assert images["4 x the pilot"] == 800
    z = 1.959964 + 0.841621  # 95 % and 80 % power
    assert images["to pass with 80% power if there is no drift"] == max(80, np.ceil((z * s / tau) ** 2))
    assert images["to pass with 80% power if the drift is the pilot's"] == max(
        80, np.ceil((z * s / 0.2) ** 2)
    )
    assert images[f"to resolve {tau / 2:.4g}"] == max(80, np.ceil((1.959964 * s / (tau / 2)) ** 2))
    assert [goal.images for goal in plan.goals] == sorted(goal.images for goal in plan.goals)
    for goal in plan.goals:
        assert goal.seconds == 0.5 * goal.images
        assert goal.half_width == pytest.approx(1.959964 * s / np.sqrt(goal.images), rel=1e-6)


def test_a_plan_without_what_it_lacks() -> None:
    few = sizes_from_pilot(fid_drift(X[:12], Q[:12], REFERENCE), None, 0.5)
    assert few.resolvable is few.deviation is None
    assert "12 samples" in str(few.reason)
    assert [(goal.images, goal.seconds, goal.half_width) for goal in few.goals] == [(80, None, None)]
    hopeless = sizes_from_pilot(DRIFT, 1.0, 0.5 * _number(DRIFT.corrected))
    assert not any("pilot's" in goal.purpose for goal in hopeless.goals)  # more samples will not help it
    relative = sizes_from_pilot(beyond_relative_tolerance(DRIFT, 0.5, *INFLUENCES), 1.0)
    assert any("no drift" in goal.purpose for goal in relative.goals)
    same = sizes_from_pilot(fid_drift(X, X, REFERENCE), 1.0, 0.5)
    assert len(same.goals) == 1


KID = KidDrift(0.02, 0.1, 0.2, -0.18, 0.22, 0.95, 500, 9, D, 1.0, 1.0, False)


def test_the_worse_of_two_tolerances() -> None:
    share = _number(DRIFT.corrected) / DRIFT.fid_float
    loose, tight = 10 * share + 1, share / 10
    absolute = 10 * _number(DRIFT.high)
    for tolerances, outcome in (
        (Tolerances(absolute), "pass"),
        (Tolerances(None, loose), "pass"),
        (Tolerances(absolute, loose), "pass"),
        (Tolerances(absolute, tight), "fail"),
        (Tolerances(_number(DRIFT.low) / 2, loose), "fail"),
        (Tolerances(absolute, loose, 1000), "inconclusive"),
    ):
        assert judge(DRIFT, KID, tolerances, *INFLUENCES).outcome == outcome, tolerances
    assert judge(DRIFT, KID, Tolerances(absolute, loose), *INFLUENCES, not_finite=1).outcome == "fail"
    with pytest.raises(UsageError, match="no tolerance"):
        judge(DRIFT, KID, Tolerances(min_samples=3))
    with pytest.raises(DataError, match="influence values"):
        judge(DRIFT, KID, Tolerances(None, 0.1))


def test_worst() -> None:
    verdicts = [
        Verdict("pass", "A.", "fid"),
        *(Verdict("inconclusive", r, "fid", n) for r, n in (("B.", 9), ("C.", 7))),
    ]
    assert worst(verdicts) == Verdict("inconclusive", "B. C.", "fid", 9)
    verdicts.append(Verdict("inconclusive", "C.", "fid"))
    assert worst(verdicts).samples_to_settle is None


DIFFERENCE = DriftDifference(0.3, 0.1, 0.2, 0.1, 0.5, 0.95, (400, 500), True, None, 400, None)


def test_the_verdict_on_a_difference() -> None:
    passed = decide_difference(DIFFERENCE, KID, 0.5)
    assert passed.outcome == "pass"
    assert "paired on 400 images, n = 400 and 500" in passed.reason
    assert decide_difference(DIFFERENCE, KID, 0.05).outcome == "fail"
    open_ = decide_difference(DIFFERENCE, KID, 0.4)
    # 500 ((1.96 + 0.8416) 0.1 / 0.1)^2, at a standard error of 0.1
    assert (open_.outcome, open_.samples_to_settle) == ("inconclusive", 3925)
    assert "3925 samples" in open_.reason
    apart = replace(DIFFERENCE, paired=False, unpaired="the seeds differ")
    for limit in (0.5, 0.05, 0.4):
        assert "(unpaired: the seeds differ)" in decide_difference(apart, KID, limit).reason
    none = replace(DIFFERENCE, corrected=None, reason="the old drift has no interval")
    assert "no interval" in decide_difference(none, KID, 0.5).reason
    assert decide_difference(DIFFERENCE, KID, 0.5, min_samples=450).outcome == "inconclusive"
    assert "2 of 500 images" in decide_difference(DIFFERENCE, KID, 0.5, not_finite=2).reason
    collapsed = replace(KID, drift=2.0, low=1.8, high=2.2)
    assert decide_difference(DIFFERENCE, collapsed, 0.5).metric == "kid"
    with pytest.raises(DataError, match="tolerated drift"):
        decide_difference(DIFFERENCE, KID, -1.0)


def test_drifts_of_reports_from_before_the_biases_still_load() -> None:
    fields = {key: value for key, value in vars(DRIFT).items() if not key.startswith("bias_")}
    old = Drift(**fields, bias_correction=DRIFT.bias_correction)
    assert old.bias_float is None
