from __future__ import annotations

from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest

from flatq.errors import DataError
from flatq.evaluate.drift import Drift, fid_drift
from flatq.evaluate.gate import Verdict, decide
from flatq.evaluate.kid import KidDrift, kid_drift
from flatq.evaluate.moments import reference_from_features
from flatq.evaluate.sample_size import samples_needed, z_with_power

DRIFT = Drift(
    fid_float=10.0,
    fid_quantized=10.5,
    raw=0.5,
    bias_correction=0.2,
    corrected=0.3,
    standard_error=0.1,
    half_width=0.196,
    low=0.104,
    high=0.496,
    confidence=0.95,
    n=1000,
    dim=48,
    rank=48,
    reference_rank=48,
    n_over_rank=1000 / 48,
    identical=False,
    reason=None,
    settles=True,
    relative_tolerance=None,
)
NO_INTERVAL = replace(
    DRIFT,
    bias_correction=None,
    corrected=None,
    standard_error=None,
    half_width=None,
    low=None,
    high=None,
    n=64,
    n_over_rank=64 / 48,
    reason="64 samples are 1.33 per direction, under 2.5 of 48",
)


KID = KidDrift(0.02, 0.01, 0.0196, 0.0004, 0.0396, 0.95, 64, 500, 48, 1.0, 0.9, False)


def test_pass_fail_inconclusive() -> None:
    passed = decide(DRIFT, KID, 0.5)
    assert passed == Verdict("pass", passed.reason, "fid")
    assert "+0.3, 95 % in [+0.104, +0.496], n = 1000" in passed.reason
    assert decide(DRIFT, KID, 0.1).outcome == "fail"
    open_ = decide(DRIFT, KID, 0.4)
    assert open_.outcome == "inconclusive"
    assert open_.samples_to_settle == 7849  # ((1.96 + 0.8416) * 0.1 sqrt(1000) / 0.1)^2
    assert "7849 samples" in open_.reason
    at_the_tolerance = decide(DRIFT, KID, 0.3)
    assert (at_the_tolerance.outcome, at_the_tolerance.samples_to_settle) == ("inconclusive", None)


@pytest.mark.parametrize("tolerance", [0.4, 0.2, 0.45, 0.11])
def test_the_samples_named_settle_it_four_times_of_five(tolerance: float) -> None:
    named = decide(DRIFT, KID, tolerance).samples_to_settle
    assert named is not None
    se = 0.1 * np.sqrt(1000 / named)
    half = NormalDist().inv_cdf(0.975) * se
    expected = "pass" if tolerance > 0.3 else "fail"
    settled = 0
    for value in np.random.default_rng(0).normal(0.3, se, size=4000).tolist():
        again = replace(
            DRIFT, corrected=value, standard_error=se, half_width=half, low=value - half, high=value + half,
            n=named,
        )  # fmt: skip
        settled += decide(again, KID, tolerance).outcome == expected
    assert settled / 4000 == pytest.approx(0.8, abs=0.025)  # 4 standard errors


def test_upper_end_on_the_tolerance_passes() -> None:
    assert decide(DRIFT, KID, 0.496).outcome == "pass"
    assert decide(DRIFT, KID, 0.104).outcome == "inconclusive"


def test_no_interval_names_kid_and_the_n() -> None:
    verdict = decide(NO_INTERVAL, KID, 0.5)
    assert (verdict.outcome, verdict.metric, verdict.samples_to_settle) == ("inconclusive", "fid", 480)
    assert "1.33 per direction" in verdict.reason
    assert "KID drift is +0.02" in verdict.reason
    assert decide(replace(NO_INTERVAL, settles=False), KID, 0.5).samples_to_settle is None


def test_min_samples() -> None:
    verdict = decide(DRIFT, KID, 0.5, min_samples=2000)
    assert (verdict.outcome, verdict.samples_to_settle) == ("inconclusive", 2000)
    assert decide(DRIFT, KID, 0.5, min_samples=1000).outcome == "pass"


def test_samples_that_are_not_finite_fail() -> None:
    verdict = decide(DRIFT, KID, 0.5, min_samples=10**6, not_finite=3)
    assert (verdict.outcome, verdict.metric) == ("fail", "samples")
    assert "3 of 1000 images" in verdict.reason


def test_relative_tolerance() -> None:
    relative = replace(DRIFT, relative_tolerance=0.05)
    assert decide(relative, KID, None).outcome == "fail"
    below = replace(relative, corrected=-0.3, low=-0.496, high=-0.104)
    assert decide(below, KID, None).outcome == "pass"
    assert "5 % of the float model's FID" in decide(below, KID, None).reason


def test_usage() -> None:
    for bad in (-0.1, float("nan"), float("inf")):
        with pytest.raises(DataError, match="tolerated drift"):
            decide(DRIFT, KID, bad)


class Planted:
    """48-dimensional features of images, at a chosen scale: ReLU of a random net of 20 latents."""

    def __init__(self, scale: float, kind: str, n: int = 64) -> None:
        rng = np.random.default_rng(0)
        weights = rng.normal(size=(20, 48)) / np.sqrt(20)
        z = rng.normal(size=(n, 20))

        def net(latent: np.ndarray) -> np.ndarray:
            noise = 0.05 * np.random.default_rng(1).normal(size=(len(latent), 48))
            out: np.ndarray = scale * (np.maximum(latent @ weights + 0.2, 0) + noise)
            return out

        self.r, self.x = net(rng.normal(size=(600, 20))), net(z)
        clean = self.x
        self.q = {
            "grey image": np.repeat(net(np.zeros((1, 20))), n, axis=0),
            "one image": np.repeat(clean[:1], n, axis=0),
            "mean image": np.repeat(clean.mean(axis=0, keepdims=True), n, axis=0),
            "nearly constant": clean.mean(axis=0) + 0.1 * (clean - clean.mean(axis=0)),
            "far noise": scale * np.maximum(3 * rng.normal(size=(n, 48)) + 2, 0),
            "mild": net(z + 0.15 * rng.normal(size=z.shape)),
            "shifted": clean + 0.1 * clean.std(),
            "worse": net(0.8 * z + 0.6 * rng.normal(size=z.shape)),
            "blurred": clean.mean(axis=0) + 0.8 * (clean - clean.mean(axis=0)),
            "shrunk": 0.6 * clean,
            "identical": clean.copy(),
        }[kind]

    def verdict(self) -> Verdict:
        drift = fid_drift(self.x, self.q, reference_from_features(self.r))
        return decide(drift, kid_drift(self.x, self.q, self.r), 1e-6)


@pytest.mark.parametrize("scale", [0.05, 1.0, 20.0])
@pytest.mark.parametrize("n", [8, 64])
@pytest.mark.parametrize("kind", ["grey image", "one image", "mean image", "nearly constant", "far noise"])
def test_a_planted_collapse_fails_at_any_n(kind: str, n: int, scale: float) -> None:
    verdict = Planted(scale, kind, n).verdict()
    assert (verdict.outcome, verdict.metric) == ("fail", "kid"), verdict.reason
    assert "collapsed" in verdict.reason


@pytest.mark.parametrize("scale", [0.05, 1.0, 20.0])
@pytest.mark.parametrize("n", [8, 64])
@pytest.mark.parametrize("kind", ["mild", "shifted", "worse", "blurred", "shrunk"])
def test_a_mild_degradation_is_no_collapse(kind: str, n: int, scale: float) -> None:
    verdict = Planted(scale, kind, n).verdict()
    assert (verdict.outcome, verdict.metric) == ("inconclusive", "fid"), verdict.reason


@pytest.mark.parametrize("n", [8, 64])
def test_identical_passes(n: int) -> None:
    verdict = Planted(1.0, "identical", n).verdict()
    assert (verdict.outcome, verdict.metric) == ("pass", "fid")
    assert "identical" in verdict.reason


def test_planning() -> None:
    s = 0.1 * np.sqrt(1000)
    assert samples_needed(DRIFT, 1.959964 / 0.1) == int(np.ceil((1.959964 * s / 0.1) ** 2))
    assert samples_needed(DRIFT, 1.959964 / 10.0) == 480  # never under 10 samples per feature rank
    assert z_with_power(0.95) == pytest.approx(1.959964 + 0.841621, abs=1e-6)
