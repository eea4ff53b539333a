"""The training objective: predict the noise. Drawing x0, t and noise is the loop's work."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

__all__ = ["noise_prediction_loss"]


def noise_prediction_loss(
    network: nn.Module,
    x0: torch.Tensor,
    t: torch.Tensor,
    noise: torch.Tensor,
    alphas_cumprod: torch.Tensor,
) -> torch.Tensor:
    """Mean squared error of the predicted noise (DDPM, Ho et al. 2020, eq. 14).

    Args:
        network: `(x_t, t) -> noise`, float32 [N, C, H, W].
        x0: float32 [N, C, H, W], images in [-1, 1].
        t: int64 [N], timesteps in [0, T).
        noise: float32 [N, C, H, W], standard normal.
        alphas_cumprod: [T], on the device of t. The square roots are taken in its dtype, x_t is float32.

    Returns:
        float32 scalar.
    """
    kept = alphas_cumprod[t].view(-1, 1, 1, 1)
    x_t = kept.sqrt().float() * x0 + (1 - kept).sqrt().float() * noise
    return F.mse_loss(network(x_t, t), noise)
