"""Exposure curves against a second implementation, and a model whose bias is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import numpy as np
import pytest
from numpy.typing import NDArray

from flatq.errors import UsageError
from flatq.flatness.exposure import measure_exposure
from flatq.images import ImageSet
from flatq.models import Model
from flatq.noise import NoiseStream, normal
from flatq.process import Process, ProcessConfig
from flatq.sampling_settings import SamplingSettings

SHAPE = (1, 4, 4)
CONFIG = ProcessConfig(schedule="cosine", clip_range=None)
PLAN = SamplingSettings(steps=10, seed=3)


class _Gaussian:
    """The optimal prediction for images that are N(0, 1) in every pixel, times a factor: sqrt(1 - a) x."""

    identity: Mapping[str, Any] = {"runtime": "gaussian"}

    def __init__(self, factor: float = 1.0) -> None:
        self._kept = Process.from_config(CONFIG).alphas_cumprod
        self._factor = factor

    def __call__(
        self, x: NDArray[np.float32], t: NDArray[np.int64], cond: Mapping[str, Any] = {}
    ) -> NDArray[np.float32]:
        scale = np.sqrt(1 - self._kept[t]).reshape(-1, 1, 1, 1)
        return (self._factor * scale * x).astype(np.float32)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def _model(factor: float = 1.0) -> Model:
    runtime: Any = _Gaussian(factor)
    return Model(runtime, CONFIG, SHAPE, None, "gaussian", "fp32", "raw", "0" * 64, 1)


def _images(n: int) -> ImageSet:
    values = np.random.default_rng(0).integers(0, 256, (n, *SHAPE), dtype=np.uint8)
    return ImageSet(values, "random", "0" * 64)


def test_curves_against_a_second_implementation() -> None:
    images, n = _images(50), 40
    found = measure_exposure(_model(), images, PLAN, n, batch_size=16)
    process = Process.from_config(CONFIG, PLAN.steps)
    runtime = _Gaussian()
    x = normal(PLAN.seed, range(n), 0, SHAPE)
    rows = np.linspace(0, 49, n).astype(int)
    x0 = images.pixels[rows] / 127.5 - 1
    noise = normal(PLAN.seed, range(n), 0, SHAPE, stream=NoiseStream.PROBES)
    for done, step in enumerate(found.steps):
        i = PLAN.steps - 1 - done
        t = np.full(n, process.timesteps[i])
        kept = process.alphas_cumprod[i]
        forward = np.sqrt(kept) * x0 + np.sqrt(1 - kept) * noise
        for side, norm, squared in (
            (forward, step.norm_training, step.squared_training),
            (x, step.norm_sampling, step.squared_sampling),
        ):
            norms = np.sqrt(np.square(runtime(side, t)).sum((1, 2, 3), dtype=np.float64))
            assert norm.value == pytest.approx(norms.mean(), rel=1e-5)
            assert squared.value == pytest.approx(np.square(norms).mean(), rel=1e-5)
            assert norm.standard_error == pytest.approx(norms.std(ddof=1) / n**0.5, rel=1e-4)
        spread = [np.sqrt(side.var(axis=0).mean()) for side in (x, forward)]
        assert step.delta == pytest.approx((spread[0] - spread[1]) ** 2, rel=1e-3, abs=1e-7)
        assert step.t == process.timesteps[i]
        drawn = normal(PLAN.seed, range(n), 1 + done, SHAPE)
        predicted = process.predict(runtime(x, t), x, i)
        x = process.posterior_mean(predicted.x0, x, i) + predicted.sigma * drawn


def test_a_prediction_that_is_too_small_leaves_too_much_noise() -> None:
    """ADM-ES: the norm along sampling exceeds that in training once errors pile up, at the last steps."""
    images = _images(2000)
    right, short = (measure_exposure(_model(f), images, PLAN, 2000) for f in (1.0, 0.8))
    assert short.gap > 3 * right.gap
    last = short.steps[-1]
    assert last.squared_sampling.value > last.squared_training.value


def test_a_process_that_predicts_something_else_is_refused() -> None:
    other = replace(_model(), process=ProcessConfig(schedule="cosine", prediction="v"))
    with pytest.raises(UsageError, match="predicted noise"):
        measure_exposure(other, _images(8), PLAN, 8)
