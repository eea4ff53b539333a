"""The flags of guided-diffusion's scripts: what they say of a network and its process. No tensors, no torch.

Names, defaults and meaning are those of openai/guided-diffusion's `script_util.py` and of DDPM-IP, which adds
`input_pertub` and the multipliers for 32 pixels.
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from flatq.errors import UsageError, one_line
from flatq.progress import Note

__all__ = ["GROUPS", "Flags", "read_flags"]

GROUPS = 32
"""Of every group norm."""

_MULTIPLIERS: dict[int, tuple[float, ...]] = {
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
    32: (1, 2, 2, 2),
}

_SCRIPTS = frozenset[str]().union(
    ("data_dir", "val_data_dir", "schedule_sampler", "lr", "weight_decay", "lr_anneal_steps", "anneal_lr"),
    ("batch_size", "microbatch", "ema_rate", "log_interval", "save_interval", "eval_interval", "iterations"),
    ("resume_checkpoint", "fp16_scale_growth", "noised", "clip_denoised", "num_samples", "use_ddim"),
    ("model_path", "base_samples", "classifier_path", "classifier_scale", "classifier_use_fp16"),
    ("classifier_width", "classifier_depth", "classifier_attention_resolutions", "classifier_pool"),
    ("classifier_use_scale_shift_norm", "classifier_resblock_updown"),
)
"""Flags of the training and sampling scripts that neither the network nor the process depends on."""

_SUPER_RESOLUTION = frozenset({"large_size", "small_size"})


def _split(value: object) -> object:
    """A command line's "1,2,2" as a list."""
    return [part for part in value.split(",") if part.strip()] if isinstance(value, str) else value


_Positive = Annotated[int, Field(gt=0)]


class Flags(BaseModel):
    """The flags of one network, those left out at guided-diffusion's defaults.

    Values may be those of a command line ("True", "64", "1,2,2").

    Attributes:
        num_heads_upsample: heads on the way up; -1 for num_heads.
        num_head_channels: width of every head; -1 for num_heads of them.
        attention_resolutions: sides of the feature maps that get attention, pixels.
        channel_mult: width of each level over num_channels; empty for what the image size implies.

    Raises:
        pydantic.ValidationError: an unknown flag or value, or a network that guided-diffusion refuses too.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_size: _Positive = 64
    num_channels: _Positive = 128
    num_res_blocks: _Positive = 2
    num_heads: _Positive = 4
    num_heads_upsample: int = -1
    num_head_channels: int = -1
    attention_resolutions: Annotated[tuple[_Positive, ...], BeforeValidator(_split)] = (16, 8)
    channel_mult: Annotated[
        tuple[Annotated[int | float, Field(gt=0, allow_inf_nan=False)], ...], BeforeValidator(_split)
    ] = ()
    dropout: float = Field(default=0.0, ge=0, lt=1)
    class_cond: bool = False
    use_checkpoint: bool = False
    use_scale_shift_norm: bool = True
    resblock_updown: bool = False
    use_fp16: bool = False
    use_new_attention_order: bool = False
    learn_sigma: bool = False
    diffusion_steps: _Positive = 1000
    noise_schedule: Literal["linear", "cosine"] = "linear"
    timestep_respacing: str = ""
    use_kl: bool = False
    predict_xstart: bool = False
    rescale_timesteps: bool = False
    rescale_learned_sigmas: bool = False
    input_pertub: float = 0.0

    @model_validator(mode="after")
    def _is_a_network(self) -> Self:
        for name in ("num_heads_upsample", "num_head_channels"):
            if (value := getattr(self, name)) != -1 and value < 1:
                raise ValueError(f"{name} is -1 or positive, not {value}")
        if not self.channel_mult and self.image_size not in _MULTIPLIERS:
            sizes = ", ".join(map(str, sorted(_MULTIPLIERS)))
            raise ValueError(
                f"channel_mult, as image_size {self.image_size} implies none (only {sizes} pixels do)"
            )
        odd = [width for width in self.widths if width < 1 or width % GROUPS]
        if odd:
            raise ValueError(
                f"num_channels x channel_mult divisible by {GROUPS}, the groups of its norms, not {odd[0]}"
            )
        halvings = len(self.widths) - 1
        if self.image_size % 2**halvings:
            raise ValueError(
                f"image_size divisible by {2**halvings} for {halvings + 1} levels of channel_mult, "
                f"not {self.image_size}"
            )
        for width, up in sorted(self.attentions):
            self.heads(width, up=up)
        return self

    @property
    def multipliers(self) -> tuple[float, ...]:
        """`channel_mult`, or what the image size implies."""
        return self.channel_mult or _MULTIPLIERS[self.image_size]

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, from the top."""
        return tuple(int(multiplier * self.num_channels) for multiplier in self.multipliers)

    @property
    def attention_levels(self) -> tuple[bool, ...]:
        """Which levels have attention; the middle block always has."""
        rates = {self.image_size // side for side in self.attention_resolutions}
        return tuple(2**level in rates for level in range(len(self.widths)))

    @property
    def attentions(self) -> frozenset[tuple[int, bool]]:
        """Channels of the attentions, and whether they are on the way up."""
        levels = zip(self.widths, self.attention_levels, strict=True)
        both = {(width, up) for width, attends in levels if attends for up in (False, True)}
        return frozenset(both | {(self.widths[-1], False)})

    def heads(self, width: int, *, up: bool = False) -> int:
        """Heads of an attention of so many channels.

        Raises:
            ValueError: they do not divide the channels.
        """
        name = "num_heads_upsample" if up and self.num_heads_upsample != -1 else "num_heads"
        if self.num_head_channels != -1:
            name = "num_head_channels"
        value: int = getattr(self, name)
        if width % value:
            raise ValueError(f"{name} that divides the {width} channels of an attention, not {value}")
        return width // value if name == "num_head_channels" else value

    def resolved(self) -> dict[str, Any]:
        """Every flag as a plain value, the multipliers spelt out."""
        return self.model_dump(mode="json") | {"channel_mult": list(self.multipliers)}


def read_flags(path: Path, note: Note) -> Flags:
    """The flags of a JSON file: an object of them, or one that holds it under the key "flags".

    `note` is told which defaults were taken and which flags have no effect on the imported network.

    Raises:
        UsageError: no such file, not JSON, an unknown flag (with a suggestion), a flag given twice, a value
            that is not valid, flags of a super-resolution network.
    """
    given = _read_object(path)
    if isinstance(given.get("flags"), dict):
        note(f'flags: those under the key "flags" of {path.name}; its other keys are not read')
        given = given["flags"]
    if found := sorted(_SUPER_RESOLUTION & set(given)):
        raise UsageError(
            f"{path} holds the flags of a super-resolution network",
            expected="a network that makes images from noise alone",
            got=", ".join(found),
            next_step="flatq has no sampling from a smaller image; import the base network",
        )
    known = set(Flags.model_fields)
    unknown = [name for name in given if name not in known | _SCRIPTS]
    if unknown:
        close = difflib.get_close_matches(unknown[0], sorted(known | _SCRIPTS), n=1)
        raise UsageError(
            f"{path} holds a flag that guided-diffusion does not have: {unknown[0]!r}",
            expected="the flags of guided-diffusion's image_train.py and image_sample.py",
            got=", ".join(map(repr, unknown)),
            next_step=f"did you mean {close[0]!r}?" if close else "remove it, if the network does without it",
        )
    try:  # as text, as on a command line: true is not a number there, and 64 may be "64"
        flags = Flags.model_validate({name: _text(value) for name, value in given.items() if name in known})
    except ValidationError as error:
        first = error.errors()[0]
        where = str(first["loc"][0]) if first["loc"] else ""
        raise UsageError(
            f"the flag {where} in {path} is not valid" if where else f"the flags in {path} make no network",
            expected=first["msg"].removeprefix("Value error, "),
            got=repr(given[where]) if where else None,
            next_step="take the flags that the network was trained with",
        ) from error
    _note_effects(flags, given, note)
    return flags


def _read_object(path: Path) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{twice[0]!r} is given twice")
        return dict(pairs)

    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=once)
        if not isinstance(content, dict):
            raise ValueError(f"a {type(content).__name__}")
    except (OSError, ValueError) as error:
        raise UsageError(
            f"the flags cannot be read from {path}",
            expected='a JSON object such as {"image_size": 64, "num_channels": 128}',
            got=one_line(error),
            next_step="write the flags that the network was trained with",
        ) from error
    return content


def _note_effects(flags: Flags, given: dict[str, Any], note: Note) -> None:
    values = dict(flags) | {"channel_mult": flags.multipliers}
    left_out = [n for n in values if n not in given or (n == "channel_mult" and not flags.channel_mult)]
    if left_out:
        taken = ", ".join(name + "=" + (_text(values[name]) or '""') for name in left_out)
        note(f"flags left out, guided-diffusion's defaults taken: {taken}")
    inert = ("use_checkpoint", "use_fp16", "use_kl", "rescale_learned_sigmas", "timestep_respacing")
    idle = [name for name in given if name in _SCRIPTS]
    idle += [name for name in (*inert, "input_pertub") if getattr(flags, name)]
    if idle:
        note(f"without effect on the imported network: {', '.join(idle)}")
    rates = {2**level for level in range(len(flags.widths))}
    unused = [side for side in flags.attention_resolutions if flags.image_size // side not in rates]
    if unused:
        note(f"attention_resolutions: no level of the network has {_text(unused)} pixels")


def _text(value: object) -> str:
    """A flag's value as on a command line."""
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
