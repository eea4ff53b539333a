"""numpy archives of images, also the batches of guided-diffusion: `arr_0` and, with classes, `arr_1`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flatq.errors import DataError, one_line
from flatq.images.archives import check_member
from flatq.images.labels import integer_labels
from flatq.images.stack import Contents, Target, convert_array

__all__ = ["MAX_ARRAY_BYTES", "read_npz"]

MAX_ARRAY_BYTES = 64 * 2**30
"""An array that unpacks to more is refused unread: 300,000 RGB images of 256 x 256 are as large."""


def read_npz(path: Path, target: Target, limit: int | None) -> Contents:
    """uint8 images under `arr_0` or `images`, [n, H, W, C] or [n, C, H, W]; labels under `arr_1`.

    Raises:
        DataError: a damaged archive, pickled objects, arrays of another dtype, shape or length, no images.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            for info in archive.zip.infolist():
                check_member(info, path, MAX_ARRAY_BYTES)
            keys = archive.files
            key = next((k for k in ("arr_0", "images") if k in keys), None)
            wanted = [] if key is None else [key, "arr_1"] if key == "arr_0" and "arr_1" in keys else [key]
            arrays = [np.asarray(archive[name]) for name in wanted]
    except DataError:
        raise
    except Exception as error:  # numpy and zipfile raise many types for damaged files
        raise DataError(
            f"{path} cannot be read",
            expected="a .npz of uint8 images, nothing pickled",
            got=one_line(error),
            next_step="write it with numpy.savez(path, images)",
        ) from error
    if not arrays:
        raise DataError(
            f"{path} holds no images",
            expected="the key arr_0 or images",
            got=", ".join(keys) or "no keys",
            next_step="write it with numpy.savez(path, images)",
        )
    images = arrays[0]
    channels_first = _channels_first(images, path)
    labels = None if len(arrays) == 1 else integer_labels(arrays[1], len(images), f"arr_1 of {path}")[:limit]
    pixels = images[:limit] if channels_first else images[:limit].transpose(0, 3, 1, 2)
    converted, done = convert_array(pixels, target)
    return Contents(converted, labels, done)


def _channels_first(images: NDArray[Any], path: Path) -> bool:
    shape = images.shape
    first, last = (shape[axis] in (1, 3) if len(shape) == 4 else False for axis in (1, 3))
    if images.dtype != np.uint8 or first == last or 0 in shape:
        raise DataError(
            f"{path} can be read in two ways" if first and last else f"{path} holds no images",
            expected="uint8 [n, H, W, C] or [n, C, H, W] with n at least 1 and C 1 or 3",
            got=f"{images.dtype} {list(shape)}",
        )
    return first
