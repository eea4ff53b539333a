"""The loss at SAM's ascent point: the worst direction nearby, to first order."""

from __future__ import annotations

from typing import Literal

import torch

from flatq.flatness.landscape import F64, Landscape, Vector, norm
from flatq.flatness.result import Ascent, binned_over_draws

__all__ = ["ascent_losses", "ascent_step"]

_ETA = 0.01  # Kwon et al. 2021, section 5.1: keeps directions of tiny weights


def ascent_step(
    weights: Vector, gradient: Vector, rho: float, kind: Literal["absolute", "adaptive"]
) -> dict[str, torch.Tensor]:
    """e = rho g / |g| (Foret et al. 2021, eq. 2), or e = rho T^2 g / |T g| with T = |w| + 0.01 (Kwon et al.
    2021, section 4). The norm is over all tensors together."""
    scale = {
        name: weights[name].abs() + _ETA if kind == "adaptive" else torch.ones_like(g)
        for name, g in gradient.items()
    }
    length = norm({name: scale[name] * g for name, g in gradient.items()})
    return {name: rho / length * scale[name].square() * g for name, g in gradient.items()}


def ascent_losses(
    landscape: Landscape, kind: Literal["absolute", "adaptive"], rho: float, gradient: Vector, base: F64
) -> Ascent:
    """Increase of the loss at the ascent point; the standard error is over the draws."""
    moved = landscape.losses(ascent_step(landscape.weights, gradient, rho, kind))
    bins = landscape.draws.bins.numpy()
    return Ascent(kind=kind, rho=rho, increase=binned_over_draws(moved - base, bins))
