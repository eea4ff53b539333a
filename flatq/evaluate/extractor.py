"""A feature extractor that is ready to run, whatever its network.

The networks are opened in `flatq.evaluate.features` (ONNX files) and `flatq.evaluate.inception` (the network
of the standard FID).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from flatq.errors import DataError
from flatq.evaluate.moments import Rows

__all__ = ["Extractor", "Kind"]

Kind = Literal["onnx", "inception"]


@dataclass(frozen=True, eq=False)
class Extractor:
    """A feature network for images of one shape.

    Attributes:
        kind: an ONNX network of the user's or the bundled one, or Inception.
        name: for tables and reports.
        digest: sha256, hex, of whatever decides its numbers.
        dim: d, the number of features.
        image_shape: (C, H, W) of the images that it takes.
        preprocessing: what it does to uint8 pixels before its first layer, in words.
        identity: backend, version, device and threads: features are identical only at equal identity.
        run: features [k, d] of a batch uint8 [k, C, H, W] in the network's own precision.
        batch_size: images that `run` is given at a time.
        published: whether its weights are the published ones of the standard FID; None for another network.
    """

    kind: Kind
    name: str
    digest: str
    dim: int
    image_shape: tuple[int, int, int]
    preprocessing: str
    identity: dict[str, Any]
    run: Callable[[NDArray[np.uint8]], Rows]
    batch_size: int
    published: bool | None = None

    def extract(self, pixels: NDArray[np.uint8], progress: Callable[[int, int], None] | None = None) -> Rows:
        """Features [n, d] of uint8 [n, C, H, W], float32 or float64 as the network gives them.

        Args:
            progress: called with (images done, total).

        Raises:
            DataError: another dtype or shape, features that are NaN or infinite.
        """
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != self.image_shape:
            raise DataError(
                f"these images do not fit the feature network {self.name}",
                expected=f"uint8 [n, {', '.join(map(str, self.image_shape))}]",
                got=f"{pixels.dtype} {list(pixels.shape)}",
            )
        parts: list[Rows] = [np.empty((0, self.dim), np.float32)]
        for start in range(0, len(pixels), self.batch_size):
            batch = np.ascontiguousarray(pixels[start : start + self.batch_size])
            parts.append(self.run(batch))
            if progress is not None:
                progress(start + len(batch), len(pixels))
        features = np.concatenate(parts)
        if features.dtype not in (np.float32, np.float64):
            features = features.astype(np.float32)
        bad = ~np.isfinite(features).all(axis=1)
        if bad.any():
            raise DataError(
                f"the feature network {self.name} gives values that are not finite",
                expected=f"finite features for all {len(features)} images",
                got=f"NaN or infinity for {int(bad.sum())} images, the first is image {int(bad.argmax())}",
                next_step="check the network; float16 weights may overflow",
            )
        return features
