"""One model against its float model, from features of digits with noise."""

from __future__ import annotations

import numpy as np
import pytest

from flatq.errors import DataError
from flatq.evaluate import compare as compare_module
from flatq.evaluate.compare import Comparison, FeatureSet, compare
from flatq.evaluate.drift import fid_drift
from flatq.evaluate.features import open_features
from flatq.evaluate.gate import decide
from flatq.evaluate.kid import kid_drift
from flatq.evaluate.moments import Moments, reference_from_moments
from flatq.evaluate.precision_recall import manifold_of, precision_recall
from flatq.evaluate.reference import MeasuredReference, from_statistics, measure_reference
from flatq.evaluate.statistics_file import ReferenceSource, StoredReference
from flatq.images import ImageSet, load_images, to_float, to_uint8

pytest.importorskip("onnxruntime")
pytest.importorskip("sklearn")

N = 600


@pytest.fixture(scope="module")
def images() -> ImageSet:
    return load_images("digits")


@pytest.fixture(scope="module")
def reference(images: ImageSet) -> MeasuredReference:
    return measure_reference(images, open_features(None, image_shape=images.shape))


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


def _side(reference: MeasuredReference, samples: np.ndarray) -> FeatureSet:
    return FeatureSet(reference.extractor.extract(to_uint8(samples)), reference)


def _compare(reference: MeasuredReference, x: np.ndarray, q: np.ndarray) -> Comparison:
    return compare(_side(reference, x), _side(reference, q))


def test_identical_is_zero(reference: MeasuredReference, samples: np.ndarray) -> None:
    result = _compare(reference, samples, samples.copy())
    assert result.drift is not None
    assert result.drift.identical
    assert result.drift.n == N
    assert result.influence_float is result.influence_quantized is not None


def test_noise_moves_it(reference: MeasuredReference, samples: np.ndarray) -> None:
    x, q = _side(reference, samples), _side(reference, _perturbed(samples, 0.3))
    result = compare(x, q)
    assert result.drift is not None
    assert result.kid is not None
    assert result.drift.corrected is not None
    assert result.drift.standard_error is not None
    assert result.drift.corrected > 5 * result.drift.standard_error
    assert result.kid.low > 0
    assert result.influence_float is not None
    assert result.influence_quantized is not None
    se = (result.influence_quantized - result.influence_float).std(ddof=1) / np.sqrt(N)
    assert se == pytest.approx(result.drift.standard_error, rel=1e-9)  # the influences explain the interval
    assert result.drift == fid_drift(x.features, q.features, reference.statistics)
    assert result.kid == kid_drift(x.features, q.features, reference.features)


def test_the_kid_is_of_the_first_pairs(
    reference: MeasuredReference, samples: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare_module, "KID_PAIRS", 100)
    q = _perturbed(samples, 0.3)
    result = _compare(reference, samples, q)
    assert result.kid == _compare(reference, samples[:100], q[:100]).kid
    assert result.drift is not None
    assert result.drift.n == N
    assert decide(result.drift, result.kid, 1e9).outcome == "pass"


def test_collapse_has_no_influence_and_fails(reference: MeasuredReference, samples: np.ndarray) -> None:
    result = _compare(reference, samples, np.zeros_like(samples))
    assert result.influence_quantized is None
    assert decide(result.drift, result.kid, 1e9).outcome == "fail"


@pytest.fixture(scope="module")
def moments_only(reference: MeasuredReference) -> MeasuredReference:
    source = ReferenceSource("statistics", "digits", "ab" * 32, 1797, (1, 8, 8))
    net = reference.extractor
    return from_statistics(StoredReference(reference.statistics, source, net.name, net.digest), net)


def test_statistics_alone_give_the_same_drift_and_another_kid(
    reference: MeasuredReference, moments_only: MeasuredReference, samples: np.ndarray
) -> None:
    q = _perturbed(samples, 0.3)
    full, bare = (_compare(r, samples, q) for r in (reference, moments_only))
    assert bare.drift == full.drift
    assert full.kid is not None
    assert bare.kid is not None
    assert (full.kid.against, bare.kid.against) == ("reference", "float")
    assert bare.kid.spread_float == pytest.approx(full.kid.spread_float)
    assert _side(reference, q).precision_recall is not None
    assert _side(moments_only, q).precision_recall is None
    assert decide(bare.drift, bare.kid, 1e9).outcome == "pass"


@pytest.mark.parametrize("image", ["black", "white", "mean", "first"])
def test_a_model_that_repeats_one_image_fails_without_reference_features(
    image: str, moments_only: MeasuredReference, samples: np.ndarray
) -> None:
    fill = {"black": -1.0, "white": 1.0, "mean": samples.mean(axis=0), "first": samples[0]}[image]
    q = np.broadcast_to(np.asarray(fill, np.float32), samples.shape).copy()
    for n in (20, N):
        result = _compare(moments_only, samples[:n], q[:n])
        verdict = decide(result.drift, result.kid, 1e9)
        assert (verdict.outcome, verdict.metric) == ("fail", "kid")
    # alike, but not one image: the distance from the float samples tells, and says what it is
    rng = np.random.default_rng(2)
    noise = rng.uniform(-1, 1, samples.shape).astype(np.float32)
    result = _compare(moments_only, samples, noise)
    verdict = decide(result.drift, result.kid, 1e9)
    assert verdict.outcome == "fail"
    assert "KID from the float samples" in verdict.reason


def test_precision_and_recall(reference: MeasuredReference, samples: np.ndarray) -> None:
    side = _side(reference, _perturbed(samples, 0.1))
    assert reference.features is not None
    assert side.precision_recall == precision_recall(
        manifold_of(side.features), manifold_of(reference.features)
    )
    assert _side(reference, samples[:3]).precision_recall is None  # as many as neighbours


def test_statistics_must_fit_the_extractor(reference: MeasuredReference) -> None:
    def stored(**changes: object) -> StoredReference:
        source = ReferenceSource("statistics", "digits", "ab" * 32, 1797, (1, 8, 8))
        fields = {
            "reference": reference.statistics,
            "source": source,
            "extractor_name": "digits48",
            "extractor_digest": reference.extractor.digest,
        }
        return StoredReference(**(fields | changes))

    assert from_statistics(stored(), reference.extractor).features is None
    assert (
        from_statistics(stored(extractor_digest=None), reference.extractor).statistics is reference.statistics
    )
    small = reference_from_moments(Moments(9, np.zeros(5), np.eye(5)))
    with pytest.raises(DataError, match=r"48 dimensions[\s\S]*5 dimensions"):
        from_statistics(stored(reference=small), reference.extractor)
    with pytest.raises(DataError, match="another extractor"):
        from_statistics(stored(extractor_digest="0" * 64), reference.extractor)
    other = ReferenceSource("statistics", "big", "ab" * 32, 1797, (1, 16, 16))
    with pytest.raises(DataError, match="another shape"):
        from_statistics(stored(source=other), reference.extractor)
