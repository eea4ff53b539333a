"""uint8 to float and back: the convention of the range [-1, 1] and the two of rounding."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from flatq.errors import DataError

__all__ = ["U8", "Rounding", "to_float", "to_uint8"]

U8: TypeAlias = NDArray[np.uint8]

Rounding: TypeAlias = Literal["round", "truncate"]
"""How float images become uint8: "round" as diffusers does, "truncate" as guided-diffusion does."""


def to_float(pixels: U8) -> NDArray[np.float32]:
    """uint8 of any shape to float32 in [-1, 1]: x / 127.5 - 1."""
    return pixels.astype(np.float32) / np.float32(127.5) - np.float32(1)


def to_uint8(x: NDArray[np.floating[Any]], rounding: Rounding = "round") -> U8:
    """[-1, 1] of any shape to uint8; values outside are clipped.

    Args:
        rounding: "round" goes to the nearest, the convention of diffusers, and undoes `to_float` exactly.
            "truncate" drops the fraction, the convention of guided-diffusion: half a grey level darker
            on average, and `to_float` images may come back one level lower.

    Raises:
        DataError: a value is NaN or infinite.
    """
    if not np.isfinite(x).all():
        raise DataError(
            "images with values that are not finite",
            expected="numbers in [-1, 1]",
            got=f"{int(np.count_nonzero(~np.isfinite(x)))} of {x.size} values NaN or infinite",
            next_step="check the model that made them",
        )
    levels = np.clip((x.astype(np.float32) + np.float32(1)) * np.float32(127.5), 0, 255)
    result: U8 = {"round": np.rint, "truncate": np.trunc}[rounding](levels).astype(np.uint8)
    return result
