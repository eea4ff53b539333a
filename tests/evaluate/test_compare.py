from __future__ import annotations

import numpy as np
import pytest

from flatq.errors import DataError
from flatq.evaluate.compare import Referee, compare, open_referee, stored_referee
from flatq.evaluate.drift import fid_drift
from flatq.evaluate.features import open_features
from flatq.evaluate.frechet import frechet_side
from flatq.evaluate.gate import decide
from flatq.evaluate.moments import Moments, reference_from_moments
from flatq.evaluate.prc import manifold_of, precision_recall
from flatq.evaluate.reference import ReferenceSource, StoredReference
from flatq.images import ImageSet, load_images, to_float

pytest.importorskip("onnxruntime")
pytest.importorskip("sklearn")

N = 600


@pytest.fixture(scope="module")
def images() -> ImageSet:
    return load_images("digits")


@pytest.fixture(scope="module")
def referee(images: ImageSet) -> Referee:
    return open_referee(images, open_features(None, image_shape=images.shape))


@pytest.fixture(scope="module")
def samples(images: ImageSet) -> np.ndarray:
    rng = np.random.default_rng(0)
    x = to_float(images.pixels[:N])
    noisy: np.ndarray = (x + 0.05 * rng.normal(size=x.shape)).astype(np.float32)
    return noisy


def _perturbed(samples: np.ndarray, noise: float) -> np.ndarray:
    rng = np.random.default_rng(1)
    q: np.ndarray = (samples + noise * rng.normal(size=samples.shape)).astype(np.float32)
    return q


def test_identical_is_zero(referee: Referee, samples: np.ndarray) -> None:
    result = compare(referee, samples, samples.copy(), indices=range(N))
    assert result.finite
    assert result.drift is not None
    assert result.drift.identical
    assert result.drift.n == N
    assert result.rms_distance_max == 0.0
    assert np.array_equal(result.sidecar["features_float"], result.sidecar["features_quantized"])


def test_noise_moves_it(referee: Referee, samples: np.ndarray) -> None:
    result = compare(referee, samples, _perturbed(samples, 0.3), indices=range(100, 100 + N))
    assert result.drift is not None
    assert result.kid is not None
    assert result.drift.corrected is not None
    assert result.drift.standard_error is not None
    assert result.drift.corrected > 5 * result.drift.standard_error
    assert result.kid.low > 0
    assert result.rms_distance_mean == pytest.approx(0.3, rel=0.02)
    sidecar = result.sidecar
    assert set(sidecar) == {
        "indices",
        "image_distance",
        "features_float",
        "features_quantized",
        "influence_float",
        "influence_quantized",
    }
    assert sidecar["indices"][0] == 100
    influence = sidecar["influence_quantized"] - sidecar["influence_float"]
    se = influence.std(ddof=1) / np.sqrt(N)
    assert se == pytest.approx(result.drift.standard_error, rel=1e-9)  # the sidecar explains the interval
    assert result.rms_distance_max == sidecar["image_distance"].max()


def test_shared_float_features_change_nothing(referee: Referee, samples: np.ndarray) -> None:
    q = _perturbed(samples, 0.1)
    features = referee.extract(samples)
    side = frechet_side(features, referee.reference)
    shared = compare(referee, samples, q, indices=range(N), features_float=features, side_float=side)
    assert shared.drift == compare(referee, samples, q, indices=range(N)).drift
    assert shared.drift == fid_drift(features, referee.extract(q), referee.reference)


def test_collapse_has_no_influence_and_fails(referee: Referee, samples: np.ndarray) -> None:
    result = compare(referee, samples, np.zeros_like(samples), indices=range(N))
    assert "influence_quantized" not in result.sidecar
    assert decide(result.drift, result.kid, 1e9, finite=result.finite).outcome == "fail"


def test_not_finite(referee: Referee, samples: np.ndarray) -> None:
    q = samples.copy()
    q[3, 0, 0, 0] = np.nan
    result = compare(referee, samples, q, indices=range(N))
    assert (result.finite, result.drift, result.kid, result.rms_distance_mean) == (False, None, None, None)
    assert np.flatnonzero(~np.isfinite(result.sidecar["image_distance"])).tolist() == [3]
    assert "features_quantized" not in result.sidecar
    with pytest.raises(DataError, match="float model"):
        compare(referee, q, samples, indices=range(N))


@pytest.fixture(scope="module")
def moments_only(referee: Referee) -> Referee:
    source = ReferenceSource("statistics", "digits", "ab" * 32, 1797, (1, 8, 8))
    stored = StoredReference(referee.reference, source, referee.net.name, referee.net.digest)
    return stored_referee(stored, referee.net)


def test_statistics_alone_give_the_same_drift_and_another_kid(
    referee: Referee, moments_only: Referee, samples: np.ndarray
) -> None:
    q = _perturbed(samples, 0.3)
    full, bare = (compare(r, samples, q, indices=range(N)) for r in (referee, moments_only))
    assert bare.drift == full.drift
    assert (full.kid.against, bare.kid.against) == ("reference", "float")
    assert bare.kid.spread_float == pytest.approx(full.kid.spread_float)
    assert full.prc is not None
    assert bare.prc is None
    assert decide(bare.drift, bare.kid, 1e9, finite=True).outcome == "pass"


@pytest.mark.parametrize("image", ["black", "white", "mean", "first"])
def test_a_model_that_repeats_one_image_fails_without_reference_features(
    image: str, moments_only: Referee, samples: np.ndarray
) -> None:
    fill = {"black": -1.0, "white": 1.0, "mean": samples.mean(axis=0), "first": samples[0]}[image]
    q = np.broadcast_to(np.asarray(fill, np.float32), samples.shape).copy()
    for n in (20, N):
        result = compare(moments_only, samples[:n], q[:n], indices=range(n))
        verdict = decide(result.drift, result.kid, 1e9, finite=result.finite)
        assert (verdict.outcome, verdict.metric) == ("fail", "kid")
    # alike, but not one image: the distance from the float samples tells, and says what it is
    rng = np.random.default_rng(2)
    noise = rng.uniform(-1, 1, samples.shape).astype(np.float32)
    result = compare(moments_only, samples, noise, indices=range(N))
    verdict = decide(result.drift, result.kid, 1e9, finite=result.finite)
    assert verdict.outcome == "fail"
    assert "KID from the float samples" in verdict.reason


def test_precision_and_recall_of_a_comparison(referee: Referee, samples: np.ndarray) -> None:
    result = compare(referee, samples, _perturbed(samples, 0.1), indices=range(N))
    features = result.sidecar["features_quantized"]
    assert referee.features is not None
    assert result.prc == precision_recall(manifold_of(features), manifold_of(referee.features))
    three = slice(0, 3)  # as many as neighbours: none
    assert compare(referee, samples[three], -samples[three], indices=range(3)).prc is None


def test_statistics_must_fit_the_extractor(referee: Referee) -> None:
    def stored(**changes: object) -> StoredReference:
        source = ReferenceSource("statistics", "digits", "ab" * 32, 1797, (1, 8, 8))
        fields = {
            "reference": referee.reference,
            "source": source,
            "extractor_name": "digits48",
            "extractor_digest": referee.net.digest,
        }
        return StoredReference(**(fields | changes))

    assert stored_referee(stored(), referee.net).features is None
    assert stored_referee(stored(extractor_digest=None), referee.net).reference is referee.reference
    small = reference_from_moments(Moments(9, np.zeros(5), np.eye(5)))
    with pytest.raises(DataError, match=r"48 dimensions[\s\S]*5 dimensions"):
        stored_referee(stored(reference=small), referee.net)
    with pytest.raises(DataError, match="another extractor"):
        stored_referee(stored(extractor_digest="0" * 64), referee.net)
    other = ReferenceSource("statistics", "big", "ab" * 32, 1797, (1, 16, 16))
    with pytest.raises(DataError, match="another shape"):
        stored_referee(stored(source=other), referee.net)


def test_pairs_must_fit(referee: Referee, samples: np.ndarray) -> None:
    with pytest.raises(DataError, match="pair up"):
        compare(referee, samples, samples[:-1], indices=range(N))
    with pytest.raises(DataError, match="pair up"):
        compare(referee, samples, samples, indices=range(N - 1))
