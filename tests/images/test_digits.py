from __future__ import annotations

import builtins
from typing import Any

import numpy as np
import pytest

from flatq.errors import DataError, MissingRuntimeError
from flatq.images import digit_labels, load_images


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
    assert np.array_equal(digit_labels("digits:heldout"), digit_labels("digits")[order[1500:]])
    assert load_images("digits", limit=5).pixels.shape == (5, 1, 8, 8)
    assert load_images("digits", limit=2, size=4, resize="stretch", channels=3).pixels.shape == (2, 3, 4, 4)
    for images in (everything, train, heldout, load_images("digits:heldout", limit=5)):
        assert images.labels is not None
        assert np.array_equal(images.labels, digit_labels(images.name)[: len(images.pixels)])
        assert images.preprocessing == "none"
    with pytest.raises(DataError, match="no part digits:test"):
        load_images("digits:test")


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def block(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("sklearn"):
            raise ImportError("blocked")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", block)
    with pytest.raises(MissingRuntimeError, match=r'pip install "flatq\[cpu\]"'):
        load_images("digits")
