"""Calibration inputs: those of the float model while it samples, stratified over t.

Q-Diffusion (Li et al. 2023) draws its calibration data uniformly over timesteps; so does this.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from flatq.errors import ModelError
from flatq.labels import Classes
from flatq.noise import NoiseStream
from flatq.process import ProcessConfig
from flatq.runtime.base import Condition, Runtime
from flatq.sampler import sample
from flatq.sampling_settings import SamplingSettings

__all__ = ["CalibrationPlan", "CalibrationSet", "collect_inputs"]


class CalibrationPlan(SamplingSettings):
    """How calibration inputs are drawn: a sampling plan for some images; part of the artifact.

    Every step of the sampling gives `images` inputs, and as many without a label where guidance asks for
    them. An artifact is calibrated best for the sampler that it will be used with.

    Attributes:
        images: number of images sampled.
        seed: of the noise, which is the calibration stream's: no evaluated image is calibrated on.
    """

    images: int = Field(default=32, gt=0)


@dataclass(frozen=True)
class CalibrationSet:
    """Inputs of the network, ordered by timestep.

    Attributes:
        x: float32 [steps, n, C, H, W]; n is images, or twice that with guidance.
        t: int64 [steps], training timesteps, ascending.
        conditions: by name, [steps, n, ...] each; of a network with classes, their labels.
        digest: sha256 of all of them, hex.
    """

    x: NDArray[np.float32]
    t: NDArray[np.int64]
    conditions: Condition
    digest: str

    def batches(self) -> Iterator[tuple[NDArray[Any], ...]]:
        """The inputs of the network at each timestep, in its order: x [n, C, H, W], t [n], the conditions."""
        for step, t in enumerate(self.t):
            conditions = (values[step] for values in self.conditions.values())
            yield self.x[step], np.full(len(self.x[step]), t), *conditions

    def joined(self) -> tuple[NDArray[Any], ...]:
        """The inputs at all timesteps together, [steps * n, ...] each."""
        return tuple(map(np.concatenate, zip(*self.batches(), strict=True)))


def collect_inputs(
    runtime: Runtime,
    process: ProcessConfig,
    plan: CalibrationPlan,
    image_shape: tuple[int, int, int],
    *,
    classes: Classes | None = None,
    progress: Callable[[int], None] | None = None,
) -> CalibrationSet:
    """Sample with the float model by the plan and keep the inputs of every step.

    Raises:
        ModelError: the model's samples are not finite.
        UsageError: guidance for a network that has no null label.
    """
    kept: list[list[dict[str, NDArray[Any]]]] = [[] for _ in range(plan.timestep_count)]

    def keep(
        i: int,
        batch: NDArray[np.float32],
        timesteps: NDArray[np.int64],
        cond: Condition,
        _: NDArray[np.float32],
    ) -> None:
        kept[i].append({"x": batch.copy(), "t": timesteps, **cond})

    images = sample(
        runtime,
        process,
        plan,
        range(plan.images),
        image_shape,
        classes=classes,
        progress=progress,
        observe=keep,
        stream=NoiseStream.CALIBRATION,
    )
    conditions = {
        name: np.stack([np.concatenate([batch[name] for batch in step]) for step in kept])
        for name in kept[0][0]
    }
    x, t = conditions.pop("x"), conditions.pop("t")[:, 0]
    if not (np.isfinite(x).all() and np.isfinite(images).all()):
        raise ModelError(
            "the float model samples values that are not finite",
            expected="finite images",
            got="NaN or infinity during calibration",
            next_step="check the checkpoint with `flatq sample` first",
        )
    digest = hashlib.sha256(b"".join(values.tobytes() for values in (x, t, *conditions.values())))
    return CalibrationSet(x, t, conditions, digest.hexdigest())
