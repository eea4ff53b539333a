"""From the cells of a study to one number for each quantity and seed. No torch, no files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flatq.errors import DataError
from flatq.study.config import StudyConfig
from flatq.study.expressions import FLOAT, Expression, Quantity
from flatq.study.results import CellResult, FlatnessResult, ImagesResult

__all__ = ["Contrast", "Values"]

F64 = NDArray[np.float64]


class Contrast(NamedTuple):
    """values: float64 [seeds]. differences: a `log_ratio` fell back on differences."""

    seeds: tuple[int, ...]
    values: F64
    differences: bool


class Values:
    """The quantities of all cells, by model and seed.

    Args:
        study: names the steps, the runtime and the sigma that quantities speak of by default.
        cells: at most one for each run and seed.

    Raises:
        DataError: two cells of one run and seed.
    """

    def __init__(self, study: StudyConfig, cells: Sequence[CellResult]) -> None:
        self._study = study
        self._cells: dict[tuple[str, int], CellResult] = {}
        for cell in cells:
            for model in study.models_of.get(cell.run, ()):
                if (model, cell.seed) in self._cells:
                    raise DataError(
                        f"two cells hold the seed {cell.seed} of the run {cell.run}",
                        expected="one cell for each run and seed",
                        next_step="move one of them away",
                    )
                self._cells[model, cell.seed] = cell

    def seeds(self, quantities: Iterable[Quantity]) -> list[int]:
        """The seeds at which all of them were measured, ascending."""
        wanted = list(quantities)
        known = sorted({seed for _, seed in self._cells})
        return [seed for seed in known if all(self.value(q, seed) is not None for q in wanted)]

    def contrast(self, expression: Expression, roles: Mapping[str, str]) -> Contrast:
        """An expression at the seeds at which all of its quantities were measured.

        Args:
            roles: names in the expression -> models.
        """
        seeds = self.seeds(expression.quantities(roles))
        if not seeds:
            return Contrast((), np.empty(0), False)

        def at(quantity: Quantity) -> F64:
            found = [self.value(quantity, seed) for seed in seeds]
            return np.array(found, dtype=np.float64)

        values, differences = expression.evaluate(at, roles)
        return Contrast(tuple(seeds), np.broadcast_to(values, (len(seeds),)), differences)

    def value(self, quantity: Quantity, seed: int) -> float | None:
        """One number; None where it was not measured."""
        cell = self._cells.get((quantity.model, seed))
        if cell is None:
            return None
        match quantity.kind:
            case "fid" | "drift":
                return self._images(cell, quantity)
            case "loss":
                model = cell.models.get(quantity.model)
                return None if model is None else (model.heldout_loss or {}).get(quantity.weights)
            case "exposure":
                return next(
                    (
                        r.quantizers[quantity.quantizer].gap
                        for r in cell.exposure
                        if (r.model, r.weights) == (quantity.model, quantity.weights)
                        and quantity.quantizer in r.quantizers
                    ),
                    None,
                )
        found = self.flatness(cell, quantity.model, quantity.weights)
        return None if found is None else self._flatness(found, quantity)

    def images(self, cell: CellResult, quantity: Quantity) -> ImagesResult | None:
        """The evaluation that a quantity is taken from: of the study's steps and runtime, unless it names
        others."""
        steps = quantity.steps or self._study.steps
        runtime = quantity.runtime or self._study.runtime
        wanted = (quantity.model, quantity.weights, steps, runtime)
        return next((r for r in cell.images if (r.model, r.weights, r.steps, r.runtime) == wanted), None)

    def cells_of(self, model: str) -> dict[int, CellResult]:
        """Seed -> cell of a model, by seed."""
        return {seed: self._cells[name, seed] for name, seed in sorted(self._cells) if name == model}

    @staticmethod
    def flatness(cell: CellResult, model: str, weights: str) -> FlatnessResult | None:
        """The flatness of one model's weights."""
        return next((r for r in cell.flatness if (r.model, r.weights) == (model, weights)), None)

    def _images(self, cell: CellResult, quantity: Quantity) -> float | None:
        found = self.images(cell, quantity)
        if found is None:
            return None
        if quantity.quantizer == FLOAT:
            return found.fid
        quantized = found.quantized.get(quantity.quantizer)
        if quantized is None or quantized.drift.corrected is None:
            return None
        drift = quantized.drift.corrected
        return drift if quantity.kind == "drift" else found.fid + drift

    def _flatness(self, found: FlatnessResult, quantity: Quantity) -> float | None:
        if quantity.kind in ("damage", "random_damage"):
            if quantity.quantizer not in found.quantizers:
                return None
            damage = found.flatness.damage[found.quantizers.index(quantity.quantizer)]
            return (damage.weights if quantity.kind == "damage" else damage.random).overall.value
        sigma = self._study.sigma
        noise = next((n for n in found.flatness.noise if (n.kind, n.sigma) == ("absolute", sigma)), None)
        if noise is None:
            return None
        if quantity.kind == "lpf_total":
            return noise.loss.overall.value
        increase = noise.increase.overall
        return increase.value if quantity.kind == "lpf" else increase.standard_error or 0.0
