"""The named ways from a stored image to size x size. Each changes the pixels, so reports name it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, TypeAlias

from PIL import Image

__all__ = ["RESIZES", "Resize", "resize_choices", "resize_image"]

Resize: TypeAlias = Literal["center-crop-adm", "center-crop", "stretch"]

RESIZES: Mapping[Resize, str] = MappingProxyType(
    {
        "center-crop-adm": "resize the shorter side (halved by box filter, then bicubic), crop the centre",
        "center-crop": "crop the largest square at the centre, resize it by Lanczos",
        "stretch": "resize to the square by bicubic, no crop, proportions change",
    }
)
"""What each choice does, one clause each."""


def resize_choices() -> str:
    """All choices in one sentence, for messages."""
    return "; ".join(f"{name} ({what})" for name, what in RESIZES.items())


def resize_image(image: Image.Image, size: int, resize: Resize) -> Image.Image:
    """An image of mode L or RGB to size x size. One of that size already comes out unchanged.

    "center-crop-adm": guided-diffusion's `center_crop_arr` (image_datasets.py; Dhariwal, Nichol 2021), which
    EDM2's dataset_tool calls `center-crop-dhariwal`. "center-crop": EDM's dataset_tool under the same name.
    "stretch": one `Image.resize`. All of Pillow's filters here widen with the reduction (antialiasing).
    """
    if resize == "center-crop-adm":
        return _center_crop_adm(image, size)
    if resize == "center-crop":
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = image.crop((left, top, left + side, top + side))
        return square.resize((size, size), Image.Resampling.LANCZOS)
    return image.resize((size, size), Image.Resampling.BICUBIC)


def _center_crop_adm(image: Image.Image, size: int) -> Image.Image:
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))
