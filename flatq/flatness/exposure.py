"""Exposure bias: what the network predicts in training against what it predicts along its own samples.

At each kept timestep the predicted noise is measured twice: on x_t of the forward process from real images,
as in training, and on x_t along the model's own samples (Ning et al. 2024, ADM-ES). The model may be a float
checkpoint or a deployed quantized one on its runtime.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flatq.errors import UsageError
from flatq.flatness.draws import spread_rows
from flatq.flatness.result import Estimate, Frozen
from flatq.images import ImageSet, to_float
from flatq.models import Model
from flatq.noise import NoiseStream, normal
from flatq.process import Process
from flatq.runtime.base import UNCONDITIONED, Condition
from flatq.sampler import sample_batches
from flatq.sampling_settings import SamplingSettings

__all__ = ["Exposure", "ExposureStep", "measure_exposure"]


_F32 = NDArray[np.float32]


class ExposureStep(Frozen):
    """One kept timestep, from high noise to low.

    Attributes:
        t: timestep of the training process.
        norm_training, norm_sampling: Euclidean norm of the predicted noise, mean over images.
        squared_training, squared_sampling: its square, mean over images.
        delta: (s_sampling - s_training)^2, s the standard deviation of x_t over images, root mean square over
            dimensions. ADM-ES's delta_t compares the same deviations at a given x_0; here they are marginal,
            since a sample has no x_0 that it began with.
    """

    t: int
    norm_training: Estimate
    norm_sampling: Estimate
    squared_training: Estimate
    squared_sampling: Estimate
    delta: float


class Exposure(Frozen):
    """The curves of one model.

    Attributes:
        steps: in the order of sampling.
        images: number of images on either side.
        dimension: values of an image, C H W.
    """

    model: str
    digest: str
    weights_variant: str
    precision: str
    runtime: dict[str, Any]
    plan: SamplingSettings
    images: int
    dimension: int
    steps: tuple[ExposureStep, ...]

    @property
    def gap(self) -> float:
        """Mean over steps of |squared norm in sampling - in training|, for each dimension."""
        differences = [s.squared_sampling.value - s.squared_training.value for s in self.steps]
        return float(np.abs(differences).mean() / self.dimension)


@dataclass
class _Step:
    """Running sums of one timestep and one side."""

    norms: list[NDArray[np.float64]] = field(default_factory=list)
    total: NDArray[np.float64] | float = 0.0
    squares: NDArray[np.float64] | float = 0.0

    def add(self, x: _F32, predicted: _F32) -> None:
        self.norms.append(np.linalg.norm(predicted.reshape(len(x), -1).astype(np.float64), axis=1))
        flat = x.reshape(len(x), -1).astype(np.float64)
        self.total = self.total + flat.sum(0)
        self.squares = self.squares + np.square(flat).sum(0)

    def deviation(self) -> float:
        n = sum(map(len, self.norms))
        return float(np.sqrt(np.mean(self.squares / n - np.square(self.total / n))))


def measure_exposure(
    model: Model, images: ImageSet, settings: SamplingSettings, n: int, *, batch_size: int = 64
) -> Exposure:
    """Measure both sides on n images each.

    The training side takes n images spread evenly over the source, each with the noise of its index (draw 0
    of the probes' stream, seed `settings.seed`) at every kept timestep. The sampling side draws images 0 to
    n - 1.

    Raises:
        UsageError: a process that does not predict the noise, or guidance, under which training has no such
            prediction.
        DataError: as `spread_rows`.
    """
    if model.process.prediction != "epsilon" or settings.guidance != 1:
        raise UsageError(
            "exposure bias is measured on the predicted noise",
            expected="a process that predicts the noise (epsilon), without guidance",
            got=f"prediction {model.process.prediction}, guidance {settings.guidance:g}",
        )
    rows = spread_rows(images, n)
    process = Process.from_config(model.process, settings.steps)
    channels = model.image_shape[0]
    sampling = [_Step() for _ in process.timesteps]
    training = [_Step() for _ in process.timesteps]

    def observe(i: int, x: _F32, _t: NDArray[np.int64], _cond: Condition, output: _F32) -> None:
        sampling[i].add(x, output[:, :channels])

    for _ in sample_batches(
        model.runtime,
        model.process,
        settings,
        range(n),
        model.image_shape,
        classes=model.classes,
        batch_size=batch_size,
        observe=observe,
    ):
        pass
    for start in range(0, n, batch_size):
        indices = range(start, min(start + batch_size, n))
        x0 = to_float(images.pixels[rows[start : start + batch_size]])
        noise = normal(settings.seed, indices, 0, model.image_shape, stream=NoiseStream.PROBES)
        cond = UNCONDITIONED if model.classes is None else model.classes.condition(indices, settings.label)
        for i, t in enumerate(process.timesteps):
            x = process.add_noise(x0, noise, i).astype(np.float32)
            output = model.runtime(x, np.full(len(x), t, dtype=np.int64), cond)
            training[i].add(x, output[:, :channels])
    return Exposure(
        model=model.name,
        digest=model.digest,
        weights_variant=model.weights,
        precision=model.precision,
        runtime=model.runtime.identity,
        plan=settings,
        images=n,
        dimension=int(np.prod(model.image_shape)),
        steps=tuple(
            _step(int(t), *sides)
            for t, *sides in reversed(list(zip(process.timesteps, training, sampling, strict=True)))
        ),
    )


def _step(t: int, training: _Step, sampling: _Step) -> ExposureStep:
    in_training, in_sampling = (np.concatenate(side.norms) for side in (training, sampling))
    return ExposureStep(
        t=t,
        norm_training=Estimate.of(in_training),
        norm_sampling=Estimate.of(in_sampling),
        squared_training=Estimate.of(np.square(in_training)),
        squared_sampling=Estimate.of(np.square(in_sampling)),
        delta=(sampling.deviation() - training.deviation()) ** 2,
    )
