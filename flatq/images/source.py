"""What a name or a path means as a source of images, and the set that comes of it.

How each kind of source is read lives in the files beside this one.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np

from flatq.errors import DataError, UsageError
from flatq.images.archives import has_images, read_folder, read_zip
from flatq.images.digits import read_digits
from flatq.images.labels import I64
from flatq.images.npz import read_npz
from flatq.images.parquet import parquet_shards, read_parquet
from flatq.images.pixels import U8
from flatq.images.resize import Resize, resize_choices
from flatq.images.stack import Contents, Target, convert_array

__all__ = ["ImageSet", "load_images"]

_SOURCES = '"digits", "digits:train", "digits:heldout", a folder, a .zip, a .npz or a .parquet'


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images in memory. The arrays are for reading.

    Attributes:
        pixels: uint8 [n, C, H, W], C is 1 (grey) or 3 (RGB), C-contiguous.
        name: the folder's name, the file's stem, or the word given.
        digest: sha256, hex, over the ASCII text "n,C,H,W\\n" and the bytes of `pixels`. Labels are not in it.
        labels: int64 [n], integers of 0 or more, one for each image; None where the source has none.
        preprocessing: what was done to the stored images, one clause for reports, such as
            "center-crop-adm to 32 x 32, grey to RGB"; "none" where every image is as it was stored.
    """

    pixels: U8
    name: str
    digest: str
    labels: I64 | None = None
    preprocessing: str = "none"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        _, c, h, w = self.pixels.shape
        return c, h, w


def load_images(
    source: str | Path,
    *,
    size: int | None = None,
    resize: Resize | None = None,
    limit: int | None = None,
    channels: int | None = None,
) -> ImageSet:
    """Reads a source whole.

    Sources:
        "digits", "digits:train", "digits:heldout" (as a `str`; a folder of that name is "./digits"):
            scikit-learn's 1797 grey images of 8 x 8, all in their own order, or the first 1500 and the other
            297 of one fixed permutation. Values 0..16 become round(v * 255 / 16).
        a folder: every image below it, sorted by posix path. Hidden names (".x") and __MACOSX are left out.
        a .zip: the same, sorted by name; nothing is written to disk.
        a .npz: uint8, key `arr_0` or `images`, [n, H, W, C] or [n, C, H, W] with C 1 or 3.
        a .parquet, or a folder in which .parquet files lie, sorted by name: image files as bytes in a column
            `image` or `img`, binary or {bytes, path}, as Hugging Face datasets stores them.

    Labels come from the digits; from a `dataset.json` at the top of a folder or zip, as NVlabs' dataset_tool
    writes it (StyleGAN, EDM); from `arr_1` beside `arr_0`, as guided-diffusion writes it; from an integer
    column `label` of parquet. They are never guessed from the names of folders.

    Transparency is dropped, EXIF rotation is ignored, of an animation the first frame counts.

    Args:
        size: of every image, height and width. Without it all images must have one size.
        resize: how images of another size get there, see `RESIZES`; images of that size stay as they are.
            Without it they are an error.
        limit: the first `limit` images at most, in the order above.
        channels: 1 or 3 converts to grey or RGB. Without it all images must be of one kind.

    Raises:
        UsageError: a resize without a size, or an unknown one.
        DataError: a missing path, no images, a broken image or archive, images of different sizes or kinds, a
            member of a zip that unpacks to an absurd size, an array of another dtype or shape, labels that
            are no integers of 0 or more or not one for each image.
        MissingRuntimeError: digits without scikit-learn, parquet without pyarrow.
    """
    if min(size or 1, limit or 1) < 1 or 0 in (size, limit) or channels not in (None, 1, 3):
        raise DataError(
            "the images cannot be had so",
            expected="a size and a limit of 1 or more, and 1 (grey) or 3 (RGB) channels",
            got=f"size {size}, limit {limit}, channels {channels}",
        )
    if resize is not None and (resize not in get_args(Resize) or size is None):
        raise UsageError(
            f"there is no resize {resize!r}" if size else f"the resize {resize} has no size to go to",
            expected=f"a size, and one of {resize_choices()}",
            got=f"resize {resize}, size {size}",
            next_step="give the size, or leave the resize out",
        )
    target = Target(size, resize, channels)
    if isinstance(source, str) and (source == "digits" or source.startswith("digits:")):
        pixels, labels = read_digits(source)
        converted, done = convert_array(pixels[:limit], target)
        return _image_set(Contents(converted, labels[:limit], done), source)
    path = Path(source)
    if path.is_dir():
        return _image_set(_read_directory(path, target, limit), path.resolve().name)
    if not path.is_file():
        raise DataError(f"there is no image source {source}", expected=_SOURCES, next_step="check the path")
    suffix = path.suffix.lower()
    if suffix == ".npz":
        contents = read_npz(path, target, limit)
    elif suffix == ".zip":
        contents = read_zip(path, target, limit)
    elif suffix == ".parquet":
        contents = read_parquet([path], path, target, limit)
    else:
        raise DataError(
            f"{path} is no image source",
            expected="a folder, a .zip, a .npz or a .parquet",
            got=f"a file {suffix or 'without a suffix'}",
            next_step="give the folder that holds the images",
        )
    return _image_set(contents, path.stem)


def _read_directory(folder: Path, target: Target, limit: int | None) -> Contents:
    shards = parquet_shards(folder)
    if not shards:
        return read_folder(folder, target, limit)
    if has_images(folder):
        raise DataError(
            f"{folder} holds both images and parquet files",
            expected="one or the other",
            got=f"{shards[0].name} among images",
            next_step="move one of them to another folder",
        )
    return read_parquet(shards, folder, target, limit)


def _image_set(contents: Contents, name: str) -> ImageSet:
    pixels = np.ascontiguousarray(contents.pixels)
    digest = hashlib.sha256((",".join(map(str, pixels.shape)) + "\n").encode())
    digest.update(pixels.data)
    return ImageSet(pixels, name, digest.hexdigest(), contents.labels, contents.preprocessing)
