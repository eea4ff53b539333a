"""What a sampler is given, and what it offers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

from flatq.process import Array, Prediction, Process

__all__ = ["Denoise", "Noise", "Sampler"]

Denoise: TypeAlias = Callable[[Array, int], Prediction]
"""What the network says about x_i, from x_i [n, C, H, W] and the index i into the kept timesteps."""

Noise: TypeAlias = Callable[[int], Array]
"""Standard normal noise of the shape of x, by its draw: 1 + the number of updates made before."""


class Sampler(Protocol):
    """A sampler's module."""

    def sample(self, denoise: Denoise, x: Array, process: Process, noise: Noise, eta: float, /) -> Array:
        """Images [n, C, H, W] from x, which is noise at the last of the process's kept timesteps.

        Args:
            eta: fraction of DDPM's noise in each update, in [0, 1], for samplers that offer the choice.
        """
        ...

    def evaluations(self, steps: int, /) -> int:
        """Calls of `denoise` over so many kept timesteps."""
        ...
