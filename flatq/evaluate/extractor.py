"""What a feature extractor offers, opening one by name, and the checks that all of them share.

The extractors themselves are one file each: ONNX networks in `flatq.evaluate.features`, the Inception
network of the standard FID in `flatq.evaluate.inception`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from flatq.errors import DataError, UsageError

__all__ = [
    "INCEPTION",
    "Extractor",
    "Kind",
    "Progress",
    "check_finite",
    "check_pixels",
    "open_extractor",
]

INCEPTION = "inception"
"""The word that selects the Inception network instead of an ONNX file."""

Kind = Literal["onnx", "inception"]
Progress = Callable[[int, int], None]
"""Called with (images done, total)."""


class Extractor(Protocol):
    """A feature extractor that is ready to run."""

    @property
    def kind(self) -> Kind:
        """What it is: an ONNX network of the user's or the bundled one, or Inception."""
        ...

    @property
    def name(self) -> str:
        """For tables and reports."""
        ...

    @property
    def digest(self) -> str:
        """sha256, hex, of whatever decides its numbers."""
        ...

    @property
    def dim(self) -> int:
        """d, the number of features."""
        ...

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images that it takes."""
        ...

    @property
    def preprocessing(self) -> str:
        """What it does to uint8 pixels before its first layer, in words."""
        ...

    @property
    def published(self) -> bool | None:
        """Whether its weights are the published ones of the standard FID; None for another network."""
        ...

    def identity(self, threads: int) -> dict[str, Any]:
        """Backend, version, device and threads: features are identical only at equal identity."""
        ...

    def extract(
        self, pixels: NDArray[np.uint8], *, threads: int = 1, progress: Progress | None = None
    ) -> NDArray[np.float64]:
        """Features of uint8 [n, C, H, W] as float64 [n, d].

        Raises:
            DataError: another dtype or shape, threads below 1, features that are NaN or infinite.
        """
        ...


def open_extractor(
    spec: str | Path | None,
    *,
    image_shape: tuple[int, int, int],
    inception_weights: Path | None = None,
    device: str = "cpu",
) -> Extractor:
    """Opens an extractor for images of (C, H, W).

    Args:
        spec: "inception" (as a `str`), or what `open_features` takes: an ONNX file, "digits48" or None.
        inception_weights: with "inception" only: a state dict in a file, as `open_inception` takes it.
        device: with "inception" only: "cpu", "cuda" or another torch device; ONNX networks run on the CPU.

    Raises:
        UsageError: weights or a device for an ONNX network.
        InputError, MissingRuntimeError: as `open_features` and `open_inception`.
    """
    if spec == INCEPTION:
        from flatq.evaluate.inception import open_inception

        return open_inception(image_shape=image_shape, weights=inception_weights, device=device)
    from flatq.evaluate.features import open_features

    if inception_weights is not None or device != "cpu":
        raise UsageError(
            "weights and a device are options of the Inception network",
            expected="--features inception beside --inception-weights or --features-device",
            got=f"--features {spec}" if spec is not None else "no --features",
            next_step="add --features inception, or leave the option out",
        )
    return open_features(spec, image_shape=image_shape)


def check_pixels(
    pixels: NDArray[Any], name: str, image_shape: tuple[int, int, int], batch_size: int, threads: int
) -> None:
    """Raises:
    DataError: not uint8 [n, C, H, W] with this (C, H, W), or batch_size or threads below 1.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != image_shape:
        raise DataError(
            f"these images do not fit the feature network {name}",
            expected=f"uint8 [n, {', '.join(map(str, image_shape))}]",
            got=f"{pixels.dtype} {list(pixels.shape)}",
        )
    if batch_size < 1 or threads < 1:
        raise DataError(
            "batch_size and threads must be positive", got=f"batch_size {batch_size}, threads {threads}"
        )


def check_finite(features: NDArray[np.float64], name: str) -> None:
    """Raises:
    DataError: a feature [n, d] is NaN or infinite.
    """
    bad = ~np.isfinite(features).all(axis=1)
    if bad.any():
        raise DataError(
            f"the feature network {name} gives values that are not finite",
            expected=f"finite features for all {len(features)} images",
            got=f"NaN or infinity for {int(bad.sum())} images, the first is image {int(bad.argmax())}",
            next_step="check the network; float16 weights may overflow",
        )
