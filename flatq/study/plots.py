"""The plots of a study's page, as SVG: loss under weight noise, FID and drift, exposure bias."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from flatq.report.html.plots import (
    COLOURS,
    INK,
    SOFT,
    format_signed,
    inline_plot,
    logarithmic_axis,
    plain_axes,
)
from flatq.study.config import FLOAT, StudyConfig
from flatq.study.expressions import Quantity
from flatq.study.results import CellResult
from flatq.study.values import Values

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Plot", "exposure_plots", "fid_plots", "noise_plots"]

_MARKERS = "osD^vPX*"
_WIDTH = 5.0
_LINEAR_BELOW = 0.1


@dataclass(frozen=True)
class Plot:
    """title: above the plot. svg: an `<svg>` element."""

    title: str
    svg: str


def noise_plots(study: StudyConfig, values: Values) -> list[Plot]:
    """Increase of the loss under weight noise: a plot for each choice of weights."""
    return [
        Plot(
            f"Increase of the loss, {weights}",
            _seeds_plot(points, f"noise {weights}", "increase of the loss"),
        )
        for weights in ("raw", "ema", "swa")
        if (points := [(m, "", _at_seeds(values, Quantity("lpf", m, weights))) for m in study.models])
        and any(found for _, _, found in points)
    ]


def fid_plots(study: StudyConfig, values: Values) -> dict[tuple[int, str], list[Plot]]:
    """(steps, runtime) -> FID and drift against the quantizers, for each choice of weights; those that the
    study judges come first."""
    main = (study.steps, study.runtime)
    settings = dict.fromkeys([main, *((spec.steps, spec.runtime) for spec in study.images)])
    found = {setting: list(_fid_plots(study, values, *setting)) for setting in settings}
    return {setting: plots for setting, plots in found.items() if plots}


def _fid_plots(study: StudyConfig, values: Values, steps: int, runtime: str) -> Iterator[Plot]:
    for weights in ("raw", "ema", "swa"):
        for kind, what in (("fid", "FID"), ("drift", "drift in FID")):
            levels = [FLOAT, *study.quantizers] if kind == "fid" else list(study.quantizers)
            points = [
                (level, model, _at_seeds(values, Quantity(kind, model, weights, level, steps, runtime)))
                for level in levels
                for model in study.models
            ]
            if any(found for _, _, found in points):
                salt = f"{kind} {weights} {steps} {runtime}"
                svg = _seeds_plot(points, salt, what, signed=kind == "drift")
                yield Plot(f"{'FID' if kind == 'fid' else 'Drift'}, {weights}", svg)


def exposure_plots(study: StudyConfig, cells: Sequence[CellResult]) -> list[Plot]:
    """Squared norm of the predicted noise over its dimension along t: a plot for each model and weights."""
    curves: dict[tuple[str, str], dict[str, list[np.ndarray]]] = {}
    for cell in cells:
        for result in cell.exposure:
            for name, exposure in result.quantizers.items():
                if exposure.plan.steps == study.steps:
                    curve = np.array(
                        [(s.t, s.squared_training.value, s.squared_sampling.value) for s in exposure.steps]
                    )
                    curve[:, 1:] /= exposure.dimension
                    curves.setdefault((result.model, result.weights), {}).setdefault(name, []).append(curve)
    means = {
        key: {name: np.mean(found, axis=0) for name, found in by_name.items()}
        for key, by_name in curves.items()
    }
    every = [curve[:, 1:] for by_name in means.values() for curve in by_name.values()]
    if not every:
        return []
    ends = (float(min(c.min() for c in every)), float(max(c.max() for c in every)))
    return [
        Plot(f"{model}, {weights}", _exposure_plot(by_name, ends, f"exposure {model} {weights}"))
        for (model, weights), by_name in means.items()
    ]


def _at_seeds(values: Values, quantity: Quantity) -> list[float]:
    found = [values.value(quantity, seed) for seed in values.seeds([quantity])]
    return [x for x in found if x is not None]


def _seeds_plot(
    points: Sequence[tuple[str, str, list[float]]], salt: str, what: str, *, signed: bool = False
) -> str:
    """A lane for each (group, model) with a value: seeds as points, their mean as a bar."""
    from matplotlib.lines import Line2D

    every = list(dict.fromkeys(model for _, model, _ in points))  # so that a model keeps its colour
    points = [point for point in points if point[2]]
    models = [model for model in every if model in {model for _, model, _ in points}]
    rows = list(_lanes(points))
    height = 0.9 + 0.2 * (rows[-1][0] + 1) + 0.22 * (-(-len(models) // 3) if models != [""] else 0)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for lane, _, model, found in rows:
            colour, marker = _look(every.index(model))
            axes.plot(found, [lane] * len(found), marker, markersize=4, color=colour, alpha=0.55)
            axes.plot([np.mean(found)], [lane], "|", markersize=13, markeredgewidth=2.5, color=colour)
        if models != [""]:
            handles = []
            for model in models:
                colour, marker = _look(every.index(model))
                handles.append(Line2D([], [], color=colour, marker=marker, linestyle="none", label=model))
            figure.legend(handles=handles, loc="outside upper left", ncols=3, frameon=False, labelcolor=INK)
        places: dict[str, list[float]] = {}
        for lane, group, _, _ in rows:
            places.setdefault(group, []).append(lane)
        axes.set_yticks([float(np.mean(lanes)) for lanes in places.values()], list(places), color=INK)
        axes.set_ylim(rows[-1][0] + 0.8, rows[0][0] - 0.8)
        _value_axis(axes, [x for *_, found in rows for x in found], signed)
        axes.set_xlabel(what, color=SOFT)
        plain_axes(axes, "x")

    return inline_plot(draw, (_WIDTH, height), salt)


def _lanes(
    points: Sequence[tuple[str, str, list[float]]],
) -> Iterator[tuple[float, str, str, list[float]]]:
    """The lane of each point, with room between groups."""
    lane, last = 0.0, points[0][0]
    for group, model, found in points:
        if group != last:
            lane, last = lane + 0.8, group
        yield lane, group, model, found
        lane += 1


def _value_axis(axes: Axes, found: Sequence[float], signed: bool) -> None:
    """Logarithmic where values differ by a lot, linear about zero where some are not positive."""
    if signed or min(found) <= 0:
        axes.axvline(0, color=SOFT, linewidth=1)
        axes.set_xscale("symlog", linthresh=_LINEAR_BELOW if signed else max(map(abs, found)) / 100)
        axes.xaxis.set_major_formatter(format_signed)
    elif max(found) > 4 * min(found):
        logarithmic_axis(axes)


def _look(number: int) -> tuple[str, str]:
    """Colour and marker of a model."""
    return COLOURS[number % len(COLOURS)], _MARKERS[number % len(_MARKERS)]


def _exposure_plot(by_name: dict[str, np.ndarray], ends: tuple[float, float], salt: str) -> str:
    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for number, (name, curve) in enumerate(by_name.items()):
            colour = COLOURS[number % len(COLOURS)]
            axes.plot(curve[:, 0], curve[:, 1], "--", color=colour, linewidth=1.4, label=f"{name}, training")
            axes.plot(curve[:, 0], curve[:, 2], color=colour, linewidth=1.8, label=f"{name}, sampling")
        room = 0.05 * (ends[1] - ends[0])
        axes.set_ylim(ends[0] - room, ends[1] + room)
        axes.set_xlabel("t", color=SOFT)
        plain_axes(axes, "both")
        figure.legend(loc="outside upper left", ncols=2, frameon=False, labelcolor=INK)

    return inline_plot(draw, (_WIDTH, 3.2 + 0.22 * len(by_name)), salt)
