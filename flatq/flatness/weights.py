"""Norm, range and tail weight of each weight tensor: what min-max quantization sees of it."""

from __future__ import annotations

from flatq.flatness.landscape import Vector
from flatq.flatness.result import LayerWeights

__all__ = ["layer_weights"]


def layer_weights(weights: Vector) -> list[LayerWeights]:
    """Every matrix and kernel, in the network's order; vectors (biases, normalizations) stay in float and are
    left out."""
    found = []
    for name, w in weights.items():
        if w.ndim < 2:
            continue
        values = w.double().flatten()
        centred = values - values.mean()
        deviation = float(centred.square().mean().sqrt())
        found.append(
            LayerWeights(
                name=name.removesuffix(".weight"),
                count=values.numel(),
                norm=float(values.norm()),
                standard_deviation=deviation,
                range_over_std=float(values.max() - values.min()) / deviation if deviation else 0.0,
                kurtosis=float(centred.pow(4).mean()) / deviation**4 if deviation else 0.0,
            )
        )
    return found
