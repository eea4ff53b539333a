"""From image files and arrays to one uint8 [n, C, H, W], and the record of what was changed on the way.

Where the files come from lives in archives.py and parquet.py.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image, UnidentifiedImageError

from flatq.errors import DataError, one_line
from flatq.images.labels import I64
from flatq.images.pixels import U8
from flatq.images.resize import RESIZES, Resize, resize_choices, resize_image

__all__ = ["Contents", "File", "Target", "convert_array", "stack_files"]

# not every format that Pillow knows: some of them start other programs
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_GREY_MODES = frozenset({"1", "L", "LA", "La"})
_COLOUR_MODES = frozenset({"P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "HSV", "LAB"})
_OTHER_COLOURS = frozenset({"CMYK", "YCbCr", "HSV", "LAB"})

File: TypeAlias = tuple[str, Callable[[], bytes]]
"""A name for messages, and what reads the bytes."""


@dataclass(frozen=True)
class Target:
    """What all images of a set have to become; see `load_images`."""

    size: int | None = None
    resize: Resize | None = None
    channels: int | None = None


@dataclass(frozen=True, eq=False)
class Contents:
    """What a source holds: uint8 [n, C, H, W], int64 [n] or None, and a clause on what was changed."""

    pixels: U8
    labels: I64 | None
    preprocessing: str


def convert_array(pixels: U8, target: Target) -> tuple[U8, str]:
    """An array [n, C, H, W] and a clause; unchanged where it fits the target already."""
    _, c, h, w = pixels.shape
    if target.size in (None, h) and target.size in (None, w) and target.channels in (None, c):
        return pixels, "none"
    frames = (Image.fromarray(p[0] if c == 1 else np.ascontiguousarray(p.transpose(1, 2, 0))) for p in pixels)
    return _stack(((f"image {i}", frame) for i, frame in enumerate(frames)), len(pixels), target)


def stack_files(files: Iterable[File], n: int, source: str | Path, target: Target) -> tuple[U8, str]:
    """Decodes n >= 1 image files of `source`, one after the other, and stacks them; with a clause."""
    return _stack(((name, _decode(read, name, source)) for name, read in files), n, target)


def _decode(read: Callable[[], bytes], name: str, source: str | Path) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # as an error already from Image.MAX_IMAGE_PIXELS on, about 89 million
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(read()), formats=_FORMATS)
            image.load()
    except DataError:
        raise
    except Exception as error:  # Pillow, zipfile and zlib raise many types for damaged bytes
        unknown = isinstance(error, UnidentifiedImageError)
        raise DataError(
            f"{name} in {source} cannot be read as an image",
            expected=f"a whole image file ({', '.join(_FORMATS)})",
            got="bytes of another kind" if unknown else one_line(error),
            next_step="repair it or take it out",
        ) from error
    return image


def _stack(frames: Iterable[tuple[str, Image.Image]], n: int, target: Target) -> tuple[U8, str]:
    """The first frame sets the shape, another one is an error that names both."""
    out: U8 | None = None
    first_name = ""
    done: set[str] = set()
    for i, (name, frame) in enumerate(frames):
        array = _to_array(frame, name, target, done)
        if out is None:
            out, first_name = np.empty((n, *array.shape), np.uint8), name
        if array.shape != out.shape[1:]:
            shapes = [f"{'grey' if c == 1 else 'RGB'}, {h} x {w}" for c, h, w in (out.shape[1:], array.shape)]
            raise DataError(
                f"{name} is of another kind or size than {first_name}",
                expected=f"{shapes[0]} (height x width)",
                got=shapes[1],
                next_step="ask for channels 1 (grey) or 3 (RGB), or give a size and one way to get there by "
                f"resize: {resize_choices()}",
            )
        out[i] = array
    assert out is not None
    clauses = sorted(done, key=lambda what: (what.split()[0] not in RESIZES, what))  # the resize first
    return out, ", ".join(clauses) or "none"


def _to_array(image: Image.Image, name: str, target: Target, done: set[str]) -> U8:
    """uint8 [C, H, W]; what it changed is added to `done`."""
    if image.mode not in _GREY_MODES | _COLOUR_MODES:
        raise DataError(
            f"{name} has pixels of the kind {image.mode!r}",
            expected="8 bits for each of 1 or 3 channels",
            got=f"the Pillow mode {image.mode}",
            next_step="convert it to 8 bits",
        )
    if image.has_transparency_data:
        done.add("transparency dropped")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    stored = 1 if image.mode in _GREY_MODES else 3
    c = target.channels or stored
    if c != stored:
        done.add("grey to RGB" if c == 3 else "RGB to grey")
    elif image.mode in _OTHER_COLOURS:
        done.add(f"{image.mode} to RGB")
    image = image.convert("L" if c == 1 else "RGB")
    if target.size is not None and image.size != (target.size, target.size):
        if target.resize is None:
            raise DataError(
                f"{name} is not {target.size} x {target.size}",
                expected=f"images of the size {target.size}, as no resize was asked for",
                got=f"{image.height} x {image.width} (height x width)",
                next_step=f"choose a resize: {resize_choices()}",
            )
        image = resize_image(image, target.size, target.resize)
        done.add(f"{target.resize} to {target.size} x {target.size}")
    array = np.asarray(image, np.uint8)
    return array[None] if c == 1 else array.transpose(2, 0, 1)
