"""Sampling over any runtime, batch by batch: noise, labels, guidance. `flatq.samplers` loop over the steps.

The noise and the label of an image depend on (seed, index) alone, so two models sampled with the same plan
are paired image by image, whatever the batch size or the runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator

from flatq.errors import UsageError
from flatq.labels import Classes
from flatq.noise import NoiseStream, normal
from flatq.process import Prediction, Process, ProcessConfig
from flatq.runtime.base import UNCONDITIONED, Condition
from flatq.samplers import SAMPLERS
from flatq.schedule import count_steps

__all__ = ["SamplePlan", "check_batch_size", "check_labels", "sample", "sample_batches"]

Progress = Callable[[int], None]
"""Called with the number of network evaluations times images since the last call."""

Network = Callable[[NDArray[np.float32], NDArray[np.int64], Condition], NDArray[np.float32]]
"""A `flatq.runtime.base.Runtime`, or what calls one: called with x, t and the conditions."""

Observer = Callable[[int, NDArray[np.float32], NDArray[np.int64], Condition, NDArray[np.float32]], None]
"""Called after each evaluation with (step index, x, t, what else the network is told, its output)."""


class SamplePlan(BaseModel):
    """How images are drawn; part of every report.

    Attributes:
        steps: number of timesteps kept, or guided-diffusion's "ddimN" and section counts such as "10,15,20",
            see `flatq.schedule.space_timesteps`.
        sampler: one of `flatq.samplers.SAMPLERS`.
        eta: DDIM's eta; 0 is deterministic.
        seed: random seed of the noise.
        clip: False leaves the predicted x0 as it is even where the process clips it.
        label: class of all images; None assigns the classes of the network round-robin.
        guidance: w of classifier-free guidance (Ho, Salimans 2022, with their w + 1): the network's output
            is null + w (labelled - null), a learned variance that of the label. 1 takes the labelled output
            alone; any other w takes two evaluations a step.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: Annotated[int, Field(gt=0)] | str = 20
    sampler: Literal["ancestral", "ddim"] = "ancestral"
    eta: float = Field(default=0.0, ge=0.0, le=1.0)
    seed: int = Field(default=0, ge=0)
    clip: bool = True
    label: int | None = Field(default=None, ge=0)
    guidance: float = Field(default=1.0, ge=0.0, allow_inf_nan=False)

    @field_validator("steps", mode="before")
    @classmethod
    def _plain_number(cls, steps: Any) -> Any:
        return int(steps) if isinstance(steps, str) and steps.isascii() and steps.isdigit() else steps

    @field_validator("steps")
    @classmethod
    def _readable(cls, steps: int | str) -> int | str:
        try:
            count_steps(steps)
        except UsageError as error:
            raise ValueError(f"a number of steps: {error.expected}") from error
        return steps

    @property
    def timestep_count(self) -> int:
        """How many timesteps are kept."""
        return count_steps(self.steps)

    @property
    def evaluations(self) -> int:
        """Network evaluations for an image; with guidance each is one with the label and one without."""
        return SAMPLERS[self.sampler].evaluations(self.timestep_count)

    @property
    def update(self) -> str:
        """The sampler in words, such as `ddim with eta 0.5`."""
        return self.sampler if self.sampler == "ancestral" else f"{self.sampler} with eta {self.eta:g}"


def sample_batches(
    network: Network,
    config: ProcessConfig,
    plan: SamplePlan,
    indices: Sequence[int],
    image_shape: tuple[int, int, int],
    *,
    classes: Classes | None = None,
    batch_size: int = 64,
    progress: Progress | None = None,
    observe: Observer | None = None,
    stream: NoiseStream = NoiseStream.SAMPLING,
) -> Iterator[NDArray[np.float32]]:
    """Draw the images of the given indices, batch by batch.

    Args:
        image_shape: [C, H, W].
        classes: the labels that the network takes; None for a network without.
        stream: of the noise.

    Yields:
        float32 [<= batch_size, C, H, W], about [-1, 1]; not finite where the model is not.

    Raises:
        UsageError: a batch size below 1; labels as `check_labels`.
        ModelError: the model's output does not have the shape that the process needs.
    """
    check_batch_size(batch_size)
    check_labels(plan, classes)
    process = Process.from_config(config, plan.steps)

    def evaluate(x: NDArray[np.float32], i: int, cond: Condition) -> NDArray[np.float32]:
        # An image that has left the finite numbers stays there, and does not reach the network: integer
        # kernels would make something of it.
        finite = np.asarray(np.isfinite(x).all(axis=(1, 2, 3), keepdims=True))
        t = np.full(len(x), process.timesteps[i], dtype=np.int64)
        output = network(np.where(finite, x, np.float32(0)), t, cond)
        output = output if finite.all() else np.where(finite, output, np.float32(np.nan))
        if observe is not None:
            observe(i, x, t, cond, output)
        return output

    def draw(batch: Sequence[int]) -> NDArray[np.float32]:
        cond = UNCONDITIONED if classes is None else classes.condition(batch, plan.label)

        def noise(number: int) -> NDArray[np.float32]:
            return normal(plan.seed, batch, draw=number, shape=image_shape, stream=stream)

        def denoise(x: NDArray[np.float32], i: int) -> Prediction:
            output = evaluate(x, i, cond)
            if classes is not None and plan.guidance != 1:
                null = evaluate(x, i, classes.null_condition(len(x)))
                output = _guide(output, null, plan.guidance, len(x[0]))
            if progress is not None:
                progress(len(x))
            return process.predict(output, x, i, plan.clip)

        images: NDArray[np.float32] = SAMPLERS[plan.sampler].sample(
            denoise, noise(0), process, noise, plan.eta
        )
        return images

    for start in range(0, len(indices), batch_size):
        yield draw(indices[start : start + batch_size])


def check_batch_size(batch_size: int) -> None:
    """Raises:
    UsageError: a batch size below 1.
    """
    if batch_size < 1:
        raise UsageError("the batch is empty", expected="a batch size of at least 1", got=str(batch_size))


def check_labels(plan: SamplePlan, classes: Classes | None) -> None:
    """Refuse a plan whose labels the network does not have.

    Raises:
        UsageError: a label or guidance for a network without classes, a label out of range, guidance without
            a null label.
    """
    if classes is None:
        if plan.label is not None or plan.guidance != 1:
            raise UsageError(
                "the network takes no labels",
                expected="neither --label nor --guidance",
                got=f"label {plan.label}, guidance {plan.guidance:g}",
                next_step="leave them out",
            )
        return
    classes.assign([], plan.label)
    if plan.guidance != 1 and classes.null is None:
        raise UsageError(
            "the network has no null label, which classifier-free guidance needs",
            expected="--guidance 1",
            got=f"--guidance {plan.guidance:g}",
            next_step="leave --guidance out, or name the null label when importing (--null-label)",
        )


def _guide(
    labelled: NDArray[np.float32], null: NDArray[np.float32], w: float, channels: int
) -> NDArray[np.float32]:
    """null + w (labelled - null) in the first `channels` channels, the others as labelled."""
    guided = labelled.copy()
    guided[:, :channels] = null[:, :channels] + np.float32(w) * (labelled - null)[:, :channels]
    return guided


def sample(
    network: Network,
    config: ProcessConfig,
    plan: SamplePlan,
    indices: Sequence[int],
    image_shape: tuple[int, int, int],
    **options: Any,
) -> NDArray[np.float32]:
    """All images of `sample_batches` in one array [n, C, H, W]; same arguments, same errors."""
    empty = np.empty((0, *image_shape), dtype=np.float32)
    return np.concatenate([empty, *sample_batches(network, config, plan, indices, image_shape, **options)])
