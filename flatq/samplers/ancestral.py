"""Ancestral sampling (Ho, Jain, Abbeel 2020, "Denoising Diffusion Probabilistic Models", algorithm 2)."""

from __future__ import annotations

from flatq.process import Array, Process
from flatq.samplers.base import Denoise, Noise

__all__ = ["evaluations", "sample"]


def sample(denoise: Denoise, x: Array, process: Process, noise: Noise, _eta: float) -> Array:
    """Each step draws from p(x_{i-1} | x_i), with the process's variance (eq. 7 with the predicted x_0)."""
    for i in reversed(range(process.steps)):
        predicted = denoise(x, i)
        x = process.posterior_mean(predicted.x0, x, i)
        if i > 0:
            x = x + predicted.sigma * noise(process.steps - i)
    return x


def evaluations(steps: int) -> int:
    """One for each timestep."""
    return steps
