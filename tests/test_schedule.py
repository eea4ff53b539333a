"""Schedules, spacings, predictions and variances that diffusers adds, against diffusers' own schedulers."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from flatq.errors import UsageError
from flatq.process import Process, ProcessConfig
from flatq.schedule import beta_schedule, space_timesteps, spaced_timesteps

SCHEDULES = [
    ("cosine", "squaredcos_cap_v2", None),
    ("linear", "linear", (1e-4, 0.02)),
    ("scaled_linear", "scaled_linear", (0.00085, 0.012)),
    ("sigmoid", "sigmoid", (1e-4, 0.02)),
]
COUNTS = [1, 7, 20, 100, 999]


def _scheduler(**options: Any) -> Any:
    return diffusers.DDPMScheduler(**options)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(("ours", "theirs", "ends"), SCHEDULES, ids=[s[0] for s in SCHEDULES])
def test_betas(ours: Any, theirs: str, ends: tuple[float, float] | None) -> None:
    options = {} if ends is None else {"beta_start": ends[0], "beta_end": ends[1]}
    expected = _scheduler(num_train_timesteps=500, beta_schedule=theirs, **options).betas.numpy()
    # diffusers works in float32
    np.testing.assert_allclose(beta_schedule(ours, 500, ends), expected, rtol=2e-5)


@pytest.mark.parametrize("n", COUNTS)
@pytest.mark.parametrize(
    ("spacing", "offset"), [("leading", 0), ("leading", 1), ("linspace", 0), ("trailing", 0)]
)
def test_spacings(spacing: Any, offset: int, n: int) -> None:
    scheduler = _scheduler(timestep_spacing=spacing, steps_offset=offset)
    scheduler.set_timesteps(n)
    np.testing.assert_array_equal(
        spaced_timesteps(1000, n, spacing, offset)[::-1], scheduler.timesteps.numpy()[:n]
    )


def test_a_spec_is_always_respaced() -> None:
    for spec in (None, "ddim20", "10,20"):
        np.testing.assert_array_equal(spaced_timesteps(1000, spec, "leading"), space_timesteps(1000, spec))


def test_an_offset_beyond_the_last_timestep() -> None:
    with pytest.raises(UsageError, match="beyond the last"):
        spaced_timesteps(1000, 1000, "leading", 1)
    with pytest.raises(UsageError, match="out of range"):
        spaced_timesteps(1000, 1001, "leading")


def test_ends_outside_the_unit_interval() -> None:
    with pytest.raises(UsageError, match="outside"):
        beta_schedule("linear", 1000, (0.1, 1.0))


@pytest.mark.parametrize("prediction", ["epsilon", "v", "sample"])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
@pytest.mark.parametrize("clip_range", [None, 0.7])
def test_ancestral_steps_are_those_of_diffusers(
    prediction: Any, variance: Any, clip_range: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = (1e-4, 0.02)
    config = ProcessConfig(
        schedule="linear",
        beta_ends=ends,
        prediction=prediction,
        variance=variance,
        clip_range=clip_range,
        spacing="leading",
    )
    scheduler = _scheduler(
        beta_start=ends[0],
        beta_end=ends[1],
        prediction_type="v_prediction" if prediction == "v" else prediction,
        variance_type=variance,
        clip_sample=clip_range is not None,
        clip_sample_range=clip_range or 1.0,
        timestep_spacing="leading",
    )
    scheduler.set_timesteps(10)
    process = Process.from_config(config, 10)
    rng = np.random.default_rng(0)

    def normal(channels: int) -> NDArray[np.float32]:
        return rng.standard_normal((2, channels, 4, 4)).astype(np.float32)

    x = normal(3)
    for i in range(9, -1, -1):
        output, noise = normal(config.output_channels(3)), normal(3)
        monkeypatch.setattr(
            "diffusers.schedulers.scheduling_ddpm.randn_tensor",
            lambda *_, noise=noise, **__: torch.from_numpy(noise),
        )
        t = int(process.timesteps[i])
        expected = scheduler.step(torch.from_numpy(output), t, torch.from_numpy(x)).prev_sample.numpy()
        predicted = process.predict(output, x, i)
        got = process.posterior_mean(predicted.x0, x, i) + (predicted.sigma * noise if i else 0)
        # the scheduler's alphas_cumprod are float32: 1e-4 relative in 1 - alphas_cumprod at small t
        np.testing.assert_allclose(got, expected, atol=1e-3 * float(np.abs(expected).max()))
        x = got


@pytest.mark.parametrize("prediction", ["epsilon", "v", "sample"])
def test_predictions_of_a_perfect_network(prediction: Any) -> None:
    config = ProcessConfig(schedule="cosine", prediction=prediction, clip_range=None)
    process = Process.from_config(config, 8)
    rng = np.random.default_rng(1)
    x0, noise = rng.standard_normal((2, 2, 3, 4, 4))
    for i in range(8):
        a = process.alphas_cumprod[i]
        x = process.add_noise(x0, noise, i)
        output = {"epsilon": noise, "v": np.sqrt(a) * noise - np.sqrt(1 - a) * x0, "sample": x0}[prediction]
        found = process.predict(output, x, i).x0
        np.testing.assert_allclose(found, x0, atol=1e-8)
        np.testing.assert_allclose(process.epsilon(found, x, i), noise, atol=1e-8)


def test_a_table_of_betas() -> None:
    betas = tuple(np.linspace(0.01, 0.2, 12))
    config = ProcessConfig(schedule="table", train_steps=12, betas=betas)
    assert ProcessConfig.model_validate_json(config.model_dump_json()) == config
    np.testing.assert_array_equal(Process.from_config(config).betas.round(12), np.array(betas).round(12))
