"""Mean loss under gaussian weight noise (low-pass filter flatness, Bisla et al. 2022)."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from flatq.flatness.landscape import F64, Landscape, Vector
from flatq.flatness.result import Binned, Noise
from flatq.noise import NoiseStream, normal

__all__ = ["filter_scales", "noise_losses", "weight_noise"]


def weight_noise(weights: Vector, seed: int, index: int, first_draw: int = 1) -> dict[str, torch.Tensor]:
    """Standard normal noise for every tensor, the same for all networks of one architecture.

    Args:
        index: of the perturbation; tensor number i takes draw `first_draw` + i of image index `index`.
    """
    return {
        name: torch.from_numpy(
            normal(seed, [index], first_draw + i, (1, 1, w.numel()), stream=NoiseStream.PROBES)
        )
        .view(w.shape)
        .to(w)
        for i, (name, w) in enumerate(weights.items())
    }


def filter_scales(weights: Vector) -> dict[str, torch.Tensor]:
    """The root mean square of each filter (axis 0 of a matrix or kernel), of a vector as a whole."""
    scales = {}
    for name, w in weights.items():
        rows = w.flatten(1) if w.ndim > 1 else w.reshape(1, -1)
        rms = rows.square().mean(1).sqrt()
        scales[name] = rms.view(-1, *[1] * (w.ndim - 1)) if w.ndim > 1 else rms
    return scales


def noise_losses(
    landscape: Landscape,
    kind: Literal["absolute", "relative"],
    sigma: float,
    pairs: int,
    seed: int,
    base: F64,
) -> Noise:
    """Mean loss and its increase under e ~ N(0, sigma^2), or N(0, (sigma rms of the filter)^2).

    Each draw of e is evaluated with both signs; the standard errors are over the pairs, on fixed draws of
    (x0, t, noise).

    Args:
        base: float64 [n], the losses at the weights.
    """
    scales = filter_scales(landscape.weights) if kind == "relative" else None
    found = np.empty((pairs, len(base)))
    for pair in range(pairs):
        noise = weight_noise(landscape.weights, seed, pair)
        e = {name: z * sigma * (scales[name] if scales else 1.0) for name, z in noise.items()}
        found[pair] = (landscape.losses(e) + landscape.losses({k: -z for k, z in e.items()})) / 2
    bins = landscape.draws.bins.numpy()
    return Noise(
        kind=kind,
        sigma=sigma,
        loss=Binned.over_repeats(found, bins),
        increase=Binned.over_repeats(found - base, bins),
    )
