"""`DDPMScheduler` and `DDIMScheduler` configurations as a `ProcessConfig`, and back.

Settings that flatq's process does not have are refused by name. Where both have a setting and still sample
differently, it is noted (diffusers 0.36 to 0.42):

- `DDPMScheduler` adds noise at the last step too where that step's timestep is above 0: with "trailing"
  spacing, and with "leading" and an offset. flatq adds none. With a fixed small variance it makes no
  difference, as diffusers takes 1e-20 for beta-tilde there.
- `DDIMScheduler` takes timestep - T // N for the one it steps to. With "linspace" spacing, and with
  "trailing" where N does not divide T, that is not the next timestep it keeps. flatq steps to that one.
- `DDIMPipeline` points to x_t by the network's epsilon even where x_0 was clipped. flatq takes the epsilon of
  the clipped x_0, which is `DDIMScheduler.step(use_clipped_model_output=True)`.
- Both schedulers keep their tables in float32: 1 - alpha-bar at t = 0 is off by some 1e-4 of itself.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, StrictBool, ValidationError, model_validator

from flatq.errors import CheckpointError
from flatq.interop.diffusers_source import quiet_diffusers
from flatq.process import ProcessConfig
from flatq.progress import Note

__all__ = ["process_of_scheduler", "scheduler_arguments"]

_OURS: dict[str, Any] = {"squaredcos_cap_v2": "cosine", "v_prediction": "v"}
_THEIRS = {ours: theirs for theirs, ours in _OURS.items()}
"""Schedules and predictions that flatq names otherwise."""

_RETIRED = {"tensor_format": ("pt", "np", None), "timestep_values": (None,), "predict_epsilon": (True,)}
"""Keys of the first diffusers, with the values at which leaving them out changes nothing."""


class _Settings(BaseModel):
    """The settings of both schedulers that flatq's process has, by diffusers' names.

    Left out of `variance_type`: "learned", the variance itself, and "fixed_large_log", for which diffusers
    takes the square root of a negative logarithm. "fixed_small_log" gives the numbers of "fixed_small".
    """

    kind: Literal["DDPMScheduler", "DDIMScheduler"]
    num_train_timesteps: Any
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"] | None
    beta_start: Any
    beta_end: Any
    trained_betas: Any
    prediction_type: Literal["epsilon", "v_prediction", "sample"]
    variance_type: Literal["fixed_small", "fixed_small_log", "fixed_large", "learned_range"] = "fixed_small"
    clip_sample: StrictBool
    clip_sample_range: Any
    timestep_spacing: Literal["leading", "linspace", "trailing"]
    steps_offset: Any
    thresholding: Literal[False]
    dynamic_thresholding_ratio: Any
    sample_max_value: Any
    rescale_betas_zero_snr: Literal[False]
    set_alpha_to_one: Any = None

    @model_validator(mode="after")
    def _of_this_kind(self) -> Self:
        if self.kind == "DDIMScheduler" and self.set_alpha_to_one is not True:
            raise ValueError("set_alpha_to_one is true")
        if self.trained_betas is None and (
            self.beta_schedule is None or (self.kind, self.beta_schedule) == ("DDIMScheduler", "sigmoid")
        ):
            raise ValueError(f"a beta_schedule that {self.kind} has, or trained_betas")
        return self

    def process(self) -> ProcessConfig:
        """The process of these settings.

        Raises:
            pydantic.ValidationError: numbers out of range.
        """
        named = _OURS.get(str(self.beta_schedule), self.beta_schedule)
        schedule = named if self.trained_betas is None else "table"
        fixed = schedule in ("table", "cosine")
        return ProcessConfig.model_validate(
            {
                "schedule": schedule,
                "train_steps": self.num_train_timesteps,
                "beta_ends": None if fixed else (self.beta_start, self.beta_end),
                "betas": self.trained_betas,
                "prediction": _OURS.get(self.prediction_type, self.prediction_type),
                "variance": self.variance_type.removesuffix("_log"),
                "clip_range": self.clip_sample_range if self.clip_sample else None,
                "spacing": self.timestep_spacing,
                "steps_offset": self.steps_offset,
            }
        )


def process_of_scheduler(config: Mapping[str, Any] | None, where: str, note: Note) -> ProcessConfig:
    """The process of a scheduler's configuration.

    Args:
        config: content of scheduler_config.json; None for a model without one: the defaults of
            `DDPMScheduler`. Keys left out take the defaults of the installed diffusers.
        where: its file, for errors.
        note: is told of defaults that were taken, of keys without effect, and where diffusers samples
            differently from the same settings.

    Raises:
        CheckpointError: another scheduler, or a setting that flatq's process does not have, by its key.
    """
    given = {k: v for k, v in (config or {}).items() if not k.startswith("_")}
    name = "DDPMScheduler" if config is None else config.get("_class_name")
    if name not in ("DDPMScheduler", "DDIMScheduler"):
        raise CheckpointError(
            f"flatq does not read the scheduler in {where}",
            expected="_class_name DDPMScheduler or DDIMScheduler",
            got=str(name),
            next_step="name a DDPMScheduler's configuration with the betas of the training: --scheduler",
        )
    with quiet_diffusers() as diffusers:
        scheduler: Any = getattr(diffusers, name)
        defaults = _arguments(scheduler)
        read = set(_Settings.model_fields) - (
            set() if "set_alpha_to_one" in defaults else {"set_alpha_to_one"}
        )
        rest = {k: v for k, v in given.items() if k not in read and (k not in defaults or v != defaults[k])}
        # diffusers keeps the settings of other schedulers when it changes one for another
        foreign = {key for other in scheduler().compatibles for key in _arguments(other)} if rest else set()
    for key, value in rest.items():
        if key not in foreign - set(defaults) and not (key in _RETIRED and value in _RETIRED[key]):
            raise CheckpointError(
                f"{where} has a setting that flatq does not know",
                expected=f"settings of {name}",
                got=f"{key} {_plain(value)}",
                next_step='write "prediction_type": "sample" in its place'
                if key == "predict_epsilon"
                else "take it out, if it has no effect",
            )
    if rest:
        note(f"without effect on {name}, left aside: {', '.join(sorted(rest))}")
    try:
        process = _Settings.model_validate(defaults | given | {"kind": name}).process()
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise CheckpointError(
            f"the scheduler in {where} is not valid for flatq's process",
            expected=first["msg"].removeprefix("Value error, "),
            got=f"{key} {_plain(first['input'])}" if key else "other settings",
            next_step="import another model, or give another scheduler with --scheduler",
        ) from error
    process.training_betas()
    if config is None:
        taken = ", ".join(f"{k} {_plain(v)}" for k, v in defaults.items() if k in read)
        note(f"no scheduler comes with the UNet (--scheduler): the defaults of DDPMScheduler: {taken}")
    _note_differences(process, name, "variance_type" in given, note)
    return process


def _arguments(scheduler: Any) -> dict[str, Any]:
    """Names and defaults of a scheduler's arguments."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(scheduler.__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.name != "self" and p.kind in kinds}


def _note_differences(process: ProcessConfig, name: str, says_variance: bool, note: Note) -> None:
    late = process.spacing == "trailing" or (process.spacing == "leading" and process.steps_offset > 0)
    ddim = name == "DDIMScheduler"
    for differs, text in (
        (
            not ddim and late and process.variance != "fixed_small",
            f"DDPMScheduler with {process.spacing} spacing adds noise at the last step too where that "
            "one's timestep is above 0; flatq adds none there",
        ),
        (
            ddim and not says_variance,
            "DDIMScheduler names no variance: the ancestral sampler takes that of eta 1 (fixed_small)",
        ),
        (
            ddim and process.clip_range is not None,
            "DDIM uses the epsilon of the clipped x_0: use_clipped_model_output=True of DDIMScheduler.step",
        ),
        (
            ddim and process.spacing != "leading",
            f"DDIMScheduler steps down by T // N, which with {process.spacing} spacing need not be the next "
            "timestep it keeps; flatq steps to that one",
        ),
    ):
        if differs:
            note(text)


def scheduler_arguments(process: ProcessConfig, note: Note) -> dict[str, Any]:
    """The arguments of a `DDPMScheduler` that means this process.

    guided-diffusion's scaled ends of the linear schedule are given as numbers; its "respaced" timesteps
    become "linspace", which agrees but for rounding (`note` is told).

    Raises:
        UsageError: the schedule does not exist at this number of training steps.
    """
    betas = process.training_betas()
    respaced = process.spacing == "respaced"
    arguments: dict[str, Any] = {
        "num_train_timesteps": process.train_steps,
        "prediction_type": _THEIRS.get(process.prediction, process.prediction),
        "variance_type": process.variance,
        "clip_sample": process.clip_range is not None,
        "timestep_spacing": "linspace" if respaced else process.spacing,
        "steps_offset": process.steps_offset,
    }
    if process.clip_range is not None:
        arguments["clip_sample_range"] = process.clip_range
    if process.schedule == "table":
        arguments["trained_betas"] = list(process.betas or ())
    else:
        arguments["beta_schedule"] = _THEIRS.get(process.schedule, process.schedule)
    if process.schedule not in ("table", "cosine"):
        first, last = process.beta_ends or (float(betas[0]), float(betas[-1]))
        arguments |= {"beta_start": first, "beta_end": last}
    if respaced:
        note(
            "timesteps: linspace in place of guided-diffusion's respacing; the same for most numbers of "
            "steps, one off in some places for the rest"
        )
    _note_differences(process, "DDPMScheduler", True, note)
    return arguments


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)[:80]
