"""The paper's tables, and a study's numbers in the same places.

Source: Lee, Seo, Yoo, Yoon, "Understanding Flatness in Generative Models: Its Role and Benefits" (ICCV 2025,
arXiv 2503.11078), the tables of the talk: CIFAR-10, FID by Inception, T sampling steps. The talk does not say
how it quantized to 8 bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

from flatq.report.model import Record
from flatq.study.config import FLOAT, StudyConfig
from flatq.study.expressions import Quantity
from flatq.study.judging import t_interval
from flatq.study.values import Values

__all__ = ["SOURCE", "MeanOverSeeds", "PaperRow", "mean_over_seeds", "paper_rows"]

SOURCE = "Lee, Seo, Yoo, Yoon, ICCV 2025, arXiv 2503.11078, tables of the talk"

_WEIGHTS = ("raw", "ema", "swa")
# model -> mean loss under weight noise, for raw, EMA and SWA
_LPF = {"adm": (0.097, 0.099, 0.099), "ip": (0.103, 0.101, 0.102), "sam": (0.063, 0.063, 0.063)}
# (model, T) -> FID for raw, EMA and SWA
_FID = {
    ("adm", 20): (34.47, 10.63, 11.00),
    ("adm", 100): (8.80, 4.06, 3.78),
    ("ip", 20): (20.11, 9.10, 9.04),
    ("ip", 100): (7.23, 3.46, 3.07),
    ("sam", 20): (9.01, 7.00, 7.27),
    ("sam", 100): (3.83, 3.18, 2.96),
}
# (model, T) -> FID at 8 bits for raw and EMA
_FID_AT_8 = {
    ("adm", 20): (48.02, 20.65),
    ("adm", 100): (12.78, 7.36),
    ("sam", 20): (8.94, 7.20),
    ("sam", 100): (4.02, 3.12),
}


class MeanOverSeeds(Record):
    """Mean over training seeds with its 95 % t interval; low and high are None for a single seed."""

    mean: float
    low: float | None
    high: float | None
    seeds: int


class PaperRow(Record):
    """One number of the paper and ours.

    Attributes:
        steps: sampling steps; None for the flatness.
        quantizer: ours, for the change of the FID at 8 bits.
        ours: None where it was not measured.
    """

    table: Literal["LPF", "FID", "8 bits"]
    model: str
    weights: str
    steps: int | None
    quantizer: str | None
    paper: float
    ours: MeanOverSeeds | None


def mean_over_seeds(values: Values, quantity: Quantity) -> MeanOverSeeds | None:
    """Over all seeds at which it was measured; None without any."""
    seeds = values.seeds([quantity])
    found = np.array([values.value(quantity, seed) for seed in seeds], dtype=np.float64)
    if not seeds:
        return None
    mean, low, high = t_interval(found)
    return MeanOverSeeds(mean=mean, low=low, high=high, seeds=len(seeds))


def paper_rows(study: StudyConfig, values: Values) -> list[PaperRow]:
    """The rows of the models adm, ip and sam that the study has, on the study's runtime; 8-bit quantizers
    that were not measured there are left out."""
    rows = [row for row in _rows(study, values) if row.model in study.models]
    measured = {row.quantizer for row in rows if row.ours is not None}
    return [row for row in rows if row.quantizer is None or row.quantizer in measured]


def _rows(study: StudyConfig, values: Values) -> Iterator[PaperRow]:
    def row(table: Literal["LPF", "FID", "8 bits"], paper: float, quantity: Quantity) -> PaperRow:
        return PaperRow(
            table=table,
            model=quantity.model,
            weights=quantity.weights,
            steps=quantity.steps,
            quantizer=None if quantity.quantizer == FLOAT else quantity.quantizer,
            paper=paper,
            ours=mean_over_seeds(values, quantity),
        )

    for model, losses in _LPF.items():
        for weights, paper in zip(_WEIGHTS, losses, strict=True):
            yield row("LPF", paper, Quantity("lpf_total", model, weights))
    for (model, steps), distances in _FID.items():
        for weights, paper in zip(_WEIGHTS, distances, strict=True):
            yield row("FID", paper, Quantity("fid", model, weights, steps=steps))
    coarse = [name for name, quantizer in study.quantizers.items() if quantizer.bits == 8]
    for (model, steps), at_8 in _FID_AT_8.items():
        for weights, paper, before in zip(_WEIGHTS, at_8, _FID[model, steps], strict=False):
            for name in coarse:
                quantity = Quantity("drift", model, weights, name, steps)
                yield row("8 bits", round(paper - before, 2), quantity)
