"""The network that a `ModelConfig` describes: a diffusers `UNet2DModel`, optionally on patches and labelled.

Needs torch and diffusers; nothing else in flatq builds networks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from flatq.errors import CheckpointError
from flatq.library_logs import quiet_import
from flatq.network_config import ModelConfig

__all__ = ["Denoiser", "build_network"]


class Denoiser(nn.Module):
    """`(x, t, label) -> model output` over a UNet.

    Args of `forward`:
        x: float32 [N, C, H, W], the noised images.
        t: int64 [N], timesteps of the training process.
        label: int64 [N] for a network with classes, else None.

    Returns:
        float32 [N, out_channels, H, W]: predicted noise, and the variance's values where it is learned.
    """

    def __init__(self, unet: nn.Module, patch_size: int, timestep_scale: float = 1.0) -> None:
        super().__init__()
        self.unet = unet
        self.patch_size = patch_size
        self.timestep_scale = timestep_scale

    def forward(self, x: torch.Tensor, t: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
        if self.patch_size > 1:
            x = F.pixel_unshuffle(x, self.patch_size)
        if self.timestep_scale != 1:
            t = t * self.timestep_scale
        output: torch.Tensor = self.unet(x, t, class_labels=label, return_dict=False)[0]
        if self.patch_size > 1:
            output = F.pixel_shuffle(output, self.patch_size)
        return output


def build_network(config: ModelConfig) -> Denoiser:
    """The network with random weights.

    Raises:
        CheckpointError: diffusers refuses the configuration, or it does not fit the image size.
    """
    with quiet_import():
        import diffusers

        unet_class: Any = diffusers.UNet2DModel  # loads diffusers' models, and torchao

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
            num_class_embeds=config.num_classes,
            **config.unet,
        )
        _adapt(unet, config)
    except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RuntimeError) as error:
        raise CheckpointError(
            "diffusers refuses the network's configuration",
            expected="keyword arguments of diffusers.UNet2DModel",
            got=" ".join(str(error).split())[:200],
            next_step="check the widths, the group count and the block types",
        ) from error
    return Denoiser(unet, config.patch_size, config.timestep_scale)


def _adapt(unet: Any, config: ModelConfig) -> None:
    """What guided-diffusion's networks have and `UNet2DModel` has no argument for.

    Raises:
        ValueError: heads that do not divide the width of an attention.
    """
    if config.attention_heads is not None:
        down, up = config.attention_heads
        for name, module in unet.named_modules():
            if type(module).__name__ == "Attention":
                module.heads = up if name.startswith("up_blocks") else down
                if module.inner_dim % module.heads:
                    raise ValueError(
                        f"{module.heads} heads do not divide the {module.inner_dim} channels of {name}"
                    )
                module.scale = (module.inner_dim // module.heads) ** -0.5
    if config.timestep_channels is not None:
        unet.time_proj.num_channels = config.timestep_channels
        first = unet.time_embedding.linear_1
        unet.time_embedding.linear_1 = nn.Linear(config.timestep_channels, first.out_features)
