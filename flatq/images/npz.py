"""numpy archives of images, also the batches of guided-diffusion: `arr_0` and, with classes, `arr_1`.

The header of an array is checked against the size of the member before anything is allocated, and with a
limit only the first images are read.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from math import prod
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from flatq.errors import DataError
from flatq.images.archives import check_member, open_zip
from flatq.images.labels import I64, integer_labels
from flatq.images.pixels import U8
from flatq.images.stack import READ_ERRORS, Contents, Target, convert_array

__all__ = ["MAX_ARRAY_BYTES", "read_npz"]

MAX_ARRAY_BYTES = 64 * 2**30
"""An array that unpacks to more is refused unread: 300,000 RGB images of 256 x 256 are as large."""

_EXPECTED = "a .npz of uint8 images, nothing pickled"
_CHUNK_BYTES = 2**24
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


@dataclass(frozen=True)
class _Member:
    """A .npy inside a .npz, its header read and its size found to be true."""

    info: zipfile.ZipInfo
    offset: int
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


def read_npz(path: Path, target: Target, limit: int | None) -> Contents:
    """uint8 images under `arr_0` or `images`, [n, H, W, C] or [n, C, H, W]; labels under `arr_1`.

    Raises:
        DataError: a damaged archive, pickled objects, arrays of another dtype, shape or length, no images.
    """
    with open_zip(path, _EXPECTED) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        key = next((k for k in ("arr_0", "images") if k in members), None)
        if key is None:
            raise DataError(
                f"{path} holds no images",
                expected="the key arr_0 or images",
                got=", ".join(members) or "no keys",
                next_step="write it with numpy.savez(path, images)",
            )
        images = _header(archive, members[key], path)
        channels_first = _channels_first(images, path)
        labels: I64 | None = None
        if key == "arr_0" and "arr_1" in members:
            header = _header(archive, members["arr_1"], path)
            array = _array(archive, header, path)
            labels = integer_labels(array, images.shape[0], f"arr_1 of {path}")[:limit]
        pixels: U8 = _array(archive, images, path, limit)
    converted, done = convert_array(pixels if channels_first else pixels.transpose(0, 3, 1, 2), target)
    return Contents(converted, labels, done)


def _channels_first(images: _Member, path: Path) -> bool:
    shape = images.shape
    first, last = (shape[axis] in (1, 3) if len(shape) == 4 else False for axis in (1, 3))
    if images.dtype != np.uint8 or first == last:
        raise DataError(
            f"{path} holds no images that flatq can read" if not first else f"{path} can be read in two ways",
            expected="uint8 [n, H, W, C] or [n, C, H, W] with C 1 or 3",
            got=str(images),
        )
    if 0 in shape:
        raise DataError(f"{path} holds no images", expected="at least one", got=str(images))
    return first


def _header(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> _Member:
    check_member(info, path, MAX_ARRAY_BYTES)
    try:
        with archive.open(info) as stream:
            version = npy.read_magic(stream)
            if version not in _HEADERS:
                raise ValueError(f"version {version} of the format is for no array of numbers")
            shape, fortran, dtype = _HEADERS[version](stream)
            member = _Member(info, stream.tell(), shape, fortran, dtype)
    except (*READ_ERRORS, TokenError, SyntaxError) as error:  # the last two from numpy's parser of headers
        raise _unreadable(path, info, str(error) or type(error).__name__) from error
    if dtype.hasobject:
        raise _unreadable(path, info, f"pickled objects, {member}; unpickling could run any code")
    size = member.offset + prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or size != info.file_size:
        raise _unreadable(path, info, f"{member} would take {size} bytes, there are {info.file_size}")
    return member


def _array(archive: zipfile.ZipFile, member: _Member, path: Path, limit: int | None = None) -> NDArray[Any]:
    """The array, or its first `limit` rows; a checksum is compared where it is read whole."""
    shape = member.shape
    if limit is not None and not member.fortran and shape:
        shape = (min(limit, shape[0]), *shape[1:])
    try:
        flat = np.empty(prod(shape) * member.dtype.itemsize, np.uint8)
        with archive.open(member.info) as stream:
            stream.read(member.offset)
            for start in range(0, len(flat), _CHUNK_BYTES):
                part = flat[start : start + _CHUNK_BYTES]
                data = stream.read(len(part))
                if len(data) != len(part):
                    raise EOFError("the data end too early")
                part[:] = np.frombuffer(data, np.uint8)
    except READ_ERRORS as error:
        raise _unreadable(path, member.info, str(error) or type(error).__name__) from error
    array = flat.view(member.dtype).reshape(shape, order="F" if member.fortran else "C")
    return array[:limit] if shape else array


def _unreadable(path: Path, info: zipfile.ZipInfo, got: str) -> DataError:
    return DataError(
        f"{info.filename} in {path} cannot be read",
        expected=_EXPECTED,
        got=got,
        next_step="write it with numpy.savez(path, images)",
    )
