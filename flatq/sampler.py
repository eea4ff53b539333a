"""Sampling over any runtime, batch by batch: noise, labels, guidance. `flatq.samplers` loop over the steps.

The noise and the label of an image depend on (seed, index) alone, so two models sampled with the same
settings are paired image by image, whatever the batch size or the runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flatq.errors import UsageError
from flatq.labels import Classes
from flatq.noise import NoiseStream, normal
from flatq.process import Prediction, Process, ProcessConfig
from flatq.runtime.base import UNCONDITIONED, Condition
from flatq.samplers import SAMPLERS
from flatq.sampling_settings import SamplingSettings

__all__ = ["check_labels", "sample", "sample_batches"]

Progress = Callable[[int], None]
"""Called with the number of network evaluations times images since the last call."""

Network = Callable[[NDArray[np.float32], NDArray[np.int64], Condition], NDArray[np.float32]]
"""A `flatq.runtime.base.Runtime`, or what calls one: called with x, t and the conditions."""

Observer = Callable[[int, NDArray[np.float32], NDArray[np.int64], Condition, NDArray[np.float32]], None]
"""Called after each evaluation with (step index, x, t, what else the network is told, its output)."""


def sample_batches(
    network: Network,
    config: ProcessConfig,
    settings: SamplingSettings,
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
        batch_size: at least 1.
        classes: the labels that the network takes; None for a network without.
        stream: of the noise.

    Yields:
        float32 [<= batch_size, C, H, W], about [-1, 1]; not finite where the model is not.

    Raises:
        UsageError: as `check_labels`.
        ModelError: the model's output does not have the shape that the process needs.
    """
    check_labels(settings, classes)
    process = Process.from_config(config, settings.steps)

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
        cond = UNCONDITIONED if classes is None else classes.condition(batch, settings.label)

        def noise(number: int) -> NDArray[np.float32]:
            return normal(settings.seed, batch, draw=number, shape=image_shape, stream=stream)

        def denoise(x: NDArray[np.float32], i: int) -> Prediction:
            output = evaluate(x, i, cond)
            if classes is not None and settings.guidance != 1:
                null = evaluate(x, i, classes.null_condition(len(x)))
                output = _guide(output, null, settings.guidance, len(x[0]))
            if progress is not None:
                progress(len(x))
            return process.predict(output, x, i, settings.clip)

        images: NDArray[np.float32] = SAMPLERS[settings.sampler].sample(
            denoise, noise(0), process, noise, settings.eta
        )
        return images

    for start in range(0, len(indices), batch_size):
        yield draw(indices[start : start + batch_size])


def check_labels(settings: SamplingSettings, classes: Classes | None) -> None:
    """Refuse settings whose labels the network does not have.

    Raises:
        UsageError: a label or guidance for a network without classes, a label out of range, guidance without
            a null label.
    """
    if classes is None:
        if settings.label is not None or settings.guidance != 1:
            raise UsageError(
                "the network takes no labels",
                expected="neither --label nor --guidance",
                got=f"label {settings.label}, guidance {settings.guidance:g}",
                next_step="leave them out",
            )
        return
    classes.assign([], settings.label)
    if settings.guidance != 1 and classes.null is None:
        raise UsageError(
            "the network has no null label, which classifier-free guidance needs",
            expected="--guidance 1",
            got=f"--guidance {settings.guidance:g}",
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
    settings: SamplingSettings,
    indices: Sequence[int],
    image_shape: tuple[int, int, int],
    **options: Any,
) -> NDArray[np.float32]:
    """All images of `sample_batches` in one array [n, C, H, W]; same arguments, same errors."""
    empty = np.empty((0, *image_shape), dtype=np.float32)
    return np.concatenate(
        [empty, *sample_batches(network, config, settings, indices, image_shape, **options)]
    )
