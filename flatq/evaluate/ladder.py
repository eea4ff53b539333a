"""The ladder: a drift as export, quantization and kernel error, each with its interval.

Rung A is the float model in torch, B its float export on the runtime, C the target's lowered graph in torch,
D that graph on the runtime; all sampled from the same noise. Only computes; `flatq.rungs` opens the rungs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from numpy.typing import ArrayLike

from flatq.evaluate.contrast import Contrast, fid_contrast
from flatq.evaluate.frechet import FrechetSide
from flatq.evaluate.moments import Reference

__all__ = ["ERRORS", "Ladder", "Rung", "climb"]

Rung = Literal["A", "B", "C", "D"]

ERRORS: dict[str, dict[str, float]] = {
    "export": {"B": 1.0, "A": -1.0},
    "quantization": {"C": 1.0, "A": -1.0},
    "kernel": {"D": 1.0, "C": -1.0, "B": -1.0, "A": 1.0},
    "total": {"D": 1.0, "A": -1.0},
}
"""Weights of the rungs' FIDs; the first three add up to the total."""


@dataclass(frozen=True)
class Ladder:
    """fids: the plug-in FID of each rung. runtimes: what each ran on. The errors: contrasts of `ERRORS`."""

    fids: dict[Rung, float]
    runtimes: dict[Rung, dict[str, Any]]
    export: Contrast
    quantization: Contrast
    kernel: Contrast
    total: Contrast


def climb(
    sides: Mapping[Rung, FrechetSide],
    runtimes: Mapping[Rung, dict[str, Any]],
    reference: Reference,
    confidence: float = 0.95,
    clusters: ArrayLike | None = None,
) -> Ladder:
    """The ladder of all four rungs' samples, row i of each from the same noise.

    Raises:
        DataError: a rung is missing, or has another number of samples.
    """
    named = {str(rung): side for rung, side in sides.items()}
    errors = {
        name: fid_contrast(named, weights, reference, confidence, clusters)
        for name, weights in ERRORS.items()
    }
    return Ladder(
        fids={rung: side.distance for rung, side in sorted(sides.items())},
        runtimes=dict(runtimes),
        export=errors["export"],
        quantization=errors["quantization"],
        kernel=errors["kernel"],
        total=errors["total"],
    )
