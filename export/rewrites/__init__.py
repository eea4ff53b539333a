"""Rewrites of an exported ONNX model into the forms that its target runs fast: one file for each rule.

Nothing here changes what is computed beyond the rounding of float32, moves a Q/DQ node or touches a layer's
weights. Where Q/DQ nodes stand is `flatq.quantize.lowering`'s matter.
"""

from __future__ import annotations

from flatq.export.rewrites.tune import Applied, summary, tune, without_group_norm

__all__ = ["Applied", "summary", "tune", "without_group_norm"]
