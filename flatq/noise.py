"""Frozen Gaussian noise: every value is a pure function of (seed, image index, draw, stream, position).

Two models sampled with the same seed and indices see the same noise whatever the batch size, order or
runtime, and another implementation of the same few lines (torch, a browser's script) draws the same values.
No torch.

The generator is Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"):

- key = (low, high 32 bits of the seed); counter = (block j, draw, image index, stream). The four words r0 to
  r3 of block j give the values 4j to 4j + 3 of an image, in CHW order.
- u(r) = (r + 0.5) 2^-32 in float64; (z0, z1) = sqrt(-2 ln u(r0)) (cos, sin)(2 pi u(r1)), (z2, z3) the same
  from r2 and r3 (Box and Muller 1958); each is rounded once, to float32.

The words are exact everywhere. Libraries round ln, cos and sin differently in float64, so that fewer than one
value in 10^6 differs, by one unit in the last place of float32.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from enum import IntEnum
from math import pi, prod

import numpy as np
import numpy.typing as npt

from flatq.errors import UsageError

__all__ = ["NOISE_VERSION", "NoiseStream", "normal"]

NOISE_VERSION = 2
"""Changes with any value that `normal` returns. Version 1 was numpy's ziggurat over Philox 4x64."""

_CHUNK = 8192
"""Counters at a time: the intermediate arrays stay in a core's cache."""


class NoiseStream(IntEnum):
    """What the noise is for; no two streams share a counter."""

    SAMPLING = 0
    CALIBRATION = 1
    PROBES = 2


def normal(
    seed: int,
    indices: Sequence[int],
    draw: int,
    shape: tuple[int, int, int],
    *,
    stream: NoiseStream = NoiseStream.SAMPLING,
) -> npt.NDArray[np.float32]:
    """Standard normal noise of a batch of images, float32 [n, C, H, W], in the order of the indices.

    Args:
        seed: in [0, 2**64).
        indices: global image indices, each in [0, 2**32). An index given twice gives the same noise twice.
        draw: in [0, 2**32). While sampling, 0 is x_T and 1 + the number of updates already made is the noise
            of an update; a second draw in the same update adds 2**31.
        shape: (C, H, W) of one image, each at least 1.

    Raises:
        UsageError: a seed, index, draw or shape that is no integer or out of range.
    """
    key = _integer("The noise seed", seed, 0, 2**64)
    drawn = np.array([_integer("The noise draw", draw, 0, 2**32)], dtype=np.uint64)
    kind = np.array([stream], dtype=np.uint64)
    if len(shape) != 3:
        raise UsageError(
            "The noise shape does not describe one image.", expected="(C, H, W)", got=repr(tuple(shape))
        )
    size = prod(_integer("A side of the noise shape", side, 1, 2**32) for side in shape)
    images = np.array([_integer("An image index", k, 0, 2**32) for k in indices], dtype=np.uint64)
    blocks = -(-size // 4)
    out = np.empty((len(images), 4 * blocks), dtype=np.float32)
    values = out.reshape(-1, 4)
    for start in range(0, len(values), _CHUNK):
        counters = np.arange(start, min(start + _CHUNK, len(values)), dtype=np.uint64)
        words = _philox((counters % blocks, drawn, images[counters // blocks], kind), key)
        for pair in (0, 2):
            radius = np.sqrt(-2.0 * np.log(_uniform(words[pair])))
            angle = 2 * pi * _uniform(words[pair + 1])
            values[start : start + _CHUNK, pair] = radius * np.cos(angle)
            values[start : start + _CHUNK, pair + 1] = radius * np.sin(angle)
    return out[:, :size].reshape(len(images), *shape)


_Words = npt.NDArray[np.uint64]


def _philox(counter: tuple[_Words, _Words, _Words, _Words], key: int) -> tuple[_Words, ...]:
    """The four words of each counter; all words are below 2**32, so that a product fits into 64 bits."""
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    c0, c1, c2, c3 = counter
    k0, k1 = np.uint64(key) & low, np.uint64(key) >> half
    for _ in range(10):
        p0, p1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (p1 >> half) ^ c1 ^ k0, p1 & low, (p0 >> half) ^ c3 ^ k1, p0 & low
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & low, (k1 + np.uint64(0xBB67AE85)) & low
    return c0, c1, c2, c3


def _uniform(words: _Words) -> npt.NDArray[np.float64]:
    return (words.astype(np.float64) + 0.5) * 2.0**-32


def _integer(name: str, value: int, low: int, high: int) -> int:
    """`value` as a Python int in [low, high), or `UsageError`."""
    try:
        number = -1 if isinstance(value, (bool, np.bool_)) else operator.index(value)
    except TypeError:
        number = -1
    if not low <= number < high:
        raise UsageError(
            f"{name} is out of range.",
            expected=f"an integer in [{low}, 2**{high.bit_length() - 1})",
            got=repr(value),
        )
    return number
