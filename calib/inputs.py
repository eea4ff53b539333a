"""Calibration inputs: what the float model really sees while it samples, stratified over t.

Q-Diffusion (Li et al. 2023) draws its calibration data uniformly over timesteps; so does this.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from flatq.errors import ModelError
from flatq.process import ProcessConfig
from flatq.runtime.base import Runtime
from flatq.sampler import SamplePlan, sample

__all__ = ["CALIBRATION_STREAM", "CalibrationPlan", "CalibrationSet", "collect_inputs"]

CALIBRATION_STREAM = 2**63
"""First image index of the calibration's noise, so that no evaluated image was calibrated on."""


class CalibrationPlan(BaseModel):
    """How calibration inputs are drawn; part of the artifact.

    Attributes:
        images: number of sampling chains.
        steps: network evaluations along each chain; every one of these timesteps gives `images` inputs.
        seed: of the noise.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: int = Field(default=32, gt=0)
    steps: int = Field(default=20, gt=0)
    seed: int = Field(default=0, ge=0)


@dataclass(frozen=True)
class CalibrationSet:
    """Inputs of the network, ordered by timestep.

    Attributes:
        x: float32 [steps, images, C, H, W].
        t: int64 [steps], training timesteps, ascending.
        digest: sha256 of both, hex.
    """

    x: NDArray[np.float32]
    t: NDArray[np.int64]
    digest: str


def collect_inputs(
    runtime: Runtime,
    process: ProcessConfig,
    plan: CalibrationPlan,
    image_shape: tuple[int, int, int],
    *,
    progress: Callable[[int], None] | None = None,
) -> CalibrationSet:
    """Sample with the float model by the ancestral update and keep the inputs of every step.

    Raises:
        ModelError: the model's samples are not finite.
    """
    x = np.empty((plan.steps, plan.images, *image_shape), dtype=np.float32)
    t = np.empty(plan.steps, dtype=np.int64)
    filled = np.zeros(plan.steps, dtype=np.int64)

    def keep(i: int, batch: NDArray[np.float32], timesteps: NDArray[np.int64]) -> None:
        x[i, filled[i] : filled[i] + len(batch)] = batch
        t[i] = timesteps[0]
        filled[i] += len(batch)

    indices = range(CALIBRATION_STREAM, CALIBRATION_STREAM + plan.images)
    sampling = SamplePlan(steps=plan.steps, seed=plan.seed)
    images = sample(runtime, process, sampling, indices, image_shape, progress=progress, observe=keep)
    if not (np.isfinite(x).all() and np.isfinite(images).all()):
        raise ModelError(
            "the float model samples values that are not finite",
            expected="finite images",
            got="NaN or infinity during calibration",
            next_step="check the checkpoint with `flatq sample` first",
        )
    digest = hashlib.sha256(x.tobytes() + t.tobytes()).hexdigest()
    return CalibrationSet(x, t, digest)
