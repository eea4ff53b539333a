"""The harm of each layer, with standard errors, and the forecast of any plan. Plain data, no torch."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from flatq.flatness.result import Binned, Estimate, Frozen

__all__ = ["MEASURES", "Check", "LayerHarm", "Measure", "Sensitivity", "block_of"]

Measure = Literal["prediction", "image"]
MEASURES: tuple[Measure, ...] = ("prediction", "image")


class LayerHarm(Frozen):
    """What quantizing one layer alone does.

    Attributes:
        layer: dotted name; kind: conv2d, linear or attention.
        parameters, macs: number of weights, and of multiply-accumulates for one image.
        weight_bits, activation_bits: None where that side stays in float.
        prediction: mean squared error of the prediction relative to the mean square of the float prediction,
            overall and in the quarters of t. All timesteps of the trajectory count alike.
        image: mean squared difference of the final image from the float one of the same noise, in units of
            [-1, 1] squared.
    """

    layer: str
    kind: str
    parameters: int
    macs: int
    weight_bits: int | None
    activation_bits: int | None
    prediction: Binned
    image: Estimate

    def value(self, measure: Measure) -> Estimate:
        """The harm by a measure, over all timesteps."""
        return self.prediction.overall if measure == "prediction" else self.image


class Check(Frozen):
    """A plan that was measured to judge the forecast.

    Attributes:
        layers: those that were quantized together.
        prediction, image: the measured harm, as of a layer.
    """

    layers: tuple[str, ...]
    prediction: Estimate
    image: Estimate

    def value(self, measure: Measure) -> Estimate:
        """The measured harm."""
        return self.prediction if measure == "prediction" else self.image


class Sensitivity(Frozen):
    """Each layer's harm.

    Attributes:
        checkpoint: file name; digest: sha256 of it, hex; weights_variant: raw, ema or swa.
        recipe, rounding: how the layers were quantized, in words.
        sampling: how images and inputs were drawn, such as {"images": 8, "steps": 20, ...}; standard errors
            are over the images.
        layers: in order of execution.
        checks: random plans; the last one quantizes every layer.
    """

    checkpoint: str
    digest: str | None
    weights_variant: str
    recipe: str
    rounding: str
    sampling: dict[str, str | int | float | bool | None]
    layers: tuple[LayerHarm, ...]
    checks: tuple[Check, ...]

    def forecast(self, layers: Collection[str], measure: Measure) -> float:
        """The harm of quantizing these layers together: the sum of each alone (independent errors)."""
        return sum(harm.value(measure).value for harm in self.layers if harm.layer in layers)

    def ratios(self, measure: Measure) -> NDArray[np.float64]:
        """Measured over forecast harm of each check, [checks]."""
        pairs = [(check.value(measure).value, self.forecast(check.layers, measure)) for check in self.checks]
        return np.array([measured / forecast for measured, forecast in pairs if forecast > 0])

    def rank_correlation(self, measure: Measure) -> float:
        """Spearman's correlation of forecast and measured harm over the checks."""
        from scipy.stats import spearmanr

        measured = [check.value(measure).value for check in self.checks]
        return float(spearmanr(measured, [self.forecast(c.layers, measure) for c in self.checks]).statistic)

    def blocks(self) -> dict[str, list[LayerHarm]]:
        """The layers by block, in order of execution."""
        found: dict[str, list[LayerHarm]] = {}
        for harm in self.layers:
            found.setdefault(block_of(harm.layer), []).append(harm)
        return found


def block_of(layer: str) -> str:
    """The part of a UNet a layer is in: `unet.down_blocks.0.resnets.1.conv1` is in `unet.down_blocks.0`."""
    found = re.match(r"(unet\.)?(\w+_blocks\.\d+|\w+)", layer)
    assert found is not None
    return found[0]
