"""Sampling over any runtime: the loop over batches and steps. The arithmetic is `flatq.process`'s.

The noise of an image depends on (seed, index) alone, so two models sampled with the same plan are paired
image by image, whatever the batch size or the runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from flatq.errors import ModelError, UsageError
from flatq.noise import ImageNoise
from flatq.process import Process, ProcessConfig
from flatq.runtime.base import Runtime

__all__ = ["SamplePlan", "sample", "sample_batches"]

Progress = Callable[[int], None]
"""Called with the number of network evaluations times images since the last call."""

Observer = Callable[[int, NDArray[np.float32], NDArray[np.int64]], None]
"""Called before each evaluation with (step index, x, t)."""


class SamplePlan(BaseModel):
    """How images are drawn; part of every report.

    Attributes:
        steps: number of network evaluations for an image.
        sampler: the ancestral update (Ho et al. 2020) or DDIM (Song et al. 2021).
        eta: of DDIM; 0 is deterministic.
        seed: of the noise.
        clip: whether the predicted x0 is clipped to [-1, 1] at every step.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(default=20, gt=0)
    sampler: Literal["ancestral", "ddim"] = "ancestral"
    eta: float = Field(default=0.0, ge=0.0, le=1.0)
    seed: int = Field(default=0, ge=0)
    clip: bool = True


def sample_batches(
    runtime: Runtime,
    config: ProcessConfig,
    plan: SamplePlan,
    indices: Sequence[int],
    image_shape: tuple[int, int, int],
    *,
    batch_size: int = 64,
    progress: Progress | None = None,
    observe: Observer | None = None,
) -> Iterator[NDArray[np.float32]]:
    """Draw the images of the given indices, batch by batch.

    Args:
        image_shape: [C, H, W].

    Yields:
        float32 [<= batch_size, C, H, W], about [-1, 1]; not finite where the model is not.

    Raises:
        UsageError: a batch size below 1.
        ModelError: the model's output does not have the shape that the process needs.
    """
    if batch_size < 1:
        raise UsageError("the batch is empty", expected="a batch size of at least 1", got=str(batch_size))
    process = Process.from_config(config, plan.steps)
    expected = (process.output_channels(image_shape[0]), *image_shape[1:])
    last = len(process.timesteps) - 1
    for start in range(0, len(indices), batch_size):
        batch = indices[start : start + batch_size]
        noise = ImageNoise(plan.seed, batch, image_shape)
        x = noise.draw()
        for i in range(last, -1, -1):
            t = np.full(len(batch), process.timesteps[i], dtype=np.int64)
            if observe is not None:
                observe(i, x, t)
            output = runtime(x, t)
            if output.shape[1:] != expected:
                raise ModelError(
                    "the model's output does not fit its process",
                    expected=f"[N, {', '.join(map(str, expected))}]",
                    got=str(list(output.shape)),
                    next_step="check the variance setting of the checkpoint's process",
                )
            if plan.sampler == "ancestral":
                x, _ = process.ancestral_step(x, output, i, noise.draw() if i else None, clip=plan.clip)
            else:
                drawn = noise.draw() if i and plan.eta > 0 else None
                x, _ = process.ddim_step(x, output, i, eta=plan.eta, noise=drawn, clip=plan.clip)
            if progress is not None:
                progress(len(batch))
        yield x


def sample(
    runtime: Runtime,
    config: ProcessConfig,
    plan: SamplePlan,
    indices: Sequence[int],
    image_shape: tuple[int, int, int],
    *,
    batch_size: int = 64,
    progress: Progress | None = None,
    observe: Observer | None = None,
) -> NDArray[np.float32]:
    """All images of `sample_batches` in one array [n, C, H, W]; same arguments, same errors."""
    batches = sample_batches(
        runtime, config, plan, indices, image_shape, batch_size=batch_size, progress=progress, observe=observe
    )
    empty = np.empty((0, *image_shape), dtype=np.float32)
    return np.concatenate([empty, *batches])
