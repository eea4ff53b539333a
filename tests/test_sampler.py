"""Sampling over a runtime that is plain numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError
from toy_runtime import Toy

from flatq import noise
from flatq.errors import ModelError
from flatq.noise import NoiseStream
from flatq.process import ProcessConfig
from flatq.runtime.base import UNCONDITIONED, Condition
from flatq.sampler import sample, sample_batches
from flatq.sampling_settings import SamplingSettings
from flatq.schedule import space_timesteps

SHAPE = (3, 4, 4)
FIXED = ProcessConfig(schedule="cosine")
LEARNED = ProcessConfig(schedule="cosine", variance="learned_range")


PLANS = [
    SamplingSettings(steps=5),
    SamplingSettings(steps=5, sampler="ddim"),
    SamplingSettings(steps=5, sampler="ddim", eta=0.7),
    SamplingSettings(steps=5, clip=False),
    SamplingSettings(steps=1),
]


@pytest.mark.parametrize("config", [FIXED, LEARNED], ids=["fixed", "learned"])
@pytest.mark.parametrize(
    "settings",
    PLANS,
    ids=lambda settings: f"{settings.sampler}-{settings.eta}-{settings.steps}-{settings.clip}",
)
def test_an_image_depends_on_its_index_alone(settings: SamplingSettings, config: ProcessConfig) -> None:
    model = Toy(config.output_channels(3))
    three = sample(model, config, settings, range(2, 13), SHAPE, batch_size=3)
    eight = sample(model, config, settings, range(2, 13), SHAPE, batch_size=8)
    assert three.shape == (11, *SHAPE)
    assert three.dtype == np.float32
    np.testing.assert_allclose(three, eight, atol=1e-6)
    backwards = sample(model, config, settings, [12, 5, 2], SHAPE)
    np.testing.assert_allclose(backwards, eight[[10, 3, 0]], atol=1e-6)
    assert len(np.unique(eight.reshape(11, -1), axis=0)) == 11
    other = sample(model, config, settings.model_copy(update={"seed": 1}), range(2, 13), SHAPE)
    assert not np.allclose(other, eight)


@pytest.mark.parametrize(
    ("sampler", "eta", "draws"),
    [("ancestral", 0.0, [0, 1, 2, 3]), ("ddim", 0.7, [0, 1, 2, 3]), ("ddim", 0.0, [0])],
)
@pytest.mark.parametrize("stream", NoiseStream)
def test_x_t_is_draw_0_and_an_update_takes_1_and_the_updates_made(
    stream: NoiseStream, sampler: Any, eta: float, draws: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def normal(*args: Any, **kwargs: Any) -> NDArray[np.float32]:
        asked.append(kwargs["draw"])
        return noise.normal(*args, **kwargs)

    monkeypatch.setattr("flatq.sampler.normal", normal)
    seen: list[NDArray[np.float32]] = []
    settings = SamplingSettings(steps=4, sampler=sampler, eta=eta, seed=9)
    indices, observe = [3, 8], lambda i, x, t, cond, output: seen.append(x)
    sample(Toy(), FIXED, settings, indices, SHAPE, observe=observe, stream=stream)
    assert asked == draws  # none at the last update
    np.testing.assert_array_equal(seen[0], noise.normal(9, indices, 0, SHAPE, stream=stream))


def test_batches_come_in_order_and_every_step_is_seen() -> None:
    model, seen, done = Toy(), [], []
    settings = SamplingSettings(steps=4)
    batches = list(
        sample_batches(
            model,
            FIXED,
            settings,
            range(7),
            SHAPE,
            batch_size=3,
            progress=done.append,
            observe=lambda i, x, t, cond, output: seen.append((i, len(x))),
        )
    )
    assert [len(batch) for batch in batches] == [3, 3, 1]
    assert seen == [(i, n) for n in (3, 3, 1) for i in (3, 2, 1, 0)]
    assert sum(done) == 7 * 4
    times = [t for _, t in model.calls[:4]]
    assert times == sorted(times, reverse=True)
    assert (times[0], times[-1]) == (999, 0)


@pytest.mark.parametrize(("config", "channels"), [(FIXED, 6), (LEARNED, 3)])
def test_another_output_shape_is_refused(config: ProcessConfig, channels: int) -> None:
    with pytest.raises(ModelError, match="does not fit its process"):
        sample(Toy(channels), config, SamplingSettings(steps=2), range(2), SHAPE)


def test_a_network_that_loses_images_is_refused() -> None:
    class Short(Toy):
        def __call__(
            self, x: NDArray[np.float32], t: NDArray[np.int64], cond: Condition = UNCONDITIONED
        ) -> NDArray[np.float32]:
            return super().__call__(x, t)[:1]

    with pytest.raises(ModelError):
        sample(Short(), FIXED, SamplingSettings(steps=2), range(3), SHAPE)


def test_no_images() -> None:
    assert sample(Toy(), FIXED, SamplingSettings(steps=2), [], SHAPE).shape == (0, *SHAPE)


@pytest.mark.parametrize(
    "bad",
    [
        {"steps": 0},
        {"steps": "0"},
        {"steps": "ddim"},
        {"sampler": "euler"},
        {"eta": 1.5},
        {"seed": -1},
        {"other": 1},
    ],
)
def test_a_plan_out_of_range_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SamplingSettings.model_validate(bad)


def test_an_image_that_is_not_finite_stays_so_and_reaches_no_model() -> None:
    """Integer kernels would make an ordinary number of it; the other images of the batch go on as alone."""

    class Failing(Toy):
        def __call__(
            self, x: NDArray[np.float32], t: NDArray[np.int64], cond: Condition = UNCONDITIONED
        ) -> NDArray[np.float32]:
            assert np.isfinite(x).all()
            output = super().__call__(x, t, cond)
            if len(self.calls) == 2:
                output[1, 0, 0, 0] = np.nan
            return output

    settings = SamplingSettings(steps=4, clip=False)
    found = sample(Failing(), FIXED, settings, range(3), SHAPE)
    expected = sample(Toy(), FIXED, settings, range(3), SHAPE)
    np.testing.assert_array_equal(found[[0, 2]], expected[[0, 2]])
    assert np.isnan(found[1]).any()


@pytest.mark.parametrize(
    ("spec", "timesteps"),
    [("20", 20), ("ddim20", 20), ("10,15,20", 45)],
)
def test_guided_diffusion_s_specs_of_steps(spec: str, timesteps: int) -> None:
    settings = SamplingSettings.model_validate({"steps": spec})
    assert settings.evaluations == timesteps
    model = Toy()
    sample(model, FIXED, settings, range(1), SHAPE)
    assert [t for _, t in reversed(model.calls)] == space_timesteps(1000, settings.steps).tolist()
    assert SamplingSettings.model_validate_json(settings.model_dump_json()) == settings


def test_a_plain_number_of_steps_is_stored_as_a_number() -> None:
    assert SamplingSettings.model_validate({"steps": "20"}) == SamplingSettings(steps=20)
