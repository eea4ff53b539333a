"""scikit-learn's handwritten digits, whole or in two parts, with their labels."""

from __future__ import annotations

import numpy as np

from flatq.errors import DataError
from flatq.images.labels import I64
from flatq.images.pixels import U8
from flatq.packages import require

__all__ = ["read_digits"]


def read_digits(source: str) -> tuple[U8, I64]:
    """uint8 [n, 1, 8, 8] and int64 [n], the classes 0..9.

    Raises:
        DataError: `source` is not one of the digits.
        MissingRuntimeError: scikit-learn is not installed.
    """
    parts = {"digits:train": slice(1500), "digits:heldout": slice(1500, None)}
    if source != "digits" and source not in parts:
        raise DataError(
            f"there is no part {source}", expected='"digits", "digits:train" or "digits:heldout"', got=source
        )
    bunch = require("sklearn.datasets", "scikit-learn", "cpu", "scikit-learn").load_digits()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    labels = bunch.target.astype(np.int64)
    if source == "digits":
        return pixels, labels
    # RandomState, because its stream is frozen for ever (NEP 19), default_rng's is not
    order = np.random.RandomState(0).permutation(len(pixels))[parts[source]]
    return pixels[order], labels[order]
