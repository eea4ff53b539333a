"""The loss increase under an artifact's own quantization error, and what forecasts it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from flatq.errors import ArtifactError, UsageError
from flatq.flatness.landscape import F64, Landscape, Vector, inner, norm, weight_noise
from flatq.flatness.result import Damage, binned
from flatq.quantize.lowering import dequantized_weights, lower

if TYPE_CHECKING:
    from flatq.deployment import Target
    from flatq.quantize.artifact import Artifact

__all__ = ["damage", "quantization_error"]

_DRAW = 2**31  # keeps these directions apart from those of `noise_losses`


def quantization_error(artifact: Artifact, weights: Vector) -> dict[str, torch.Tensor]:
    """d = dequantized - float, for every parameter that quantizing changed (biases that it corrected, too).

    Raises:
        UsageError: the artifact's float weights are not comparable: equalized, or with low-rank branches.
        ArtifactError: its tensors are not those of this network.
    """
    recipe = artifact.manifest.recipe
    if recipe.equalize is not None or recipe.low_rank:
        raise UsageError(
            "the quantization error of this artifact is not a step in weight space",
            expected="an artifact without --equalize and --low-rank",
            got=recipe.name,
            next_step="quantize without these options to measure the damage",
        )
    quantized = dequantized_weights(artifact)
    if set(quantized) != set(weights):
        odd = sorted(set(quantized) ^ set(weights))
        raise ArtifactError(
            "the artifact's tensors are not those of the checkpoint's network",
            expected="the same parameters",
            got=f"{odd[0]} in one of them only",
            next_step="name an artifact that was made from this checkpoint",
        )
    error = {name: quantized[name].to(w) - w for name, w in weights.items()}
    return {name: d for name, d in error.items() if bool(d.any())}


def damage(
    landscape: Landscape,
    artifact: Artifact,
    name: str,
    digest: str,
    *,
    target: Target,
    gradient: Mapping[str, torch.Tensor],
    base: F64,
    random_draws: int,
    seed: int,
) -> Damage:
    """Measure one artifact.

    Args:
        target: whose lowered Q/DQ graph stands for the quantized model.
        gradient, base: gradient and losses at the weights.
    """
    error = quantization_error(artifact, landscape.weights)
    bins = landscape.draws.bins.numpy()
    moved = landscape.losses(error) - base
    graph = Landscape(lower(artifact, target).graph, landscape.draws, landscape.batch_size)
    quantized = graph.losses() - base
    random = np.empty((random_draws, len(base)))
    touched = {key: landscape.weights[key] for key in error}
    for i in range(random_draws):
        noise = weight_noise(touched, seed, i, first_draw=_DRAW)
        e = {key: z * (norm({key: error[key]}) / norm({key: z})) for key, z in noise.items()}
        random[i] = landscape.losses(e) - base
    everywhere = {key: error.get(key, torch.zeros_like(w)) for key, w in landscape.weights.items()}
    product, _ = landscape.hessian_times(everywhere)
    return Damage(
        artifact=name,
        precision=artifact.manifest.precision,
        digest=digest,
        weights=binned(moved, bins),
        quantized=binned(quantized, bins),
        random=binned(random, bins),
        slope=inner(everywhere, gradient),
        curvature=inner(everywhere, product) / 2,
        error_norm=norm(error),
    )
