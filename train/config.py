"""What a training run is: its options, and the network that follows from them.

No torch here: nothing is built or trained.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from flatq.errors import DataError, UsageError
from flatq.images import Resize, check_labels
from flatq.network_config import ModelConfig
from flatq.process import ProcessConfig

__all__ = ["TrainConfig", "model_config_for"]


class TrainConfig(BaseModel):
    """The options of one run. Frozen; unknown keys are refused. `flatq.train.configure` reads presets.

    Attributes:
        data: an image source of `flatq.images.load_images`; size, resize, limit and image_channels go there.
        method: "adm", the plain baseline; "ip", input perturbation (Ning et al. 2023); "sam",
            sharpness-aware minimization (Foret et al. 2021); "noise", gaussian weight noise, see
            `flatq.train.gradients`.
        rho: SAM's radius, the Euclidean norm of the perturbation of all weights. Used by "sam" alone.
        gamma: strength of the input perturbation, 0.1 for "ip" where it is None. With "sam" it adds input
            perturbation to SAM; "adm" refuses it.
        sam_on: "norm" perturbs the weights and biases of the normalization layers only, and rho is the norm
            over these (SAM-ON, Mueller et al. 2023); "all" perturbs every weight.
        sigma: standard deviation of the weight noise as a fraction of each tensor's range. Used by "noise"
            alone. The default is about the rounding error of 4 bits.
        sam_every: SAM at steps 1, 1 + k, 1 + 2k, ..., plain gradients in between.
        steps, batch_size, lr, weight_decay: AdamW. batch_size is the joint batch of all processes.
        warmup: steps in which lr rises linearly to its value.
        lr_schedule: after the warm-up lr stays ("constant") or falls to zero at the last step, as half a
            cosine or as a line.
        clip_grad: global norm that the gradient is clipped to; None does not clip. With SAM it touches the
            second gradient only.
        precision: "bf16" runs the network under autocast; loss, weights and optimizer stay float32.
        compile: `torch.compile` the network.
        ema_decays: one moving average each; the first is the checkpoint's `ema`, another one `ema_DECAY`.
        ema_warmup: decay rises as (1 + n) / (10 + n) up to its value; False takes it from the start.
        switch_ema: copies the first average back into the weights every so many steps, or after each
            epoch: Switch EMA (Li et al. 2024).
        swa_start, swa_period: SWA (Izmailov et al. 2018): the equal-weight mean of the weights after steps
            start, start + period, ...; a start below 1 is a fraction of `steps`. None: no SWA.
        variance: "learned_range" learns the variance with the hybrid loss, see `flatq.train.objective`.
        timesteps: how t is drawn, see `flatq.train.timesteps`. Only "uniform" gives all methods the same.
        labels: trains with the classes of the images, num_classes of them (None: highest label plus one);
            label_dropout is the fraction that loses its class, for classifier-free guidance.
        seed: of all random streams, see `flatq.train.streams`.
        threads: torch threads during the run; None leaves them as they are.
        device: "auto" takes a CUDA device where there is one.
        flip: mirrors each image left to right with probability 1/2.
        patch_size: p > 1 lets the UNet see patches of p x p pixels as channels.
        channels: width of each level of the UNet; each level after the first halves the resolution.
        layers_per_block: residual blocks in each level.
        attention: the resolutions, in pixels as the UNet sees them (after patching), that get attention.
            Where there are any, the middle block gets it too.
        head_dim: channels of an attention head.
        resblock_updown: residual blocks change the resolution, as in guided-diffusion; else convolutions.
        zero_init: residual blocks, attention and output start at zero, as in guided-diffusion.
        dropout: probability, in the residual blocks.
        schedule, train_steps: the training process, see `flatq.process.ProcessConfig`.
        max_minutes: ends the run after so much time in training, all sessions together.
        heldout, heldout_every: an image source whose loss is taken every so many steps and at the end.
        stop_loss, stop_weights: ends the run once the held-out loss of these weights is at most this.
        snapshot_steps: after each of these steps the checkpoint is also written as `ckpt-step-NNNNNNN.pt`,
            with the held-out loss at that step where there are held-out images.
        snapshot_loss: the first time that the held-out loss of stop_weights is at most this, the checkpoint
            is also written as `ckpt-loss.pt`, and the run goes on.
        save_every, save_minutes: a checkpoint with the whole state every so many steps or minutes.
        grid_every: sample grids, every so many steps. tensorboard: scalars into RUN/tensorboard.

    Raises:
        pydantic.ValidationError: an unknown key, a value out of range, or options that contradict.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    data: str
    size: int | None = Field(default=None, gt=0)
    resize: Resize = "center-crop-adm"
    limit: int | None = Field(default=None, gt=0)
    image_channels: Literal[1, 3] | None = None
    flip: bool = False
    labels: bool = False
    num_classes: int | None = Field(default=None, gt=0)
    label_dropout: float = Field(default=0.0, ge=0, lt=1)

    method: Literal["adm", "ip", "sam", "noise"] = "adm"
    rho: float = Field(default=0.1, gt=0)
    sam_on: Literal["all", "norm"] = "all"
    sigma: float = Field(default=0.02, gt=0)
    gamma: float | None = Field(default=None, gt=0)
    sam_every: int = Field(default=1, gt=0)

    steps: int = Field(default=2000, gt=0)
    batch_size: int = Field(default=128, gt=0)
    lr: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    warmup: int = Field(default=0, ge=0)
    lr_schedule: Literal["constant", "cosine", "linear"] = "constant"
    clip_grad: float | None = Field(default=1.0, gt=0)
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    seed: int = Field(default=0, ge=0, lt=2**63)
    threads: int | None = Field(default=None, gt=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"

    ema_decays: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = (0.999,)
    ema_warmup: bool = True
    switch_ema: Annotated[int, Field(gt=0)] | Literal["epoch"] | None = None
    swa_start: Annotated[int, Field(gt=0)] | Annotated[float, Field(gt=0, lt=1)] | None = None
    swa_period: int = Field(default=50, gt=0)

    patch_size: int = Field(default=1, gt=0)
    channels: tuple[Annotated[int, Field(gt=0)], ...] = Field(default=(32, 64), min_length=1)
    layers_per_block: int = Field(default=1, gt=0)
    attention: tuple[int, ...] = ()
    head_dim: int = Field(default=8, gt=0)
    resblock_updown: bool = False
    zero_init: bool = False
    dropout: float = Field(default=0.0, ge=0, lt=1)

    schedule: Literal["cosine", "linear"] = "cosine"
    train_steps: int = Field(default=1000, gt=0)
    variance: Literal["fixed_large", "learned_range"] = "fixed_large"
    timesteps: Literal["uniform", "loss-second-moment"] = "uniform"

    max_minutes: float | None = Field(default=None, gt=0)
    heldout: str | None = None
    heldout_every: int = Field(default=500, gt=0)
    stop_loss: float | None = Field(default=None, gt=0)
    stop_weights: Literal["raw", "ema"] = "raw"
    snapshot_steps: tuple[Annotated[int, Field(gt=0)], ...] = ()
    snapshot_loss: float | None = Field(default=None, gt=0)
    save_every: int | None = Field(default=None, gt=0)
    save_minutes: float | None = Field(default=10.0, gt=0)
    grid_every: int | None = Field(default=None, gt=0)
    tensorboard: bool = False

    @model_validator(mode="after")
    def _agree(self) -> Self:
        contradictions = {
            'gamma needs the method "ip" or "sam"': self.gamma is not None
            and self.method in ("adm", "noise"),
            'sam_on needs the method "sam"': self.sam_on != "all" and self.method != "sam",
            'sam_every needs the method "sam"': self.sam_every > 1 and self.method != "sam",
            "ema_decays names a decay twice": len(set(self.ema_decays)) < len(self.ema_decays),
            "switch_ema needs one of ema_decays": self.switch_ema is not None and not self.ema_decays,
            "the warm-up leaves no steps for lr_schedule": self.lr_schedule != "constant"
            and self.warmup >= self.steps,
            "snapshot_steps go beyond the last step": max(self.snapshot_steps, default=0) > self.steps,
            "snapshot_loss needs heldout images": self.snapshot_loss is not None and self.heldout is None,
            "swa_start lies beyond the last step": self.first_swa_step > self.steps,
            "stop_loss needs heldout images": self.stop_loss is not None and self.heldout is None,
            "stop_weights ema needs one of ema_decays": self.stop_weights == "ema" and not self.ema_decays,
            "label_dropout needs labels": self.label_dropout > 0 and not self.labels,
            "num_classes needs labels": self.num_classes is not None and not self.labels,
        }
        for message, wrong in contradictions.items():
            if wrong:
                raise ValueError(message)
        return self

    @property
    def perturbation(self) -> float:
        """The gamma in use: 0 for no input perturbation."""
        if self.gamma is not None:
            return self.gamma
        return 0.1 if self.method == "ip" else 0.0

    def rate(self, step: int) -> float:
        """The learning rate of a step, from 1 to `steps`."""
        if step <= self.warmup:
            return self.lr * step / self.warmup
        if self.lr_schedule == "constant":
            return self.lr
        done = (step - self.warmup) / (self.steps - self.warmup)
        return self.lr * ((1 + math.cos(math.pi * done)) / 2 if self.lr_schedule == "cosine" else 1 - done)

    @property
    def first_swa_step(self) -> int:
        """The step whose weights are the first that SWA takes; 0 without SWA."""
        if self.swa_start is None:
            return 0
        if isinstance(self.swa_start, int):
            return self.swa_start
        return max(1, round(self.swa_start * self.steps))

    def label_count(self, labels: NDArray[np.int64] | None) -> int | None:
        """How many classes the images have; None for a run without labels.

        Args:
            labels: those of the images, int64 [n], None where they have none.

        Raises:
            DataError: the run needs labels and the images have none, or one that is not below num_classes.
        """
        if not self.labels:
            return None
        if labels is None:
            raise DataError(
                f"{self.data} has no labels",
                expected="images with labels, such as the digits or a folder with a dataset.json",
                got="none",
                next_step="leave labels out",
            )
        if self.num_classes is not None:
            check_labels(labels, self.num_classes, self.data)
        return self.num_classes or int(labels.max()) + 1

    @property
    def process(self) -> ProcessConfig:
        """The diffusion process that the network is trained for."""
        return ProcessConfig(schedule=self.schedule, train_steps=self.train_steps, variance=self.variance)


def model_config_for(
    config: TrainConfig, image_shape: tuple[int, int, int], labels: int | None = None
) -> ModelConfig:
    """The network of a run: a `UNet2DModel` that predicts the noise, and the variance where it is learned.

    Args:
        config: the run.
        image_shape: (C, H, W) of one image.
        labels: how many classes there are; None for a network without. Where labels are dropped, the null
            label is one more.

    Raises:
        UsageError: images that are not square, a size that the patches or the levels do not divide, widths
            that the heads do not divide, attention at a resolution that no level has.
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
    updown = config.resblock_updown
    down, up = (
        ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if updown else ("DownBlock2D", "UpBlock2D")
    )
    unet: dict[str, Any] = {
        "block_out_channels": list(channels),
        "layers_per_block": config.layers_per_block,
        "down_block_types": ["AttnDownBlock2D" if has else down for has in attended],
        "up_block_types": ["AttnUpBlock2D" if has else up for has in reversed(attended)],
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
    if updown:
        unet |= {"downsample_type": "resnet", "upsample_type": "resnet"}
    return ModelConfig(
        image_size=height,
        image_channels=image_channels,
        out_channels=config.process.output_channels(image_channels),
        patch_size=config.patch_size,
        num_classes=None if labels is None else labels + (config.label_dropout > 0),
        null_label=labels if config.label_dropout > 0 else None,
        unet=unet,
    )


def _norm_groups(channels: tuple[int, ...]) -> int:
    """The most groups, at most 32, that divide every width and hold 4 channels or more (128: 32, 32: 8)."""
    common = math.gcd(*channels)
    most = max(1, min(32, min(channels) // 4))
    return max(groups for groups in range(1, most + 1) if common % groups == 0)
