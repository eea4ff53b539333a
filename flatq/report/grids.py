"""The picture of float and quantized samples on the same noise. Draws only; the tiles are `flatq.images`'."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from flatq.files import replacing
from flatq.images import make_grid

__all__ = ["save_pair_grid"]

_TILE = 48
_GAP = 12
_MARGIN = 4


def save_pair_grid(
    path: Path,
    float_pixels: NDArray[np.uint8],
    quantized_pixels: NDArray[np.uint8],
    *,
    columns: int = 8,
    labels: tuple[str, str] = ("float", "quantized"),
) -> None:
    """Writes a PNG, atomically: float samples left, quantized right, tile i of both from the same noise.

    Small images are enlarged to about 48 pixels.

    Args:
        float_pixels, quantized_pixels: uint8 [n, C, H, W], C 1 or 3.
        columns: tiles in a row of each side.
        labels: drawn above the two sides.

    Raises:
        DataError: as `make_grid`.
    """
    scale = max(1, _TILE // max(float_pixels.shape[2:]))
    sides = [make_grid(pixels, columns, scale) for pixels in (float_pixels, quantized_pixels)]
    picture = _draw(sides, labels)
    with replacing(path) as temporary:
        picture.save(temporary, format="PNG")


def _draw(sides: list[Image.Image], labels: tuple[str, str]) -> Image.Image:
    """Both sides on white, each as wide as its label at least."""
    font = ImageFont.load_default()
    boxes = [font.getbbox(label) for label in labels]
    head = int(max(box[3] for box in boxes)) + 2 * _MARGIN
    widths = [max(side.width, int(box[2]) + 1) for side, box in zip(sides, boxes, strict=True)]
    size = (sum(widths) + _GAP + 2 * _MARGIN, head + max(side.height for side in sides) + _MARGIN)
    picture = Image.new(sides[0].mode, size, "white")
    pen = ImageDraw.Draw(picture)
    left = _MARGIN
    for side, label, width in zip(sides, labels, widths, strict=True):
        pen.text((left, _MARGIN), label, fill="black", font=font)
        picture.paste(side, (left, head))
        left += width + _GAP
    return picture
