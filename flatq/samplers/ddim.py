"""DDIM (Song, Meng, Ermon 2021, "Denoising Diffusion Implicit Models")."""

from __future__ import annotations

import math

from flatq.process import Array, Process
from flatq.samplers.base import Denoise, Noise

__all__ = ["evaluations", "sample"]


def sample(denoise: Denoise, x: Array, process: Process, noise: Noise, eta: float) -> Array:
    """Each step goes to x_{i-1} by eq. 12, with sigma of eq. 16 and epsilon recomputed from the clipped x_0.

    eta 0 is deterministic, and no noise is drawn; eta 1 has the variance beta-tilde_i. A learned variance is
    not used.
    """
    for i in reversed(range(process.steps)):
        x0 = denoise(x, i).x0
        kept, kept_prev = float(process.alphas_cumprod[i]), float(process.alphas_cumprod_prev[i])
        sigma = eta * math.sqrt((1 - kept_prev) / (1 - kept)) * math.sqrt(1 - kept / kept_prev)
        direction = math.sqrt(max(1 - kept_prev - sigma**2, 0.0))  # Python floats keep the dtype of x
        x = math.sqrt(kept_prev) * x0 + direction * process.epsilon(x0, x, i)
        if i > 0 and eta > 0:
            x = x + sigma * noise(process.steps - i)
    return x


def evaluations(steps: int) -> int:
    """One for each timestep."""
    return steps
