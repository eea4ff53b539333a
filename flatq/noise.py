"""Gaussian noise for sampling: one counter-based stream per image.

Here lives the rule that ties noise to (seed, image index) and to nothing else, so that two models sampled
with the same seed and indices see the same noise whatever the batch size, order or runtime. When a draw is
due is the sampler's business; what is done with it is `flatq.process`'s. No torch.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from flatq.errors import UsageError

__all__ = ["ImageNoise"]


class ImageNoise:
    """The noise streams of a batch of images, advanced together.

    The stream of image k is `Generator(Philox(key=(seed, k)))`, counter from zero (Salmon et al. 2011,
    "Parallel random numbers: as easy as 1, 2, 3"). The first draw is x_T; then one per step that uses noise.
    A draw that is not used must not be taken: it would shift the stream.

    Args:
        seed: in [0, 2**64).
        indices: global image indices, each in [0, 2**64). An index given twice gives the same noise twice.
        shape: (C, H, W) of one image, each at least 1.

    Raises:
        UsageError: a seed, index or shape that is no integer or out of range.
    """

    def __init__(self, seed: int, indices: Sequence[int], shape: tuple[int, int, int]) -> None:
        key = _integer("The noise seed", seed, low=0)
        if len(shape) != 3:
            raise UsageError(
                "The noise shape does not describe one image.", expected="(C, H, W)", got=repr(tuple(shape))
            )
        self._shape = tuple(_integer("A side of the noise shape", side, low=1) for side in shape)
        self._streams = [
            np.random.Generator(
                np.random.Philox(key=np.array([key, _integer("An image index", k, low=0)], dtype=np.uint64))
            )
            for k in indices
        ]

    def draw(self) -> npt.NDArray[np.float32]:
        """The next standard normal draw of every image, float32 [n, C, H, W], in the order of the indices."""
        out = np.empty((len(self._streams), *self._shape), dtype=np.float32)
        for row, stream in zip(out, self._streams, strict=True):
            stream.standard_normal(dtype=np.float32, out=row)
        return out


def _integer(name: str, value: int, *, low: int) -> int:
    """`value` as a Python int in [low, 2**64), or `UsageError`."""
    try:
        number = -1 if isinstance(value, (bool, np.bool_)) else operator.index(value)
    except TypeError:
        number = -1
    if not low <= number < 2**64:
        raise UsageError(
            f"{name} is out of range.", expected=f"an integer in [{low}, 2**64)", got=repr(value)
        )
    return number
