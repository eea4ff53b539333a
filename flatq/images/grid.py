"""Many images in one picture. What the picture is for is decided elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from flatq.errors import DataError
from flatq.files import replacing
from flatq.images.pixels import U8

__all__ = ["make_grid", "save_grid"]


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
    with replacing(path) as temporary:
        grid.save(temporary, format="PNG")
