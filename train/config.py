"""What a training run is: its options, and the network that follows from them.

No torch here: nothing is built or trained.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from flatq.checkpoint import ModelConfig
from flatq.errors import UsageError

__all__ = ["TrainConfig", "model_config_for"]


class TrainConfig(BaseModel):
    """The options of one run. Frozen; unknown keys are refused.

    Attributes:
        data: an image source of `flatq.images.load_images`; size and limit go there too.
        method: "adm", the plain baseline, or "sam", sharpness-aware minimization.
        rho: SAM's radius, the Euclidean norm of the perturbation of all weights. Unused by "adm".
        steps, batch_size, lr, weight_decay: AdamW at a constant learning rate.
        ema_decay: the decay that the average reaches after its warm-up.
        seed: of the initial weights, dropout, batches, timesteps and noise.
        threads: torch threads during the run; None leaves them as they are.
        flip: mirrors each image left to right with probability 1/2.
        clip_grad: global norm that the gradient is clipped to; None does not clip.
        patch_size: p > 1 lets the UNet see patches of p x p pixels as channels.
        channels: width of each level of the UNet; each level after the first halves the resolution.
        layers_per_block: residual blocks in each level.
        attention: the resolutions, in pixels as the UNet sees them (after patching), that get attention.
            Where there are any, the middle block gets it too.
        head_dim: channels of an attention head.
        dropout: probability, in the residual blocks.
        schedule, train_steps: the training process, see `flatq.process.ProcessConfig`.

    Raises:
        pydantic.ValidationError: an unknown key or a value out of range.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    data: str
    method: Literal["adm", "sam"] = "adm"
    rho: float = Field(default=0.1, gt=0)
    steps: int = Field(default=2000, gt=0)
    batch_size: int = Field(default=128, gt=0)
    lr: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    seed: int = Field(default=0, ge=0, lt=2**63)
    threads: int | None = Field(default=None, gt=0)
    flip: bool = False
    clip_grad: float | None = Field(default=1.0, gt=0)
    size: int | None = Field(default=None, gt=0)
    limit: int | None = Field(default=None, gt=0)
    patch_size: int = Field(default=1, gt=0)
    channels: tuple[int, ...] = Field(default=(32, 64), min_length=1)
    layers_per_block: int = Field(default=1, gt=0)
    attention: tuple[int, ...] = ()
    head_dim: int = Field(default=8, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    schedule: Literal["cosine", "linear"] = "cosine"
    train_steps: int = Field(default=1000, gt=0)


def model_config_for(config: TrainConfig, image_shape: tuple[int, int, int]) -> ModelConfig:
    """The network of a run: a `UNet2DModel` that predicts the noise.

    Args:
        config: the run.
        image_shape: (C, H, W) of one image.

    Raises:
        UsageError: images that are not square, a size that the patches or the levels do not divide, widths
            below 1 or that the heads do not divide, attention at a resolution that no level has.
    """
    image_channels, height, width = image_shape
    channels, levels = config.channels, len(config.channels)
    if height != width:
        raise UsageError(
            "the images are not square",
            expected="height and width alike",
            got=f"{height} x {width}",
            next_step="give a size, to which all images are resized and cropped",
        )
    if min(channels) < 1:
        raise UsageError(
            "a level of the UNet has no channels",
            expected="widths of 1 or more",
            got=str(list(channels)),
            next_step="give positive widths, such as 32,64",
        )
    divisor = config.patch_size * 2 ** (levels - 1)
    if height % divisor:
        raise UsageError(
            "the images do not fit the patches and the levels of the UNet",
            expected=f"a size divisible by {divisor} (patches of {config.patch_size}, {levels} levels)",
            got=str(height),
            next_step="choose another size, smaller patches or fewer levels",
        )
    resolutions = [height // config.patch_size >> level for level in range(levels)]
    strangers = [pixels for pixels in config.attention if pixels not in resolutions]
    if strangers:
        raise UsageError(
            "attention at a resolution that the UNet does not have",
            expected="some of " + ", ".join(map(str, resolutions)),
            got=", ".join(map(str, strangers)),
            next_step="count the pixels after patching, halved at each level after the first",
        )
    attended = [pixels in config.attention for pixels in resolutions]
    if any(attended):
        # the middle block has the last level's width
        widths = [width for width, has in zip(channels, attended, strict=True) if has] + [channels[-1]]
        unfit = [width for width in widths if width % config.head_dim]
        if unfit:
            raise UsageError(
                "the attention heads do not divide the channels",
                expected=f"widths divisible by {config.head_dim} where there is attention",
                got=str(unfit[0]),
                next_step="choose another head_dim or other widths",
            )
    groups = _norm_groups(channels)
    unet: dict[str, Any] = {
        "block_out_channels": list(channels),
        "layers_per_block": config.layers_per_block,
        "down_block_types": ["AttnDownBlock2D" if has else "DownBlock2D" for has in attended],
        "up_block_types": ["AttnUpBlock2D" if has else "UpBlock2D" for has in reversed(attended)],
        "add_attention": any(attended),
        "attention_head_dim": config.head_dim,
        "norm_num_groups": groups,
        # left out, the middle block's attention has no norm under scale_shift
        "attn_norm_num_groups": groups,
        "norm_eps": 1e-5,
        "dropout": config.dropout,
        "resnet_time_scale_shift": "scale_shift",
        "freq_shift": 0,
        "flip_sin_to_cos": True,
    }
    return ModelConfig(
        image_size=height,
        image_channels=image_channels,
        out_channels=image_channels,
        patch_size=config.patch_size,
        unet=unet,
    )


def _norm_groups(channels: tuple[int, ...]) -> int:
    """The most groups, at most 32, that divide every width and hold 4 channels or more (128: 32, 32: 8)."""
    common = math.gcd(*channels)
    most = max(1, min(32, min(channels) // 4))
    return max(groups for groups in range(1, most + 1) if common % groups == 0)
