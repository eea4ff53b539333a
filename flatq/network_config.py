"""The description of a network, as checkpoints and artifacts hold it. No torch; `flatq.network` builds it."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from flatq.inputs import InputSpec
from flatq.labels import Classes

__all__ = ["ModelConfig"]


class ModelConfig(BaseModel):
    """The network: a diffusers `UNet2DModel`, optionally on patches, and what its arguments cannot say.

    Attributes:
        image_size: height and width of the images, pixels.
        image_channels: 1 for grey, 3 for RGB.
        out_channels: image_channels, or twice that for a learned variance.
        patch_size: p > 1 folds p x p pixels into channels before the UNet and unfolds after it, so that the
            UNet sees image_size / p pixels.
        num_classes: rows of the label embedding, the null label's included; None for no labels.
        null_label: the row that stands for "no label"; None where there is none.
        attention_heads: heads of every attention on the way down and in the middle, and on the way up; None
            leaves them to `unet["attention_head_dim"]`.
        timestep_channels: width of the timestep's sinusoids; None for the width of the first level.
        timestep_scale: the network is given t times this.
        timestep_dtype: of the network's input t.
        unet: keyword arguments of `diffusers.UNet2DModel` but for sample_size, in_channels, out_channels and
            num_class_embeds, which follow from the fields above.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_size: int = Field(gt=0)
    image_channels: int = Field(gt=0)
    out_channels: int = Field(gt=0)
    patch_size: int = Field(default=1, gt=0)
    num_classes: int | None = Field(default=None, gt=0)
    null_label: int | None = Field(default=None, ge=0)
    attention_heads: tuple[int, int] | None = None
    timestep_channels: int | None = Field(default=None, gt=0)
    timestep_scale: float = Field(default=1.0, gt=0)
    timestep_dtype: Literal["int64", "float32"] = "int64"
    unet: dict[str, Any]

    @model_validator(mode="after")
    def _labels_fit(self) -> Self:
        if self.num_classes is None and self.null_label is not None:
            raise ValueError("a null label without classes")
        _ = self.classes
        return self

    @property
    def classes(self) -> Classes | None:
        """The labels that the network takes; None for an unconditional one."""
        return None if self.num_classes is None else Classes(count=self.num_classes, null=self.null_label)

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """The inputs of the network: x, t and, with classes, their labels."""
        x = InputSpec(name="x", dtype="float32", shape=self.image_shape)
        t = InputSpec(name="t", dtype=self.timestep_dtype, shape=())
        return (x, t) if self.classes is None else (x, t, self.classes.input)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """[C, H, W] of one image."""
        return (self.image_channels, self.image_size, self.image_size)
