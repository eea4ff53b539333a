"""scikit-learn's handwritten digits, whole or in two parts, with their labels."""

from __future__ import annotations

import numpy as np

from flatq.errors import DataError, MissingRuntimeError
from flatq.images.labels import I64
from flatq.images.pixels import U8

__all__ = ["DIGITS_TRAIN_COUNT", "digit_labels", "read_digits"]

DIGITS_TRAIN_COUNT = 1500


def digit_labels(source: str) -> I64:
    """The classes 0..9, int64 [n], in the order of `load_images(source)` for a source of digits.

    Raises:
        DataError: `source` is not one of the digits.
        MissingRuntimeError: scikit-learn is not installed.
    """
    return read_digits(source)[1]


def read_digits(source: str) -> tuple[U8, I64]:
    """uint8 [n, 1, 8, 8] and int64 [n]."""
    slices = {
        "digits:train": slice(DIGITS_TRAIN_COUNT),
        "digits:heldout": slice(DIGITS_TRAIN_COUNT, None),
    }
    if source != "digits" and source not in slices:
        raise DataError(
            f"there is no part {source}", expected='"digits", "digits:train" or "digits:heldout"', got=source
        )
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingRuntimeError(
            "the digits come with scikit-learn, which is not installed",
            expected="the package scikit-learn",
            got=str(error),
            next_step='pip install "flatq[cpu]"',
        ) from error
    bunch = load_digits()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    labels = bunch.target.astype(np.int64)
    if source == "digits":
        return pixels, labels
    # RandomState, because its stream is frozen for ever (NEP 19), default_rng's is not
    order = np.random.RandomState(0).permutation(len(pixels))[slices[source]]
    return pixels[order], labels[order]
