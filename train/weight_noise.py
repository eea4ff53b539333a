"""Gaussian weight noise in training: the gradient at weights moved as rounding would move them.

Xia et al. 2025 (DNQ, arXiv 2511.01462) model the error of quantized weights as gaussian noise and train with
it. That idea is followed here and not the paper's scaling, which was not at hand: the noise is scaled to each
tensor's range, because the rounding error of a quantizer per tensor is. b bits have the step
range / (2^b - 1) and the error step / sqrt(12), so sigma = 0.0192 stands for 4 bits and 0.00113 for 8.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from flatq.train.sam import backward, perturbed

__all__ = ["noise_gradients"]


def noise_gradients(
    parameters: Sequence[torch.nn.Parameter],
    closure: Callable[[], torch.Tensor],
    sigma: float,
    generator: torch.Generator,
) -> torch.Tensor:
    """Leaves the gradient at w + e in `.grad`, where e ~ N(0, (sigma * range)^2), range = max(w) - min(w).

    Only tensors of two or more dimensions are moved: the weights of convolutions and linear layers, which a
    quantizer rounds, and not biases and normalization. The weights come back from a copy, bit for bit.

    Args:
        parameters: all weights; what `.grad` held is dropped.
        closure: the loss at the present weights, a scalar, without backward.
        sigma: standard deviation as a fraction of each tensor's range, above 0.
        generator: of the noise, on the weights' device.

    Returns:
        The loss at w + e, a scalar on the weights' device.
    """
    moved = [w for w in parameters if w.dim() > 1]
    noise = []
    with torch.no_grad():
        for w in moved:
            low, high = w.aminmax()
            drawn = torch.randn(w.shape, generator=generator, device=w.device, dtype=w.dtype)
            noise.append(drawn.mul_(high - low))
    with perturbed(moved, noise, sigma):
        return backward(parameters, closure)
