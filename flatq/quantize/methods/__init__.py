"""Methods that choose integer codes better than rounding to nearest does, and the correction of biases.

They start from the codes and scales that torchao's PT2E gives, keep the scales, and change codes and biases.
Schemes, ranges and lowering live elsewhere in `flatq.quantize`. This module itself loads no torch.
"""

from __future__ import annotations

from flatq.quantize.methods.options import METHODS, USUAL, AdaRound, Gptq, Method, WeightRounding

__all__ = ["METHODS", "USUAL", "AdaRound", "Gptq", "Method", "WeightRounding"]
