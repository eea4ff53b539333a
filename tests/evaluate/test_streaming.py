"""Moments and drifts of features that stay on disk."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from flatq.errors import DataError
from flatq.evaluate.drift import fid_drift
from flatq.evaluate.moments import moments_of, reference_from_features, same_rows

SCALE = Path(__file__).parents[2] / "benchmarks" / "drift_scale.py"


def test_blocks_change_no_digit_that_counts() -> None:
    """Three blocks far from zero, where sums of squares would lose all digits: 1e6 +- 1 costs 1e-12."""
    x = np.random.default_rng(1).normal(size=(5000, 4)) + 1e6
    found = moments_of(x)
    assert found.n == len(x)
    np.testing.assert_allclose(found.mean, x.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(found.cov, np.cov(x.T), rtol=1e-9, atol=1e-9)
    assert same_rows(x, x.copy())
    x2 = x.copy()
    x2[-1, -1] += 1e-9
    assert not same_rows(x, x2)


def test_mapped_features_give_the_drift_in_little_memory(tmp_path: Path) -> None:
    """Both sides are 2 x 10 MB on disk and would be 2 x 20 MB in float64; blocks of 2048 rows are 2 MB."""
    n, d = 20_000, 128
    rng = np.random.default_rng(2)
    x = np.maximum(rng.normal(size=(n, d)) + 0.3, 0).astype(np.float32)
    q = x + 0.1 * rng.normal(size=(n, d)).astype(np.float32)
    reference = reference_from_features(x[:2000] * np.float32(1.1))
    in_memory = fid_drift(x.astype(np.float64), q.astype(np.float64), reference)
    for name, array in (("x", x), ("q", q)):
        np.save(tmp_path / f"{name}.npy", array)
    mapped = [np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("x", "q")]
    tracemalloc.start()
    try:
        drift = fid_drift(*mapped, reference)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 14e6
    assert drift == in_memory


def test_mapped_features_that_are_not_finite_are_named(tmp_path: Path) -> None:
    x = np.random.default_rng(3).normal(size=(5000, 3)).astype(np.float32)
    x[4321, 1] = np.inf
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(DataError, match="not finite") as caught:
        moments_of(np.load(tmp_path / "x.npy", mmap_mode="r"))
    assert "first row 4321" in str(caught.value)


def test_the_benchmark_of_scale_runs() -> None:
    found = subprocess.run(
        [sys.executable, SCALE, "-n", "1000", "--dim", "32"], check=True, stdout=subprocess.PIPE, text=True
    )
    result = json.loads(found.stdout)
    assert (result["n"], result["dim"]) == (1000, 32)
    assert result["corrected"] is not None


@pytest.mark.slow
def test_fifty_thousand_in_2048_dimensions_within_2_gb() -> None:
    found = subprocess.run([sys.executable, SCALE], check=True, stdout=subprocess.PIPE, text=True)
    assert json.loads(found.stdout)["peak_bytes"] < 2e9
