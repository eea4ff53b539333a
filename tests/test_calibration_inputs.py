"""Calibration inputs: they are those of the sampling that the plan describes."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from toy_runtime import Toy

from flatq.calib.inputs import CalibrationPlan, collect_inputs
from flatq.noise import NoiseStream
from flatq.process import ProcessConfig
from flatq.runtime.base import Condition
from flatq.sampler import sample
from flatq.sampling_settings import SamplingSettings

SHAPE = (3, 4, 4)
PROCESS = ProcessConfig(schedule="cosine")


@pytest.mark.parametrize(
    "settings", [{}, {"sampler": "ddim"}, {"sampler": "ddim", "eta": 0.7}, {"clip": False}]
)
def test_the_inputs_are_those_of_the_sampler_asked_for(settings: dict[str, object]) -> None:
    seen: dict[int, NDArray[np.float32]] = {}

    def keep(i: int, x: NDArray[np.float32], t: NDArray[np.int64], cond: Condition, _: object) -> None:
        seen[i] = x.copy()

    plan = SamplingSettings.model_validate({"steps": 4, "seed": 3, **settings})
    sample(Toy(), PROCESS, plan, range(2), SHAPE, observe=keep, stream=NoiseStream.CALIBRATION)
    found = collect_inputs(Toy(), PROCESS, CalibrationPlan(images=2, **plan.model_dump()), SHAPE)
    assert np.array_equal(found.x, np.stack([seen[i] for i in range(4)]))


def test_another_sampler_gives_other_inputs() -> None:
    plans = [CalibrationPlan(images=2, steps=4), CalibrationPlan(images=2, steps=4, sampler="ddim")]
    assert plans[0].update == "ancestral"
    first, second = (collect_inputs(Toy(), PROCESS, plan, SHAPE) for plan in plans)
    assert first.digest != second.digest
    assert np.array_equal(first.x[-1], second.x[-1])  # both start from the same noise
