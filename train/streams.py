"""The random streams of a run: one generator for each purpose, all derived from the run's seed.

Each stream is a child of `numpy.random.SeedSequence(seed)` with a spawn key of its own, (stream, rank). So
streams, ranks and seeds don't share their numbers, and a stream added later moves none of the others. torch's
CPU generator takes 32 bits of a seed: two streams coincide by chance with a probability of 2^-32.
"""

from __future__ import annotations

import numpy as np
import torch

__all__ = ["stream", "stream_seed"]

_NAMES = (
    "weights",
    "order",
    "timesteps",
    "noise",
    "perturbation",
    "label_dropout",
    "dropout",
    "weight_noise",
)
"""Places in here are the first numbers of the spawn keys: only append, or every run of every seed changes."""


def stream_seed(seed: int, name: str, rank: int = 0) -> int:
    """The seed of one stream, in [0, 2^64).

    Args:
        seed: of the run, 0 or more.
        name: "weights" (initial ones), "order" (of the images, and flips), "timesteps", "noise",
            "perturbation" (of the input), "label_dropout", "dropout" or "weight_noise".
        rank: of the process, where each has a stream of its own.
    """
    sequence = np.random.SeedSequence(seed, spawn_key=(_NAMES.index(name), rank))
    return int(sequence.generate_state(1, np.uint64)[0])


def stream(seed: int, name: str, rank: int = 0, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator at the start of one stream, see `stream_seed`; another device draws other numbers."""
    return torch.Generator(device).manual_seed(stream_seed(seed, name, rank))
