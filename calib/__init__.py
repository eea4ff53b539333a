"""Calibration: inputs drawn along the sampling chain, and the observers that turn them into ranges.

Which tensors are observed and what the ranges become is `flatq.quantize`'s work.
"""

from __future__ import annotations

from flatq.calib.inputs import CalibrationPlan, CalibrationSet, collect_inputs

__all__ = ["CalibrationPlan", "CalibrationSet", "collect_inputs"]
