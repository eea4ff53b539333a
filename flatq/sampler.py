"""Sampling over any runtime: the loop over batches and steps. The arithmetic is `flatq.process`'s.

The noise and the label of an image depend on (seed, index) alone, so two models sampled with the same plan
are paired image by image, whatever the batch size or the runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from flatq.errors import ModelError, UsageError
from flatq.labels import Classes
from flatq.noise import NoiseStream, normal
from flatq.process import Process, ProcessConfig
from flatq.runtime.base import UNCONDITIONED, Condition, Runtime

__all__ = ["SamplePlan", "check_batch_size", "check_labels", "sample", "sample_batches"]

Progress = Callable[[int], None]
"""Called with the number of network evaluations times images since the last call."""

Observer = Callable[[int, NDArray[np.float32], NDArray[np.int64], Condition, NDArray[np.float32]], None]
"""Called after each evaluation with (step index, x, t, what else the network is told, its output)."""


class SamplePlan(BaseModel):
    """How images are drawn; part of every report.

    Attributes:
        steps: number of network evaluations for an image.
        sampler: the ancestral update (Ho et al. 2020) or DDIM (Song et al. 2021).
        eta: of DDIM; 0 is deterministic.
        seed: of the noise.
        clip: False leaves the predicted x0 as it is even where the process clips it.
        label: of all images; None deals the labels of a network with classes out in turn.
        guidance: w of classifier-free guidance (Ho, Salimans 2022, with their w + 1): the network's output
            is null + w (labelled - null), a learned variance that of the label. 1 takes the labelled output
            alone; any other w takes two evaluations a step.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(default=20, gt=0)
    sampler: Literal["ancestral", "ddim"] = "ancestral"
    eta: float = Field(default=0.0, ge=0.0, le=1.0)
    seed: int = Field(default=0, ge=0)
    clip: bool = True
    label: int | None = Field(default=None, ge=0)
    guidance: float = Field(default=1.0, ge=0.0, allow_inf_nan=False)

    @property
    def update(self) -> str:
        """The sampler in words, such as `ddim with eta 0.5`."""
        return self.sampler if self.sampler == "ancestral" else f"{self.sampler} with eta {self.eta:g}"


def sample_batches(
    runtime: Runtime,
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
    last = len(process.timesteps) - 1
    for start in range(0, len(indices), batch_size):
        batch = indices[start : start + batch_size]
        noise = partial(normal, plan.seed, batch, shape=image_shape, stream=stream)
        x = noise(draw=0)
        cond = UNCONDITIONED if classes is None else {"label": classes.assign(batch, plan.label)}
        for i in range(last, -1, -1):
            t = np.full(len(batch), process.timesteps[i], dtype=np.int64)
            output = _evaluate(runtime, process, x, t, cond)
            if observe is not None:
                observe(i, x, t, cond, output)
            if plan.guidance != 1:
                assert classes is not None
                assert classes.null is not None
                null = {"label": np.full(len(batch), classes.null, dtype=np.int64)}
                unlabelled = _evaluate(runtime, process, x, t, null)
                if observe is not None:
                    observe(i, x, t, null, unlabelled)
                output = _guide(output, unlabelled, plan.guidance, len(x[0]))
            noisy = i > 0 and (plan.sampler == "ancestral" or plan.eta > 0)
            drawn = noise(draw=1 + last - i) if noisy else None
            if plan.sampler == "ancestral":
                x, _ = process.ancestral_step(x, output, i, drawn, clip=plan.clip)
            else:
                x, _ = process.ddim_step(x, output, i, eta=plan.eta, noise=drawn, clip=plan.clip)
            if progress is not None:
                progress(len(batch))
        yield x


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


def _evaluate(
    runtime: Runtime, process: Process, x: NDArray[np.float32], t: NDArray[np.int64], cond: Condition
) -> NDArray[np.float32]:
    finite = np.asarray(np.isfinite(x).all(axis=(1, 2, 3), keepdims=True))
    # An image that has left the finite numbers stays there, and does not reach the network: integer kernels
    # would make something of it.
    output = runtime(np.where(finite, x, np.float32(0)), t, cond)
    expected = (len(x), process.output_channels(x.shape[1]), *x.shape[2:])
    if output.shape != expected:
        raise ModelError(
            "the model's output does not fit its process",
            expected=str(list(expected)),
            got=str(list(output.shape)),
            next_step="check the variance setting of the checkpoint's process",
        )
    return output if finite.all() else np.where(finite, output, np.float32(np.nan))


def _guide(
    labelled: NDArray[np.float32], null: NDArray[np.float32], w: float, channels: int
) -> NDArray[np.float32]:
    """null + w (labelled - null) in the first `channels` channels, the others as labelled."""
    guided = labelled.copy()
    guided[:, :channels] = null[:, :channels] + np.float32(w) * (labelled - null)[:, :channels]
    return guided


def sample(
    runtime: Runtime,
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
) -> NDArray[np.float32]:
    """All images of `sample_batches` in one array [n, C, H, W]; same arguments, same errors."""
    batches = sample_batches(
        runtime,
        config,
        plan,
        indices,
        image_shape,
        classes=classes,
        batch_size=batch_size,
        progress=progress,
        observe=observe,
        stream=stream,
    )
    empty = np.empty((0, *image_shape), dtype=np.float32)
    return np.concatenate([empty, *batches])
