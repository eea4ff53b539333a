from __future__ import annotations

import sys

import numpy as np
import pytest

from flatq.errors import DataError, MissingRuntimeError
from flatq.images import load_images


def test_digits_and_their_split() -> None:
    sklearn = pytest.importorskip("sklearn.datasets")
    everything, train, heldout = (load_images(s) for s in ("digits", "digits:train", "digits:heldout"))
    assert everything.pixels.shape == (1797, 1, 8, 8)
    assert everything.shape == (1, 8, 8)
    raw = sklearn.load_digits().images
    assert np.abs(everything.pixels[:, 0] * (16 / 255) - raw).max() <= 0.5 * 16 / 255 + 1e-12
    assert everything.pixels.max() == 255
    # golden values: the bundled feature network was trained on this split
    assert train.digest == "4ad5a586d8a3b58e3eaed7a7fcb7b3f4f5df12e73a5ddb31a1091ad48733b785"
    assert (len(train.pixels), len(heldout.pixels)) == (1500, 297)
    parts = np.concatenate([train.pixels, heldout.pixels]).reshape(1797, -1)
    both = (parts, everything.pixels.reshape(1797, -1))
    assert np.array_equal(*(a[np.lexsort(a.T)] for a in both))
    order = np.random.RandomState(0).permutation(1797)
    classes = sklearn.load_digits().target
    for images, rows in ((everything, slice(None)), (train, order[:1500]), (heldout, order[1500:])):
        assert images.labels is not None
        assert np.array_equal(images.labels, classes[rows])
        assert images.preprocessing == "none"
    assert load_images("digits", limit=5).pixels.shape == (5, 1, 8, 8)
    assert load_images("digits", limit=2, size=4, resize="stretch", channels=3).pixels.shape == (2, 3, 4, 4)
    first = load_images("digits", limit=5).labels
    assert first is not None
    assert np.array_equal(first, classes[:5])
    with pytest.raises(DataError, match="no part digits:test"):
        load_images("digits:test")


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingRuntimeError, match=r'pip install "flatq\[cpu\]"'):
        load_images("digits")
