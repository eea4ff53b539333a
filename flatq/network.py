"""The network that a `ModelConfig` describes: a diffusers `UNet2DModel`, optionally on patches.

Needs torch and diffusers; nothing else in flatq builds networks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from flatq.errors import CheckpointError

if TYPE_CHECKING:
    from flatq.checkpoint import ModelConfig

__all__ = ["Denoiser", "build_network"]


class Denoiser(nn.Module):
    """`(x, t) -> model output` over a UNet.

    Args of `forward`:
        x: float32 [N, C, H, W], the noised images.
        t: int64 [N], timesteps of the training process.

    Returns:
        float32 [N, out_channels, H, W]: predicted noise, and the variance's values where it is learned.
    """

    def __init__(self, unet: nn.Module, patch_size: int) -> None:
        super().__init__()
        self.unet = unet
        self.patch_size = patch_size

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if self.patch_size > 1:
            x = F.pixel_unshuffle(x, self.patch_size)
        output: torch.Tensor = self.unet(x, t, return_dict=False)[0]
        if self.patch_size > 1:
            output = F.pixel_shuffle(output, self.patch_size)
        return output


def build_network(config: ModelConfig) -> Denoiser:
    """The network with random weights.

    Raises:
        CheckpointError: diffusers refuses the configuration, or it does not fit the image size.
    """
    import diffusers

    unet_class: Any = diffusers.UNet2DModel

    pixels = config.patch_size**2
    if config.image_size % config.patch_size:
        raise CheckpointError(
            "the patches do not tile the image",
            expected=f"an image size divisible by {config.patch_size}",
            got=str(config.image_size),
            next_step="choose another patch size",
        )
    try:
        unet = unet_class(
            sample_size=config.image_size // config.patch_size,
            in_channels=config.image_channels * pixels,
            out_channels=config.out_channels * pixels,
            **config.unet,
        )
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            "diffusers refuses the network's configuration",
            expected="keyword arguments of diffusers.UNet2DModel",
            got=" ".join(str(error).split())[:200],
            next_step="check the widths, the group count and the block types",
        ) from error
    return Denoiser(unet, config.patch_size)
