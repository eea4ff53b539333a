"""How long cells take and what disk they need, from measured rates or from cells that are done."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean

from flatq.study.config import FLOAT, Cell
from flatq.study.results import CellResult

__all__ = ["CellCost", "cell_cost", "cell_gigabytes", "measured_seconds"]


@dataclass(frozen=True)
class CellCost:
    """The work of a cell.

    Attributes:
        passes: images through a gradient pass. evaluations: images through the network without one.
        artifacts: quantized and exported. images: sampled for FIDs.
    """

    passes: int
    evaluations: int
    artifacts: int
    images: int

    def seconds(self, cell: Cell) -> float | None:
        """Seconds by the study's rates; None where it has none."""
        cost = cell.study.cost
        if cost is None:
            return None
        return (
            self.passes / cost.passes_per_second
            + self.evaluations / cost.evaluations_per_second
            + self.artifacts * cost.seconds_per_artifact
        )


def cell_cost(cell: Cell) -> CellCost:
    """Counted from what the cell is to do."""
    study = cell.study
    config = study.train_config(cell.run, cell.seed)
    passes = 0
    if config is not None:
        extra = -(-config.steps // config.sam_every) if config.method == "sam" else 0
        passes = (config.steps + extra) * config.batch_size
    artifacts: set[tuple[str, str, str, str]] = set()
    floats: set[tuple[str, str, int]] = set()
    evaluations = images = 0
    for spec, model, weights in cell.chosen(study.images):
        n = spec.n or study.n
        if (model, weights, spec.steps) not in floats:
            floats.add((model, weights, spec.steps))
            evaluations += n * spec.steps
            images += n
        evaluations += n * spec.steps * len(spec.quantizers)
        images += n * len(spec.quantizers)
        artifacts |= {(model, weights, q, spec.runtime) for q in spec.quantizers}
    s = study.flatness_settings
    noise = 2 * s.pairs * (len(s.sigmas) + len(s.relative_sigmas)) + len(s.rhos) + len(s.adaptive_rhos)
    for flat, model, weights in cell.chosen(study.flatness):
        evaluations += s.images * (noise + len(flat.damage) * (s.random_draws + 2))
        artifacts |= {(model, weights, q, "onnxruntime") for q in flat.damage}
    for exposure, model, weights in cell.chosen(study.exposure):
        evaluations += 2 * exposure.n * exposure.steps * len(exposure.quantizers)
        artifacts |= {(model, weights, q, exposure.runtime) for q in exposure.quantizers if q != FLOAT}
    return CellCost(passes, evaluations, len(artifacts), images)


def cell_gigabytes(cell: Cell) -> float:
    """Disk while a cell runs: checkpoints and artifacts, and its samples in float32 where the study gives
    their size; 0 without rates."""
    study, work = cell.study, cell_cost(cell)
    if study.cost is None:
        return 0.0
    weights = study.cost.megabytes * (2 + len(cell.models) + work.artifacts / 4) * 1e6
    return (weights + work.images * 3 * (study.size or 0) ** 2 * 4) / 1e9


def measured_seconds(cell: Cell, done: Iterable[CellResult]) -> float | None:
    """The mean time of the cells of its run that are done, else by the rates; None without either."""
    finished = [sum(result.seconds.values()) for result in done if result.run == cell.run]
    return fmean(finished) if finished else cell_cost(cell).seconds(cell)
