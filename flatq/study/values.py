"""From the cells of a study to one number for each quantity and seed. No torch, no files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flatq.errors import DataError
from flatq.study.config import StudyConfig
from flatq.study.expressions import FLOAT, Expression, Quantity
from flatq.study.results import CellResult, FlatnessResult

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
        study: gives the steps, the runtime and the sigma of quantities that name none.
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
        values, differences = expression.evaluate(
            lambda quantity: np.array([self.value(quantity, seed) for seed in seeds], dtype=np.float64), roles
        )
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
                for exposure in cell.exposure:
                    if (exposure.model, exposure.weights) == (quantity.model, quantity.weights):
                        found = exposure.quantizers.get(quantity.quantizer)
                        if found is not None:
                            return found.gap
                return None
        return self._flatness(cell, quantity)

    def cells_of(self, model: str) -> dict[int, CellResult]:
        """Seed -> cell of a model, by seed."""
        return {seed: self._cells[name, seed] for name, seed in sorted(self._cells) if name == model}

    @staticmethod
    def flatness(cell: CellResult, model: str, weights: str) -> FlatnessResult | None:
        """The flatness of one model's weights."""
        return next((r for r in cell.flatness if (r.model, r.weights) == (model, weights)), None)

    def _images(self, cell: CellResult, quantity: Quantity) -> float | None:
        """FID or drift at the study's steps and runtime, unless the quantity names others."""
        steps, runtime = quantity.steps or self._study.steps, quantity.runtime or self._study.runtime
        wanted = (quantity.model, quantity.weights, steps, runtime)
        found = next((r for r in cell.images if (r.model, r.weights, r.steps, r.runtime) == wanted), None)
        if found is None or quantity.quantizer == FLOAT:
            return None if found is None else found.fid
        quantized = found.quantized.get(quantity.quantizer)
        if quantized is None or quantized.drift.corrected is None:
            return None
        return quantized.drift.corrected + (0 if quantity.kind == "drift" else found.fid)

    def _flatness(self, cell: CellResult, quantity: Quantity) -> float | None:
        found = self.flatness(cell, quantity.model, quantity.weights)
        if found is None:
            return None
        if quantity.kind in ("damage", "random_damage"):
            damage = dict(zip(found.quantizers, found.flatness.damage, strict=True)).get(quantity.quantizer)
            if damage is None:
                return None
            return (damage.weights if quantity.kind == "damage" else damage.random).overall.value
        at = ("absolute", self._study.sigma)
        noise = next((n for n in found.flatness.noise if (n.kind, n.sigma) == at), None)
        if noise is None:
            return None
        increase = noise.increase.overall
        error = increase.standard_error or 0.0
        return {"lpf": increase.value, "lpf_error": error, "lpf_total": noise.loss.overall.value}[
            quantity.kind
        ]
