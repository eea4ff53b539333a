"""The published metrics, against torch-fidelity on the same features and with the same network."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from flatq.evaluate.features import open_extractor
from flatq.evaluate.frechet import frechet_distance
from flatq.evaluate.kid import kid_drift
from flatq.evaluate.moments import reference_from_features
from flatq.evaluate.precision_recall import manifold_of, precision_recall

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.usefixtures("torch_fidelity")

D = 48


def _features(scales: np.ndarray | float = 1.0, n: int = 400, m: int = 600) -> tuple[np.ndarray, np.ndarray]:
    """Skewed, correlated and not negative, as pooled activations are."""
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(D, D)) / np.sqrt(D)
    x = np.maximum(rng.normal(size=(n, D)) @ mix + 0.3, 0) * scales
    r = np.maximum(1.1 * rng.normal(size=(m, D)) @ mix + 0.2, 0) * scales
    return x, r


@pytest.mark.parametrize("span", [0, 3])
def test_fid(span: int) -> None:
    """Features of one scale, and of scales over three decades (a covariance over six)."""
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    x, r = _features(np.logspace(0, -span, D))
    theirs = fid_statistics_to_metric(
        fid_features_to_statistics(torch.from_numpy(x)),
        fid_features_to_statistics(torch.from_numpy(r)),
        False,
    )["frechet_inception_distance"]
    assert frechet_distance(x, reference_from_features(r)) == pytest.approx(theirs, rel=1e-6)


def test_kid_drift() -> None:
    from torch_fidelity.metric_kid import kid_features_to_metric

    x, r = _features(n=300, m=300)
    q = 1.1 * x + 0.1
    theirs = [
        kid_features_to_metric(
            torch.from_numpy(side), torch.from_numpy(r), kid_subsets=1, kid_subset_size=300, verbose=False
        )["kernel_inception_distance_mean"]
        for side in (x, q)
    ]
    assert kid_drift(x, q, r).drift == pytest.approx(theirs[1] - theirs[0], rel=1e-6)


@pytest.mark.parametrize("save_cpu_ram", [False, True])
def test_precision_and_recall(save_cpu_ram: bool) -> None:
    from torch_fidelity.metric_prc import prc_features_to_metric

    x, r = _features()
    theirs = prc_features_to_metric(
        torch.from_numpy(x), torch.from_numpy(r), save_cpu_ram=save_cpu_ram, verbose=False
    )
    ours = precision_recall(manifold_of(x), manifold_of(r))
    # shares of 400 and of 600 points: equal counts, through their float32
    assert ours.precision == pytest.approx(theirs["precision"], abs=1e-6)
    assert ours.recall == pytest.approx(theirs["recall"], abs=1e-6)
    assert 0.0 < ours.recall < 1.0


def test_inception_features(inception_weights: Path, torch_fidelity: ModuleType) -> None:
    theirs = torch_fidelity.utils.create_feature_extractor(
        "inception-v3-compat",
        ["2048"],
        cuda=False,
        verbose=False,
        feature_extractor_weights_path=str(inception_weights),
    )
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 20, 20), dtype=np.uint8)
    pixels[1] //= 8
    with torch.no_grad():
        (expected,) = theirs(torch.from_numpy(pixels))
    net = open_extractor(
        "inception",
        image_shape=(3, 20, 20),
        inception_weights=inception_weights,
        threads=torch.get_num_threads(),
    )
    got = net.extract(pixels)
    assert got.shape == (2, 2048)
    assert got.std(axis=0).mean() > 0.01
    # the same operators in the same order; 1e-6 of their scale leaves room for another thread count
    np.testing.assert_allclose(
        got, expected.double().numpy(), rtol=0, atol=1e-6 * float(expected.abs().max())
    )
