from __future__ import annotations

import numpy as np
import pytest

from flatq.evaluate import precision_recall as prc_module
from flatq.evaluate.precision_recall import manifold_of, precision_recall


def _direct(x: np.ndarray, r: np.ndarray, k: int) -> tuple[float, float]:
    """Equation 1 of the paper, point by point."""

    def radius(points: np.ndarray, i: int) -> float:
        return sorted(np.linalg.norm(points - points[i], axis=1))[k]  # its own distance 0 comes first

    def on(point: np.ndarray, points: np.ndarray) -> bool:
        return any(np.linalg.norm(point - p) <= radius(points, i) for i, p in enumerate(points))

    return float(np.mean([on(p, r) for p in x])), float(np.mean([on(p, x) for p in r]))


@pytest.mark.parametrize("entries", [4_000_000, 50, 1])
@pytest.mark.parametrize("k", [1, 3])
def test_against_the_definition(entries: int, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prc_module, "_BLOCK_ENTRIES", entries)
    rng = np.random.default_rng(0)
    x, r = rng.normal(size=(25, 4)) * 0.7 + 100, rng.normal(size=(31, 4)) + 100
    got = precision_recall(manifold_of(x, k), manifold_of(r, k))
    assert (got.precision, got.recall) == _direct(x, r, k)
    assert 0.0 < got.recall < got.precision
    assert (got.k, got.n, got.n_reference) == (k, 25, 31)


def test_ends() -> None:
    rng = np.random.default_rng(1)
    r = rng.normal(size=(200, 6))
    same = precision_recall(manifold_of(r), manifold_of(r))
    assert (same.precision, same.recall) == (1.0, 1.0)
    far = precision_recall(manifold_of(r + 1000), manifold_of(r))
    assert (far.precision, far.recall) == (0.0, 0.0)
    one = precision_recall(manifold_of(np.repeat(r[:1], 50, axis=0)), manifold_of(r))
    assert one.precision == 1.0
    assert one.recall <= 1 / 200  # at most the image that is repeated


def test_a_large_set_is_drawn_from_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prc_module, "MAX_POINTS", 200)
    rng = np.random.default_rng(2)
    classes = np.repeat(np.arange(10), 100)  # sorted by class
    turns = np.tile(np.arange(10), 100)  # or in turns
    for labels in (classes, turns):
        taken = manifold_of(labels[:, None] + 0.01 * rng.normal(size=(1000, 2)))
        assert len(taken.points) == 200
        counts = np.bincount(np.rint(taken.points[:, 0]).astype(int), minlength=10)
        assert counts.min() > 5
    again = rng.normal(size=(1000, 2))
    assert np.array_equal(manifold_of(again).points, manifold_of(again).points)
