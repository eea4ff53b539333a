"""Scheduler configurations as a process and back: every setting read, or refused by its name."""

from __future__ import annotations

import inspect
import json
from typing import Any

import diffusers
import numpy as np
import pytest
from diffusers_models import make_scheduler

from flatq.errors import CheckpointError, UsageError
from flatq.interop.diffusers_scheduler import process_of_scheduler, scheduler_arguments
from flatq.process import Process, ProcessConfig

BASE = ProcessConfig(schedule="linear", beta_ends=(1e-4, 0.02), variance="fixed_small", spacing="leading")
"""What diffusers' defaults mean."""


def _read(config: dict[str, Any]) -> tuple[ProcessConfig, list[str]]:
    notes: list[str] = []
    return process_of_scheduler(config, "the file", notes.append), notes


def _saved(kind: str = "DDPMScheduler", **options: Any) -> dict[str, Any]:
    """The scheduler's file, as diffusers writes it."""
    content: dict[str, Any] = json.loads(make_scheduler(kind, **options).to_json_string())
    return content


@pytest.mark.parametrize("kind", ["DDPMScheduler", "DDIMScheduler"])
def test_defaults_are_those_of_the_installed_diffusers(kind: str) -> None:
    for config in ({"_class_name": kind}, _saved(kind)):
        process, _ = _read(config)
        assert process == BASE


@pytest.mark.parametrize(
    ("options", "change"),
    [
        ({"num_train_timesteps": 250}, {"train_steps": 250}),
        ({"beta_start": 0.001, "beta_end": 0.3}, {"beta_ends": (0.001, 0.3)}),
        ({"beta_schedule": "scaled_linear"}, {"schedule": "scaled_linear"}),
        ({"beta_schedule": "squaredcos_cap_v2"}, {"schedule": "cosine", "beta_ends": None}),
        ({"beta_schedule": "sigmoid"}, {"schedule": "sigmoid"}),
        (
            {"trained_betas": [0.1, 0.2, 0.25], "num_train_timesteps": 3},
            {"schedule": "table", "betas": (0.1, 0.2, 0.25), "train_steps": 3, "beta_ends": None},
        ),
        ({"prediction_type": "v_prediction"}, {"prediction": "v"}),
        ({"prediction_type": "sample"}, {"prediction": "sample"}),
        ({"variance_type": "fixed_small_log"}, {}),
        ({"variance_type": "fixed_large"}, {"variance": "fixed_large"}),
        ({"variance_type": "learned_range"}, {"variance": "learned_range"}),
        ({"clip_sample": False}, {"clip_range": None}),
        ({"clip_sample_range": 2.5}, {"clip_range": 2.5}),
        ({"clip_sample": False, "clip_sample_range": 2.5}, {"clip_range": None}),
        ({"timestep_spacing": "linspace"}, {"spacing": "linspace"}),
        ({"timestep_spacing": "trailing"}, {"spacing": "trailing"}),
        ({"steps_offset": 1}, {"steps_offset": 1}),
        ({"dynamic_thresholding_ratio": 0.5, "sample_max_value": 3.0}, {}),
    ],
    ids=str,
)
def test_settings_that_are_read(options: dict[str, Any], change: dict[str, Any]) -> None:
    config = _saved(**options)
    process, notes = _read(config)
    assert process == BASE.model_copy(update=change)
    assert notes == []
    # the oracle: the scheduler's own tables and timesteps, float32
    scheduler = make_scheduler(**options)
    np.testing.assert_allclose(process.training_betas(), scheduler.betas.numpy(), rtol=2e-5)
    scheduler.set_timesteps(3)
    np.testing.assert_array_equal(
        Process.from_config(process, 3).timesteps[::-1], scheduler.timesteps.numpy()
    )
    # and back
    again = scheduler_arguments(process, notes.append)
    assert _read(_saved(**again))[0] == process


def test_a_table_is_kept_to_the_bit() -> None:
    betas = np.linspace(1e-4, 0.2, 50) ** 1.1
    process, _ = _read(_saved(trained_betas=betas, num_train_timesteps=50))
    assert process.betas == tuple(betas)
    assert _read(_saved(**scheduler_arguments(process, print)))[0] == process


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("beta_schedule", "laplace"),
        ("beta_schedule", "exp"),
        ("beta_schedule", None),
        ("prediction_type", "flow_prediction"),
        ("variance_type", "fixed_large_log"),
        ("variance_type", "learned"),
        ("variance_type", None),
        ("thresholding", True),
        ("thresholding", None),
        ("rescale_betas_zero_snr", True),
        ("timestep_spacing", "log"),
        ("clip_sample", "yes"),
        ("no_such_key", 1),
        ("predict_epsilon", False),
        ("timestep_values", [3]),
    ],
)
@pytest.mark.parametrize("kind", ["DDPMScheduler", "DDIMScheduler"])
def test_settings_that_are_refused_by_name(kind: str, key: str, value: Any) -> None:
    with pytest.raises(CheckpointError) as caught:
        _read(_saved(kind) | {key: value})
    assert key in str(caught.value)
    assert "the file" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"), [("set_alpha_to_one", False), ("beta_schedule", "sigmoid"), ("set_alpha_to_one", 1)]
)
def test_settings_that_only_ddim_refuses(key: str, value: Any) -> None:
    with pytest.raises(CheckpointError, match=key):
        _read(_saved("DDIMScheduler") | {key: value})
    _read(_saved() | {key: value})


@pytest.mark.parametrize(
    "change",
    [
        {"num_train_timesteps": 0},
        {"num_train_timesteps": "many"},
        {"beta_end": "large"},
        {"trained_betas": [0.1, 0.2]},
        {"trained_betas": [0.1] * 999 + [1.0]},
        {"clip_sample_range": -1},
        {"steps_offset": -1},
    ],
    ids=lambda change: str(change)[:40],
)
def test_values_that_are_not_valid(change: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"the file is not valid"):
        _read(_saved() | change)


def test_ends_outside_the_unit_interval() -> None:
    with pytest.raises(UsageError, match="outside"):
        _read(_saved() | {"beta_end": 1.5})


@pytest.mark.parametrize("kind", ["PNDMScheduler", "EulerDiscreteScheduler", "ScoreSdeVeScheduler", None])
def test_other_schedulers_are_refused_with_the_next_step(kind: str | None) -> None:
    with pytest.raises(CheckpointError, match=rf"got: +{kind}(.*\n)*.*--scheduler"):
        _read({"_class_name": kind})


def test_keys_without_effect_are_left_aside_aloud() -> None:
    foreign = {"skip_prk_steps": True, "use_karras_sigmas": False, "tensor_format": "pt"}
    process, notes = _read(_saved() | foreign | {"set_alpha_to_one": False, "_anything": 1})
    assert process == BASE
    assert notes == [
        "without effect on DDPMScheduler, left aside: "
        "set_alpha_to_one, skip_prk_steps, tensor_format, use_karras_sigmas"
    ]


def test_every_setting_of_the_installed_schedulers_is_known() -> None:
    """A setting that a new diffusers adds is refused until flatq reads it; this says that there is one."""
    from flatq.interop import diffusers_scheduler as module

    known = {*module._Settings.model_fields, "self"}
    for kind in (diffusers.DDPMScheduler, diffusers.DDIMScheduler):
        assert set(inspect.signature(kind.__init__).parameters) <= known


def test_what_is_refused_would_not_sample() -> None:
    """`fixed_large_log` gives no number in diffusers, which is why it is refused."""
    scheduler = make_scheduler(variance_type="fixed_large_log")
    scheduler.set_timesteps(10)
    assert bool((scheduler._get_variance(500) ** 0.5).isnan())


@pytest.mark.parametrize("train_steps", [1000, 4000])
def test_the_scaled_ends_of_guided_diffusion_are_written_out(train_steps: int) -> None:
    process = ProcessConfig(schedule="linear", train_steps=train_steps)
    notes: list[str] = []
    arguments = scheduler_arguments(process, notes.append)
    assert arguments["beta_start"] == 0.1 / train_steps
    assert arguments["beta_end"] == 20 / train_steps
    assert arguments["timestep_spacing"] == "linspace"
    assert "linspace in place of" in notes[0]
    again, _ = _read(_saved(**arguments))
    np.testing.assert_array_equal(again.training_betas(), process.training_betas())
    for n in (10, 20, 50, 100, 250, train_steps):
        np.testing.assert_array_equal(
            Process.from_config(again, n).betas, Process.from_config(process, n).betas
        )
