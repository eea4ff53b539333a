"""numpy archives of images, also the batches of guided-diffusion: `arr_0` and, with classes, `arr_1`."""

from __future__ import annotations

from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flatq.errors import DataError
from flatq.images.archives import check_member, open_zip
from flatq.images.labels import I64, integer_labels
from flatq.images.stack import READ_ERRORS, Contents, Target, convert_array

__all__ = ["MAX_ARRAY_BYTES", "read_npz"]

MAX_ARRAY_BYTES = 64 * 2**30
"""An array that unpacks to more is refused unread: 300,000 RGB images of 256 x 256 are as large."""

_EXPECTED = "a .npz of uint8 images, nothing pickled"


def read_npz(path: Path, target: Target, limit: int | None) -> Contents:
    """uint8 images under `arr_0` or `images`, [n, H, W, C] or [n, C, H, W]; labels under `arr_1`.

    Raises:
        DataError: a damaged archive, pickled objects, arrays of another dtype, shape or length, no images.
    """
    with open_zip(path, _EXPECTED) as archive:
        keys = [info.filename.removesuffix(".npy") for info in archive.infolist()]
        for info in archive.infolist():
            check_member(info, path, MAX_ARRAY_BYTES)
    key = next((k for k in ("arr_0", "images") if k in keys), None)
    if key is None:
        raise DataError(
            f"{path} holds no images",
            expected="the key arr_0 or images",
            got=", ".join(keys) or "no keys",
            next_step="write it with numpy.savez(path, images)",
        )
    images = _array(path, key)
    channels_first = _channels_first(images, path)
    labels: I64 | None = None
    if key == "arr_0" and "arr_1" in keys:
        labels = integer_labels(_array(path, "arr_1"), len(images), f"arr_1 of {path}")[:limit]
    pixels = images[:limit] if channels_first else images[:limit].transpose(0, 3, 1, 2)
    converted, done = convert_array(pixels, target)
    return Contents(converted, labels, done)


def _array(path: Path, key: str) -> NDArray[Any]:
    """One array, whole; numpy compares the header with the data, and unpickles nothing."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            array: NDArray[Any] = arrays[key]
        if not isinstance(array, np.ndarray):  # numpy gives the bytes of a member that is no array
            raise ValueError("no array")
    except (*READ_ERRORS, TokenError, SyntaxError) as error:  # the last two from numpy's parser of headers
        raise DataError(
            f"{key} in {path} cannot be read",
            expected=_EXPECTED,
            got=str(error) or type(error).__name__,
            next_step="write it with numpy.savez(path, images)",
        ) from error
    return array


def _channels_first(images: NDArray[Any], path: Path) -> bool:
    shape = images.shape
    got = f"{images.dtype} {list(shape)}"
    first, last = (shape[axis] in (1, 3) if len(shape) == 4 else False for axis in (1, 3))
    if images.dtype != np.uint8 or first == last:
        raise DataError(
            f"{path} holds no images that flatq can read" if not first else f"{path} can be read in two ways",
            expected="uint8 [n, H, W, C] or [n, C, H, W] with C 1 or 3",
            got=got,
        )
    if 0 in shape:
        raise DataError(f"{path} holds no images", expected="at least one", got=got)
    return first
