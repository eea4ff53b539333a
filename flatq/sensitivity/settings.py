"""What `flatq sensitivity` is asked for. Pure data, no torch."""

from __future__ import annotations

from dataclasses import dataclass

from flatq.quantize.settings import QuantizeSettings

__all__ = ["SensitivitySettings"]


@dataclass(frozen=True)
class SensitivitySettings:
    """How each layer's harm is measured.

    Attributes:
        quantize: how the layers are quantized; its calibration's sampling settings are used for the images as
            well, with the next seed, so that no calibration input is measured on.
        images: number of sampled images, and of sampling trajectories whose inputs are measured; at least 2.
        checks: number of random plans on which the forecast is compared with a measurement.
    """

    quantize: QuantizeSettings = QuantizeSettings()
    images: int = 8
    checks: int = 8
