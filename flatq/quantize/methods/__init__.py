"""Methods that choose integers better than rounding to nearest does, and the correction of biases.

They start from the weights rounded to nearest, keep the grids, and change integers and biases.
Schemes, ranges and lowering live elsewhere in `flatq.quantize`. This module itself loads no torch.
"""

from __future__ import annotations

from flatq.quantize.methods.options import DEFAULT_METHOD, AdaRound, Gptq, Method, WeightRounding

__all__ = ["DEFAULT_METHOD", "AdaRound", "Gptq", "Method", "WeightRounding"]
