"""flatq: quantize diffusion models, export them, and know what it did to the pictures.

The verbs are functions of frozen settings: `train`, `sensitivity`, `quantize`, `export`, `verify`, `load`,
`sample`, `evaluate` and `gate`. Importing this package loads neither torch nor any runtime; each name is
loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from flatq.version import __version__

if TYPE_CHECKING:
    from flatq.api import (
        Exported,
        Quantized,
        Samples,
        evaluate,
        export,
        gate,
        load,
        quantize,
        sample,
        sensitivity,
        train,
        verify,
    )
    from flatq.assessment import EvaluateSettings, GateSettings
    from flatq.backends import RuntimeSettings
    from flatq.calib import CalibrationPlan
    from flatq.checkpoint import Checkpoint
    from flatq.errors import FlatqError
    from flatq.export.settings import ExportSettings
    from flatq.models import Model
    from flatq.quantize.methods import WeightRounding
    from flatq.quantize.settings import QuantizeSettings
    from flatq.recipe import recipe_for_bits
    from flatq.report.model import Report
    from flatq.report.result import GateResult
    from flatq.sampling_settings import SamplingSettings
    from flatq.sensitivity.result import Sensitivity
    from flatq.sensitivity.settings import SensitivitySettings
    from flatq.train.config import TrainConfig
    from flatq.verify.verification import Verified

__all__ = [
    "CalibrationPlan",
    "Checkpoint",
    "EvaluateSettings",
    "ExportSettings",
    "Exported",
    "FlatqError",
    "GateResult",
    "GateSettings",
    "Model",
    "QuantizeSettings",
    "Quantized",
    "Report",
    "RuntimeSettings",
    "Samples",
    "SamplingSettings",
    "Sensitivity",
    "SensitivitySettings",
    "TrainConfig",
    "Verified",
    "WeightRounding",
    "__version__",
    "evaluate",
    "export",
    "gate",
    "load",
    "quantize",
    "recipe_for_bits",
    "sample",
    "sensitivity",
    "train",
    "verify",
]

_HOMES = {
    "flatq.api": "Exported Quantized Samples gate load sample",
    "flatq.assessment": "EvaluateSettings GateSettings",
    "flatq.backends": "RuntimeSettings",
    "flatq.calib": "CalibrationPlan",
    "flatq.checkpoint": "Checkpoint",
    "flatq.errors": "FlatqError",
    "flatq.export.settings": "ExportSettings",
    "flatq.models": "Model",
    "flatq.quantize.methods": "WeightRounding",
    "flatq.quantize.settings": "QuantizeSettings",
    "flatq.recipe": "recipe_for_bits",
    "flatq.report.model": "Report",
    "flatq.report.result": "GateResult",
    "flatq.sampling_settings": "SamplingSettings",
    "flatq.sensitivity.result": "Sensitivity",
    "flatq.sensitivity.settings": "SensitivitySettings",
    "flatq.train.config": "TrainConfig",
    "flatq.verify.verification": "Verified",
}
_PACKAGES = ("evaluate", "export", "quantize", "sensitivity", "train", "verify")
"""Verbs that are subpackages too: these modules can be called, see `flatq.callable_package`."""


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    for home, names in _HOMES.items():
        if name in names.split():
            return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
