"""Latency against drift: which models and float models a plot shows, by a benchmark or by the sampling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from flatq.report.html.page_models import PageModel, groups, outcome_of
from flatq.report.html.plots import Interval, Point, scatter_plot

__all__ = ["Scatter", "Speed", "scatters"]


@dataclass(frozen=True)
class Speed:
    """What a benchmark measured of one model on one runtime: ms for an image at each batch size.

    digest: the model's sha256, as in a report. runtime: its name. is_float: whether it is a float model.
    """

    digest: str
    runtime: str
    is_float: bool
    per_image_ms: dict[int, float]


@dataclass(frozen=True)
class Scatter:
    """One plot. text: its numbers. floats: whether it has lines of float models without a drift."""

    title: str
    svg: Markup
    text: str
    floats: bool
    logarithmic: bool


def scatters(
    models: Sequence[PageModel], speeds: Sequence[Speed], limit: float | None
) -> tuple[list[Scatter], list[str]]:
    """A plot for each batch size of the benchmark, or one of the latencies while sampling without a
    benchmark; and what could not be plotted, in sentences.

    Args:
        limit: the tolerance, where all models share it.
    """
    baselines = [group[0].source.report.baseline for group in groups(models)]
    if not speeds:
        points = [
            _float_point(base.runtime, base.latency_ms) for base in baselines if base.latency_ms is not None
        ]
        points += [
            _point(model, model.entry.latency_ms) for model in models if model.entry.latency_ms is not None
        ]
        title = "While sampling: one evaluation of the network at the sampling batch, ms"
        return _plots(title, "ms", points, {}, limit), []
    known = {(speed.digest, speed.runtime): speed.per_image_ms for speed in speeds}
    missing = [
        f"{model.label}: the benchmark does not hold it on {model.entry.runtime.get('runtime')}"
        for model in models
        if _key(model.entry) not in known
    ]
    drawn = {_key(base) for base in baselines}
    ran_on = {model.entry.runtime.get("runtime") for model in models}
    found = []
    for batch in sorted({batch for speed in speeds for batch in speed.per_image_ms}):
        ms = {key: times[batch] for key, times in known.items() if batch in times}
        points = [_float_point(base.runtime, ms[_key(base)]) for base in baselines if _key(base) in ms]
        points += [_point(model, ms[_key(model.entry)]) for model in models if _key(model.entry) in ms]
        floats = {
            f"float, {speed.runtime}": speed.per_image_ms[batch]
            for speed in speeds
            if speed.is_float
            and (speed.digest, speed.runtime) not in drawn
            and speed.runtime in ran_on
            and batch in speed.per_image_ms
        }
        found += _plots(f"Benchmark, batch {batch}: ms an image", "ms an image", points, floats, limit)
    return found, missing


def _key(entry: Any) -> tuple[str, str]:
    return entry.digest, str(entry.runtime.get("runtime"))


def _float_point(runtime: Mapping[str, Any], ms: float) -> Point:
    return Point(ms, Interval(f"float, {runtime.get('runtime')}", 0.0))


def _point(model: PageModel, ms: float) -> Point:
    return Point(ms, Interval.of(model.label, model.entry.drift, outcome_of(model.entry)))


def _plots(
    title: str, unit: str, points: Sequence[Point], floats: Mapping[str, float], limit: float | None
) -> list[Scatter]:
    """One, or none where there is nothing to draw."""
    drawn = scatter_plot(points, floats, limit, unit, f"scatter {title}")
    if drawn is None:
        return []
    numbers = [f"{point.drift.label}: {point.ms:.3g} {unit}, drift {point.drift.text}" for point in points]
    return [Scatter(title, drawn[0], ". ".join([title, *numbers]), bool(floats), drawn[1])]
