"""The verbs of flatq: frozen settings in, frozen results out.

`flatq` itself offers them, as in `flatq.quantize("ckpt.pt")`, and the command line calls nothing deeper.
Importing this loads neither torch nor a runtime; a verb loads what it needs.
"""

from __future__ import annotations

from flatq.api.evaluating import evaluate, gate
from flatq.api.exporting import export, verify
from flatq.api.making import quantize, sensitivity, train
from flatq.api.results import Exported, Quantized, Samples
from flatq.api.sampling import load, sample

__all__ = [
    "Exported",
    "Quantized",
    "Samples",
    "evaluate",
    "export",
    "gate",
    "load",
    "quantize",
    "sample",
    "sensitivity",
    "train",
    "verify",
]
