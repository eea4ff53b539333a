from __future__ import annotations

import numpy as np
import pytest

from flatq.errors import DataError
from flatq.evaluate.compare import Referee, compare, open_referee
from flatq.evaluate.features import open_features
from flatq.evaluate.gate import decide
from flatq.images import load_images, to_float

pytest.importorskip("onnxruntime")
pytest.importorskip("sklearn")

N = 600


@pytest.fixture(scope="module")
def referee() -> Referee:
    images = load_images("digits")
    return open_referee(images, open_features(None, image_shape=images.shape))


@pytest.fixture(scope="module")
def samples(referee: Referee) -> np.ndarray:
    rng = np.random.default_rng(0)
    x = to_float(referee.images.pixels[:N])
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
    shared = compare(referee, samples, q, indices=range(N), features_float=referee.extract(samples))
    assert shared.drift == compare(referee, samples, q, indices=range(N)).drift


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


def test_pairs_must_fit(referee: Referee, samples: np.ndarray) -> None:
    with pytest.raises(DataError, match="pair up"):
        compare(referee, samples, samples[:-1], indices=range(N))
    with pytest.raises(DataError, match="pair up"):
        compare(referee, samples, samples, indices=range(N - 1))
