"""Many images in one picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from flatq.files import writing
from flatq.images.pixels import U8

__all__ = ["make_grid", "save_grid"]


def make_grid(pixels: U8, columns: int, scale: int = 1) -> Image.Image:
    """Tiles uint8 [n, C, H, W] (n at least 1, C 1 or 3) row by row, 1 px of white between tiles.

    Args:
        columns: tiles in a row; fewer where n is smaller.
        scale: each pixel becomes scale x scale (nearest neighbour); the gap stays 1 px.
    """
    columns = min(columns, len(pixels))
    rows = -(-len(pixels) // columns)
    tiles = pixels.repeat(scale, axis=2).repeat(scale, axis=3)
    gaps = ((0, rows * columns - len(tiles)), (0, 0), (0, 1), (0, 1))
    tiles = np.pad(tiles, gaps, constant_values=255)
    _, c, h, w = tiles.shape
    canvas = tiles.reshape(rows, columns, c, h, w).transpose(0, 3, 1, 4, 2).reshape(rows * h, columns * w, c)
    return Image.fromarray(np.ascontiguousarray(canvas[:-1, :-1].squeeze(2) if c == 1 else canvas[:-1, :-1]))


def save_grid(path: str | Path, pixels: U8, columns: int, scale: int = 1) -> None:
    """Writes `make_grid` as PNG, atomically.

    Raises:
        DataError: the file cannot be written.
    """
    with writing(Path(path)) as temporary:
        make_grid(pixels, columns, scale).save(temporary, format="PNG")
