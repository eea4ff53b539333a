"""What `flatq.quantize` is asked for. Pure data, no torch."""

from __future__ import annotations

from dataclasses import dataclass

from flatq.calib import CalibrationPlan
from flatq.quantize.methods import DEFAULT_METHOD, WeightRounding
from flatq.recipe import QuantRecipe, recipe_for_bits

__all__ = ["QuantizeSettings"]


@dataclass(frozen=True)
class QuantizeSettings:
    """How a checkpoint is quantized; the defaults are those of `flatq quantize`.

    Attributes:
        recipe: bit widths and ranges, such as `flatq.recipe_for_bits(4)` for 4-bit weights and 8-bit
            activations.
        rounding: how weights are rounded, by GPTQ by default.
        calibration: how the calibration inputs are sampled.
        weights: raw, ema or swa; ema if there, else raw, by default.
        threads: number of CPU threads, all cores by default.
    """

    recipe: QuantRecipe = recipe_for_bits()
    rounding: WeightRounding = WeightRounding(method=DEFAULT_METHOD)
    calibration: CalibrationPlan = CalibrationPlan()
    weights: str | None = None
    threads: int | None = None

    @property
    def suffix(self) -> str:
        """What follows the checkpoint's name in the default folder, such as `w4a8-adaround`."""
        return self.recipe.name + self.rounding.suffix_beside(DEFAULT_METHOD)
