"""`DDPMScheduler` and `DDIMScheduler` configurations as a `ProcessConfig`, and back.

Settings that flatq's process does not have are refused by name. Where both have a setting and still sample
differently, it is said (diffusers 0.36 to 0.42):

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
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from pydantic import ValidationError

from flatq.errors import CheckpointError
from flatq.interop.diffusers_library import quiet_diffusers
from flatq.process import ProcessConfig
from flatq.schedule import spaced_timesteps

__all__ = ["process_of_scheduler", "scheduler_arguments"]

_SCHEDULES = {
    "linear": "linear",
    "scaled_linear": "scaled_linear",
    "squaredcos_cap_v2": "cosine",
    "sigmoid": "sigmoid",
}
_PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v", "sample": "sample"}
_VARIANCES = {
    "fixed_small": "fixed_small",
    "fixed_small_log": "fixed_small",  # the same numbers, by way of the logarithm
    "fixed_large": "fixed_large",
    "learned_range": "learned_range",
}
_SPACINGS = {name: name for name in ("leading", "linspace", "trailing")}
_WHY = {
    "laplace": "flatq has no such schedule",
    "fixed_large_log": "diffusers takes the square root of a negative logarithm there, which gives no number",
    "learned": "the network's output is the variance itself there",
}
_READ = (
    "num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "trained_betas", "prediction_type",
    "variance_type", "clip_sample", "clip_sample_range", "timestep_spacing", "steps_offset", "thresholding",
    "rescale_betas_zero_snr",
)  # fmt: skip
_OF_THRESHOLDING = ("dynamic_thresholding_ratio", "sample_max_value")
_RETIRED = {"tensor_format": ("pt", "np", None), "timestep_values": (None,), "predict_epsilon": (True,)}
"""Keys of the first diffusers, with the values at which leaving them out changes nothing."""


def process_of_scheduler(
    config: Mapping[str, Any] | None, where: str, note: Callable[[str], None]
) -> ProcessConfig:
    """What a scheduler's configuration says about the process.

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
        ignored = _check_keys(given, name, defaults, where, scheduler)
    if ignored:
        note(f"without effect on {name}, left aside: {', '.join(ignored)}")
    settings = _Settings({**defaults, **given}, where)
    for key, wanted in (
        ("thresholding", False),
        ("rescale_betas_zero_snr", False),
        ("set_alpha_to_one", True),
    ):
        if key in defaults and settings.flag(key) is not wanted:
            settings.refuse(key, json.dumps(wanted), "flatq's process has no such thing")
    variance = (
        settings.pick("variance_type", _VARIANCES) if "variance_type" in settings.values else "fixed_small"
    )
    process = settings.process(name, variance)
    if config is None:
        taken = ", ".join(f"{key} {_plain(defaults[key])}" for key in _READ if key in defaults)
        note(f"no scheduler comes with the UNet (--scheduler): the defaults of DDPMScheduler: {taken}")
    _say_differences(process, name, "variance_type" in given, note)
    return process


def _arguments(scheduler: Any) -> dict[str, Any]:
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(scheduler.__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.name != "self" and p.kind in kinds}


def _check_keys(
    given: Mapping[str, Any], name: str, defaults: Mapping[str, Any], where: str, scheduler: Any
) -> list[str]:
    """The keys that have no effect: of other schedulers, which diffusers keeps when it changes one for
    another, and retired ones.

    Raises:
        CheckpointError: any other key that flatq does not read.
    """
    known = {*_READ, *_OF_THRESHOLDING} | ({"set_alpha_to_one"} if name == "DDIMScheduler" else set())
    rest = {k: v for k, v in given.items() if k not in known and not (k in defaults and v == defaults[k])}
    if not rest:
        return []
    foreign = {key for other in scheduler().compatibles for key in _arguments(other)} - set(defaults)
    for key, value in rest.items():
        if key not in foreign and not (key in _RETIRED and value in _RETIRED[key]):
            raise CheckpointError(
                f"{where} has a setting that flatq does not know",
                expected=f"settings of {name}",
                got=f"{key} {_plain(value)}",
                next_step='write "prediction_type": "sample" in its place'
                if key == "predict_epsilon"
                else "take it out, if it has no effect",
            )
    return sorted(rest)


class _Settings:
    """A scheduler's settings, defaults filled in."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values, self._where = values, where

    def refuse(self, key: str, expected: str, why: str) -> None:
        raise CheckpointError(
            f"flatq does not sample with the {key} in {self._where}",
            expected=expected,
            got=f"{_plain(self.values[key])}: {why}",
            next_step="import another model, or give another scheduler with --scheduler",
        )

    def flag(self, key: str) -> bool:
        if not isinstance(self.values[key], bool):
            self.refuse(key, "true or false", "not a truth value")
        return bool(self.values[key])

    def pick(self, key: str, table: Mapping[str, str]) -> str:
        value = self.values[key]
        if not isinstance(value, str) or value not in table:
            self.refuse(key, "one of " + ", ".join(table), _WHY.get(str(value), "not known"))
        return table[value]

    def process(self, name: str, variance: str) -> ProcessConfig:
        values = self.values
        schedules = {k: v for k, v in _SCHEDULES.items() if name != "DDIMScheduler" or k != "sigmoid"}
        schedule = "table" if values["trained_betas"] is not None else self.pick("beta_schedule", schedules)
        fixed = schedule in ("table", "cosine")
        try:
            process = ProcessConfig.model_validate(
                {
                    "schedule": schedule,
                    "train_steps": values["num_train_timesteps"],
                    "beta_ends": None if fixed else (values["beta_start"], values["beta_end"]),
                    "betas": values["trained_betas"],
                    "prediction": self.pick("prediction_type", _PREDICTIONS),
                    "variance": variance,
                    "clip_range": values["clip_sample_range"] if self.flag("clip_sample") else None,
                    "spacing": self.pick("timestep_spacing", _SPACINGS),
                    "steps_offset": values["steps_offset"],
                }
            )
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise CheckpointError(
                f"the scheduler in {self._where} is not valid",
                expected=first["msg"],
                got=f"{place} {str(first['input'])[:80]}" if place else "its trained_betas",
            ) from error
        process.training_betas()
        return process


def _say_differences(
    process: ProcessConfig, name: str, says_variance: bool, note: Callable[[str], None]
) -> None:
    late = process.spacing == "trailing" or (process.spacing == "leading" and process.steps_offset > 0)
    if name == "DDPMScheduler" and late and process.variance != "fixed_small":
        note(
            f"DDPMScheduler with {process.spacing} spacing adds noise at the last step too where that "
            "one's timestep is above 0; flatq adds none there"
        )
    if name != "DDIMScheduler":
        return
    if not says_variance:
        note("DDIMScheduler names no variance: the ancestral sampler takes that of eta 1 (fixed_small)")
    if process.clip_range is not None:
        note(
            "DDIM goes by the epsilon of the clipped x_0: use_clipped_model_output=True of DDIMScheduler.step"
        )
    if process.spacing != "leading":
        note(
            f"DDIMScheduler steps down by T // N, which with {process.spacing} spacing need not be the next "
            "timestep it keeps; flatq steps to that one"
        )


def scheduler_arguments(process: ProcessConfig, note: Callable[[str], None]) -> dict[str, Any]:
    """The arguments of a `DDPMScheduler` that means this process.

    guided-diffusion's scaled ends of the linear schedule are written out; its "respaced" timesteps become
    "linspace", which agrees but for rounding (`note` is told).

    Raises:
        UsageError: the schedule does not exist at this number of training steps.
    """
    betas = process.training_betas()
    written = {ours: theirs for theirs, ours in _SCHEDULES.items()}
    arguments: dict[str, Any] = {
        "num_train_timesteps": process.train_steps,
        "prediction_type": {ours: theirs for theirs, ours in _PREDICTIONS.items()}[process.prediction],
        "variance_type": process.variance,
        "clip_sample": process.clip_range is not None,
        "timestep_spacing": process.spacing,
        "steps_offset": process.steps_offset,
    }
    if process.clip_range is not None:
        arguments["clip_sample_range"] = process.clip_range
    if process.schedule == "table":
        arguments["trained_betas"] = list(process.betas or ())
    else:
        arguments["beta_schedule"] = written[process.schedule]
    if process.schedule not in ("table", "cosine"):
        first, last = process.beta_ends or (float(betas[0]), float(betas[-1]))
        arguments |= {"beta_start": first, "beta_end": last}
    if process.spacing == "respaced":
        arguments["timestep_spacing"] = "linspace"
        note(
            "timesteps: linspace in place of guided-diffusion's respacing; the same for N = "
            + ", ".join(map(str, _agreeing(process.train_steps)))
            + " steps and most others, one off in some places for the rest"
        )
    _say_differences(process, "DDPMScheduler", True, note)
    return arguments


def _agreeing(train_steps: int) -> list[int]:
    """Usual numbers of steps at which "respaced" and "linspace" keep the same timesteps."""
    usual = [n for n in (10, 20, 25, 50, 100, 250, 500) if n < train_steps] + [train_steps]
    return [
        n
        for n in usual
        if np.array_equal(
            spaced_timesteps(train_steps, n, "respaced"), spaced_timesteps(train_steps, n, "linspace")
        )
    ]


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)[:80]
