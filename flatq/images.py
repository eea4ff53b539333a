"""Image sources (digits, folder, zip, npz), the uint8 convention and grid pictures.

One loader gives one uint8 NCHW array with a digest. Metrics, features and sampling live elsewhere.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flatq.errors import DataError, MissingRuntimeError

__all__ = [
    "DIGITS_TRAIN_COUNT",
    "IMAGE_SUFFIXES",
    "ImageSet",
    "digit_labels",
    "load_images",
    "make_grid",
    "save_grid",
    "to_float",
    "to_uint8",
]

U8 = NDArray[np.uint8]

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
DIGITS_TRAIN_COUNT = 1500

_GREY_MODES = frozenset({"1", "L", "LA", "La"})
_COLOUR_MODES = frozenset({"P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "HSV", "LAB"})
_DECODE_ERRORS = (
    OSError,
    SyntaxError,  # Pillow's PNG reader
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_ZIP_ERRORS = (zipfile.BadZipFile, OSError, EOFError, RuntimeError, NotImplementedError, zlib.error)
_NPZ_ERRORS = (*_ZIP_ERRORS, ValueError)

_Item = tuple[str, Callable[[], bytes]]


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images in memory.

    pixels: uint8 [n, C, H, W], C is 1 (grey) or 3 (RGB), C-contiguous. name: the folder's name, the file's
    stem, or the word given. digest: sha256, hex, over the ASCII text "n,C,H,W\\n" and the bytes of `pixels`.
    """

    pixels: U8
    name: str
    digest: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        _, c, h, w = self.pixels.shape
        return c, h, w


def load_images(
    source: str | Path, *, size: int | None = None, limit: int | None = None, channels: int | None = None
) -> ImageSet:
    """Reads a source whole.

    Sources:
        "digits", "digits:train", "digits:heldout" (as a `str`; a folder of that name is "./digits"):
            scikit-learn's 1797 grey images of 8 x 8, all in their own order, or the first 1500 and the other
            297 of one fixed permutation. Values 0..16 become round(v * 255 / 16).
        a folder: every image below it, sorted by posix path. Hidden names (".x") and __MACOSX are left out.
        a .zip: the same, sorted by name; nothing is written to disk.
        a .npz: uint8, key `arr_0` or `images`, [n, H, W, C] or [n, C, H, W] with C 1 or 3.

    Transparency is dropped, EXIF rotation is ignored, of an animation the first frame counts.

    Args:
        size: shorter side resized (halved by box filter, then bicubic) and the centre cropped to size x size,
            as guided-diffusion's `center_crop_arr` does. Without it all images must have one size.
        limit: the first `limit` images at most, in the order above.
        channels: 1 or 3 converts to grey or RGB. Without it all images must be of one kind.

    Raises:
        DataError: a missing path, no images, a broken image or archive, images of different sizes or kinds, a
            name in a zip that leaves the folder, an array of another dtype or shape.
        MissingRuntimeError: digits without scikit-learn.
    """
    for option, value in (("size", size), ("limit", limit)):
        if value is not None and value < 1:
            raise DataError(f"{option} must be positive", expected="an integer of 1 or more", got=str(value))
    if channels not in (None, 1, 3):
        raise DataError(f"{channels} channels are not offered", expected="1 (grey) or 3 (RGB)")
    if isinstance(source, str) and (source == "digits" or source.startswith("digits:")):
        return _image_set(_convert(_digits(source)[0][:limit], size, channels), source)
    path = Path(source)
    if path.is_dir():
        pixels = _decode_all(_folder_items(path)[:limit], path, size, channels)
        return _image_set(pixels, path.resolve().name)
    if not path.is_file():
        raise DataError(
            f"there is no image source {source}",
            expected='"digits", "digits:train", "digits:heldout", a folder, a .zip or a .npz',
            next_step="check the path",
        )
    suffix = path.suffix.lower()
    if suffix == ".npz":
        pixels = _convert(_npz_pixels(path)[:limit], size, channels)
    elif suffix == ".zip":
        pixels = _zip_pixels(path, limit, size, channels)
    else:
        raise DataError(
            f"{path} is no image source",
            expected="a folder, a .zip or a .npz",
            got=f"a file {suffix or 'without a suffix'}",
            next_step="give the folder that holds the images",
        )
    return _image_set(pixels, path.stem)


def digit_labels(source: str) -> NDArray[np.int64]:
    """The classes 0..9, int64 [n], in the order of `load_images(source)` for a source of digits.

    Raises:
        DataError: `source` is not one of the digits.
        MissingRuntimeError: scikit-learn is not installed.
    """
    return _digits(source)[1]


def to_float(pixels: U8) -> NDArray[np.float32]:
    """uint8 of any shape to float32 in [-1, 1]: x / 127.5 - 1."""
    return pixels.astype(np.float32) / np.float32(127.5) - np.float32(1)


def to_uint8(x: NDArray[np.floating[Any]], rounding: Literal["round", "truncate"] = "round") -> U8:
    """[-1, 1] of any shape to uint8; values outside are clipped.

    Args:
        rounding: "round" goes to the nearest, the convention of diffusers, and undoes `to_float` exactly.
            "truncate" drops the fraction, the convention of guided-diffusion: half a grey level darker
            on average, and `to_float` images may come back one level lower.

    Raises:
        DataError: a value is NaN or infinite, or `rounding` is another word.
    """
    if rounding not in ("round", "truncate"):
        raise DataError(f"unknown rounding {rounding!r}", expected='"round" or "truncate"')
    if not np.isfinite(x).all():
        raise DataError(
            "images with values that are not finite",
            expected="numbers in [-1, 1]",
            got=f"{int(np.count_nonzero(~np.isfinite(x)))} of {x.size} values NaN or infinite",
            next_step="check the model that made them",
        )
    levels = np.clip((x.astype(np.float32) + np.float32(1)) * np.float32(127.5), 0, 255)
    result: U8 = (np.rint(levels) if rounding == "round" else levels).astype(np.uint8)
    return result


def make_grid(pixels: U8, columns: int, scale: int = 1) -> Image.Image:
    """Tiles uint8 [n, C, H, W] (C 1 or 3) row by row, 1 px of white between tiles.

    Args:
        columns: tiles in a row; fewer where n is smaller.
        scale: each pixel becomes scale x scale (nearest neighbour); the gap stays 1 px.

    Raises:
        DataError: another shape or dtype, no images, columns or scale below 1.
    """
    if pixels.ndim != 4 or pixels.dtype != np.uint8 or pixels.shape[1] not in (1, 3) or pixels.size == 0:
        raise DataError(
            "these are no images for a grid",
            expected="uint8 [n, C, H, W] with n >= 1 and C 1 or 3",
            got=f"{pixels.dtype} {list(pixels.shape)}",
        )
    if columns < 1 or scale < 1:
        raise DataError("columns and scale must be positive", got=f"columns {columns}, scale {scale}")
    tiles = pixels.repeat(scale, axis=2).repeat(scale, axis=3).transpose(0, 2, 3, 1)
    n, h, w, c = tiles.shape
    columns = min(columns, n)
    rows = -(-n // columns)
    canvas = np.full((rows * (h + 1) - 1, columns * (w + 1) - 1, c), 255, np.uint8)
    for i, tile in enumerate(tiles):
        top, left = (i // columns) * (h + 1), (i % columns) * (w + 1)
        canvas[top : top + h, left : left + w] = tile
    return Image.fromarray(canvas[..., 0] if c == 1 else canvas)


def save_grid(path: str | Path, pixels: U8, columns: int, scale: int = 1) -> None:
    """Writes `make_grid` as PNG: a temporary name beside `path`, then `os.replace`.

    Raises:
        DataError: as `make_grid`, or `path` lies in no folder.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise DataError(f"cannot write {path}", expected=f"the folder {path.parent}", got="no such folder")
    grid = make_grid(pixels, columns, scale)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        grid.save(temporary, format="PNG")
        os.replace(temporary, path)  # noqa: PTH105 (the house rule names os.replace)
    finally:
        temporary.unlink(missing_ok=True)


def _image_set(pixels: U8, name: str) -> ImageSet:
    pixels = np.ascontiguousarray(pixels)
    digest = hashlib.sha256((",".join(map(str, pixels.shape)) + "\n").encode())
    digest.update(pixels.data)
    return ImageSet(pixels, name, digest.hexdigest())


def _digits(source: str) -> tuple[U8, NDArray[np.int64]]:
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


def _is_image_name(name: PurePosixPath) -> bool:
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in name.parts)
    return name.suffix.lower() in IMAGE_SUFFIXES and not hidden


def _folder_items(folder: Path) -> list[_Item]:
    found = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    names = sorted(name for name in found if _is_image_name(PurePosixPath(name)))
    return [(name, found[name].read_bytes) for name in names]


def _zip_pixels(path: Path, limit: int | None, size: int | None, channels: int | None) -> U8:
    try:
        archive = zipfile.ZipFile(path)
    except _ZIP_ERRORS as error:
        raise DataError(
            f"{path} cannot be read as a zip",
            expected="a whole .zip file",
            got=str(error),
            next_step="copy or download it again",
        ) from error
    with archive:
        items: list[_Item] = []
        for info in sorted(archive.infolist(), key=lambda info: info.filename):
            name = info.filename
            if name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", name) or name[1:2] == ":":
                raise DataError(
                    f"{path} holds a name that leaves the folder",
                    expected="relative names without ..",
                    got=repr(name),
                    next_step="do not use this archive unless you know where it comes from",
                )
            if not info.is_dir() and _is_image_name(PurePosixPath(name)):
                items.append((name, lambda info=info: archive.read(info)))  # type: ignore[misc]
        return _decode_all(items[:limit], path, size, channels)


def _npz_pixels(path: Path) -> U8:
    """uint8 [n, C, H, W]."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            keys = list(archive.files)
            key = next((k for k in ("arr_0", "images") if k in keys), None)
            array = None if key is None else archive[key]
    except _NPZ_ERRORS as error:
        raise DataError(
            f"{path} cannot be read",
            expected="a .npz of uint8 images, nothing pickled",
            got=str(error),
            next_step="write it with numpy.savez(path, images)",
        ) from error
    if array is None:
        raise DataError(
            f"{path} holds no images",
            expected="the key arr_0 or images",
            got=", ".join(keys) or "no keys",
            next_step="write it with numpy.savez(path, images)",
        )
    got = f"{array.dtype} {list(array.shape)}"
    first, last = (array.shape[axis] in (1, 3) if array.ndim == 4 else False for axis in (1, 3))
    if array.dtype != np.uint8 or first == last:
        raise DataError(
            f"{path} holds no images that flatq can read" if not first else f"{path} can be read in two ways",
            expected="uint8 [n, H, W, C] or [n, C, H, W] with C 1 or 3",
            got=got,
        )
    if array.size == 0:
        raise DataError(f"{path} holds no images", expected="at least one", got=got)
    pixels: U8 = array if first else array.transpose(0, 3, 1, 2)
    return pixels


def _convert(pixels: U8, size: int | None, channels: int | None) -> U8:
    """`size` and `channels` for an array [n, C, H, W]; unchanged where both fit already."""
    _, c, h, w = pixels.shape
    if size in (None, h) and size in (None, w) and channels in (None, c):
        return pixels
    frames = (Image.fromarray(p[0] if c == 1 else np.ascontiguousarray(p.transpose(1, 2, 0))) for p in pixels)
    return _stack(((f"image {i}", frame) for i, frame in enumerate(frames)), len(pixels), size, channels)


def _decode_all(items: list[_Item], path: Path, size: int | None, channels: int | None) -> U8:
    if not items:
        raise DataError(
            f"{path} holds no images",
            expected="files ending in " + ", ".join(IMAGE_SUFFIXES),
            got="none",
            next_step="check the path",
        )
    return _stack(((name, _decode(read, name, path)) for name, read in items), len(items), size, channels)


def _decode(read: Callable[[], bytes], name: str, path: Path) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(read()))
        image.load()
    except (*_DECODE_ERRORS, *_ZIP_ERRORS) as error:
        raise DataError(
            f"{name} in {path} cannot be read as an image",
            expected="a whole image file",
            got=str(error) or type(error).__name__,
            next_step="repair it or take it out",
        ) from error
    return image


def _stack(frames: Iterable[tuple[str, Image.Image]], n: int, size: int | None, channels: int | None) -> U8:
    """uint8 [n, C, H, W]; the first frame sets the shape, another one is an error that names both."""
    out: U8 | None = None
    first_name = ""
    for i, (name, frame) in enumerate(frames):
        array = _to_array(frame, name, size, channels)
        if out is None:
            out, first_name = np.empty((n, *array.shape), np.uint8), name
        if array.shape[0] != out.shape[1]:
            kinds = {1: "grey", 3: "RGB"}
            raise DataError(
                f"{name} is {kinds[array.shape[0]]}, {first_name} is {kinds[out.shape[1]]}",
                expected="images of one kind",
                next_step="ask for one kind: channels 1 (grey) or 3 (RGB)",
            )
        if array.shape != out.shape[1:]:
            raise DataError(
                f"{name} has another size than {first_name}",
                expected=f"{out.shape[2]} x {out.shape[3]} (height x width)",
                got=f"{array.shape[1]} x {array.shape[2]}",
                next_step="give a size, to which all images are resized and cropped",
            )
        out[i] = array
    assert out is not None
    return out


def _to_array(image: Image.Image, name: str, size: int | None, channels: int | None) -> U8:
    """uint8 [C, H, W]."""
    if image.mode not in _GREY_MODES | _COLOUR_MODES:
        raise DataError(
            f"{name} has pixels of the kind {image.mode!r}",
            expected="8 bits for each of 1 or 3 channels",
            got=f"the Pillow mode {image.mode}",
            next_step="convert it to 8 bits",
        )
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    c = channels or (1 if image.mode in _GREY_MODES else 3)
    image = image.convert("L" if c == 1 else "RGB")
    if size is not None:
        image = _center_crop(image, size)
    array = np.asarray(image, np.uint8)
    return array[None] if c == 1 else array.transpose(2, 0, 1)


def _center_crop(image: Image.Image, size: int) -> Image.Image:
    """guided-diffusion, image_datasets.py, `center_crop_arr` (Dhariwal, Nichol 2021, MIT licence)."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))
