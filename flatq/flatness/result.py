"""What the measurements are: plain values with standard errors, one JSON file. No torch."""

from __future__ import annotations

from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from flatq.flatness.settings import BINS, FlatnessSettings

__all__ = [
    "Ascent",
    "Binned",
    "Curvature",
    "Damage",
    "Estimate",
    "Flatness",
    "Frozen",
    "LayerWeights",
    "Noise",
    "binned",
]


class Frozen(BaseModel):
    """A result; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Estimate(Frozen):
    """A mean and its standard error; None where one value alone was measured."""

    value: float
    standard_error: float | None

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> Self:
        """The mean of independent values [k], k >= 2."""
        error = float(values.std(ddof=1) / len(values) ** 0.5)
        return cls(value=float(values.mean()), standard_error=error)


class Binned(Frozen):
    """Overall, and in the four quarters of t from low noise to high."""

    overall: Estimate
    quarters: tuple[Estimate, Estimate, Estimate, Estimate]


def binned(values: NDArray[np.float64], bins: NDArray[np.int64]) -> Binned:
    """Means of values [n], one for each draw, or [repeats, n].

    The standard error is over the draws, or over the repeats' means.
    """

    def estimate(part: NDArray[np.float64]) -> Estimate:
        return Estimate.of(part if part.ndim == 1 else part.mean(1))

    quarters = tuple(estimate(values[..., bins == b]) for b in range(BINS))
    return Binned(overall=estimate(values), quarters=quarters)  # type: ignore[arg-type]


class Noise(Frozen):
    """Loss under gaussian weight noise; sigma is absolute, or relative to each filter's root mean square."""

    kind: Literal["absolute", "relative"]
    sigma: float
    loss: Binned
    increase: Binned


class Ascent(Frozen):
    """Increase of the loss at SAM's ascent point."""

    kind: Literal["absolute", "adaptive"]
    rho: float
    increase: Binned


class Curvature(Frozen):
    """Largest eigenvalue and trace of the mean loss's Hessian."""

    largest_eigenvalue: Estimate
    trace: Estimate


class LayerWeights(Frozen):
    """One weight tensor. range_over_std: (max - min) / standard deviation. kurtosis: 3 for a gaussian."""

    name: str
    count: int
    norm: float
    standard_deviation: float
    range_over_std: float
    kurtosis: float


class Damage(Frozen):
    """What an artifact's own quantization error d does to the loss.

    Attributes:
        artifact, precision, digest: the artifact's name, precision and sha256.
        weights: increase at w + d, weights alone.
        quantized: increase in the lowered Q/DQ graph, weights and activations.
        random: increase under gaussian noise with the norm of d in each tensor, mean over draws of it.
        slope, curvature: g.d and 1/2 d^T H d; their sum forecasts `weights`.
        error_norm: Euclidean norm of d.
    """

    artifact: str
    precision: str
    digest: str
    weights: Binned
    quantized: Binned
    random: Binned
    slope: float
    curvature: float
    error_norm: float


class Flatness(Frozen):
    """All measurements on one checkpoint's weights.

    Attributes:
        checkpoint, digest, weights_variant: what was measured.
        data, data_digest: the images of the draws.
        loss: at the weights; its standard error is over the draws.
    """

    format: Literal["flatq-flatness"] = "flatq-flatness"
    version: Literal[1] = 1
    checkpoint: str
    digest: str
    weights_variant: str
    data: str
    data_digest: str
    settings: FlatnessSettings
    loss: Binned
    noise: tuple[Noise, ...]
    ascent: tuple[Ascent, ...]
    curvature: Curvature | None
    layers: tuple[LayerWeights, ...]
    damage: tuple[Damage, ...] = ()
    environment: dict[str, Any] = {}

    def measures(self) -> dict[str, float]:
        """One number for each flatness measure, and the rival predictors of weight range and kurtosis."""
        found = {f"noise {n.kind} {n.sigma:g}": n.increase.overall.value for n in self.noise}
        found |= {f"ascent {a.kind} {a.rho:g}": a.increase.overall.value for a in self.ascent}
        if self.curvature is not None:
            found["largest eigenvalue"] = self.curvature.largest_eigenvalue.value
            found["trace"] = self.curvature.trace.value
        counts = [layer.count for layer in self.layers]
        found["range over std"] = float(np.average([x.range_over_std for x in self.layers], weights=counts))
        found["kurtosis"] = float(np.average([x.kurtosis for x in self.layers], weights=counts))
        return found | {"norm": float(np.sqrt(np.sum([x.norm**2 for x in self.layers])))}
