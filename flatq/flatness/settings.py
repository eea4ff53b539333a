"""What `flatq flatness` measures. Pure data, no torch."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["BINS", "FlatnessSettings"]

BINS = 4
"""Equal quarters of the training timesteps [0, T), from low noise to high."""


class FlatnessSettings(BaseModel):
    """The measurements and their draws; part of the result.

    Attributes:
        images: number of (x0, t, noise) draws; a multiple of 4, so that each quarter of t has as many.
        seed: random seed of the noise on images and weights.
        sigmas: standard deviations of the absolute gaussian weight noise, the same for every tensor (the
            code that the paper builds on takes 0.01).
        relative_sigmas: standard deviations relative to the root mean square of each filter.
        pairs: antithetic pairs (+e, -e) of weight noise at each sigma.
        rhos: Euclidean radii of SAM's ascent (Foret et al. 2021).
        adaptive_rhos: radii of the adaptive ascent (Kwon et al. 2021).
        eigenvalue_images: draws for the largest eigenvalue and the trace, the first so many.
        probes: Rademacher vectors of the trace (Hutchinson 1989).
        random_draws: random directions of the same norm as a quantization error.
        batch_size: draws at a time; it moves results by rounding only.
        threads: CPU threads; None for all cores.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: int = Field(default=512, ge=8, multiple_of=BINS)
    seed: int = Field(default=0, ge=0)
    sigmas: tuple[float, ...] = (0.005, 0.01, 0.02)
    relative_sigmas: tuple[float, ...] = (0.05, 0.1)
    pairs: int = Field(default=50, ge=2)
    rhos: tuple[float, ...] = (0.1, 0.2, 0.5)
    adaptive_rhos: tuple[float, ...] = (0.5, 1.0)
    eigenvalue_images: int = Field(default=256, ge=8)
    probes: int = Field(default=32, ge=2)
    random_draws: int = Field(default=16, ge=2)
    batch_size: int = Field(default=128, ge=1)
    threads: int | None = Field(default=None, ge=1)
