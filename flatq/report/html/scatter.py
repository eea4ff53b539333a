"""Where the points of latency against drift lie. Positions across are percentages, those down are pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from flatq.report.html.axis import Tick, log_axis, place, round_axis
from flatq.report.html.shown import Shown, groups, outcome_of
from flatq.report.html.text import numeral
from flatq.report.wording import signed

__all__ = ["Plotted", "Scatter", "Speed", "scatters"]

HEIGHT = 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 11.0, 97.0, 28.0, 262.0
_LOGARITHMIC = 10.0  # ratio of the latencies from which on their axis is
_LINE = 15.0  # of a label


@dataclass(frozen=True)
class Speed:
    """What a benchmark says of one model on one runtime: ms for an image at each batch size.

    digest: of the model, as in a report. runtime: its name. is_float: whether it is a float model.
    """

    label: str
    digest: str
    runtime: str
    is_float: bool
    per_image_ms: dict[int, float]


@dataclass(frozen=True)
class Plotted:
    """One point. x in percent, the rest in pixels; label_on_left: of the point. text: its numbers."""

    label: str
    state: str
    x: str
    y: float
    low: float | None
    high: float | None
    label_y: float
    label_on_left: bool
    text: str


@dataclass(frozen=True)
class Scatter:
    """One plot. limit, zero: pixels. floats: (percent, label, whether that stands on the left) of the
    lines of float models without a drift. logarithmic: the axis of the latencies."""

    title: str
    unit: str
    points: list[Plotted]
    x_ticks: list[Tick]
    y_ticks: list[tuple[float, str]]
    zero: float
    limit: float | None
    limit_text: str
    floats: list[tuple[str, str, bool]]
    logarithmic: bool
    height: int = HEIGHT


@dataclass(frozen=True)
class _Point:
    label: str
    state: str
    ms: float
    drift: float
    low: float | None
    high: float | None


def scatters(
    models: Sequence[Shown], speeds: Sequence[Speed], limit: float | None
) -> tuple[list[Scatter], list[str]]:
    """A plot for each batch size of the benchmark, or one of the latencies while sampling without a
    benchmark; and what could not be plotted, in sentences.

    Args:
        limit: the tolerance, where all models share it.
    """
    if not speeds:
        points = _with_latency(models)
        title = "While sampling: one evaluation of the network at the sampling batch, ms"
        return [plot for plot in (_plot(title, "ms", points, [], limit),) if plot is not None], []
    known = {(speed.digest, speed.runtime): speed for speed in speeds}
    missing = [
        f"{model.label}: the benchmark does not hold it on {model.entry.runtime.get('runtime')}"
        for model in models
        if (model.entry.digest, model.entry.runtime.get("runtime")) not in known
    ]
    baselines = [group.source.report.baseline for group in groups(models)]
    drawn = {(base.digest, base.runtime.get("runtime")) for base in baselines}
    ran_on = {model.entry.runtime.get("runtime") for model in models}
    plots = []
    for batch in sorted({batch for speed in speeds for batch in speed.per_image_ms}):
        points, floats = [], []
        for base in baselines:
            found = known.get((base.digest, str(base.runtime.get("runtime"))))
            if found is not None and batch in found.per_image_ms:
                label = f"float, {found.runtime}"
                points.append(_Point(label, "plain", found.per_image_ms[batch], 0.0, None, None))
        for model in models:
            found = known.get((model.entry.digest, str(model.entry.runtime.get("runtime"))))
            if found is not None and batch in found.per_image_ms:
                points += _point(model, found.per_image_ms[batch])
        for speed in speeds:
            key = (speed.digest, speed.runtime)
            if (
                speed.is_float
                and key not in drawn
                and speed.runtime in ran_on
                and batch in speed.per_image_ms
            ):
                floats.append((speed.per_image_ms[batch], f"float, {speed.runtime}"))
        plots.append(_plot(f"Benchmark, batch {batch}: ms an image", "ms an image", points, floats, limit))
    return [plot for plot in plots if plot is not None], missing


def _with_latency(models: Sequence[Shown]) -> list[_Point]:
    points = [
        _Point(f"float, {base.runtime.get('runtime')}", "plain", base.latency_ms, 0.0, None, None)
        for base in (group.source.report.baseline for group in groups(models))
        if base.latency_ms is not None
    ]
    for model in models:
        if model.entry.latency_ms is not None:
            points += _point(model, model.entry.latency_ms)
    return points


def _point(model: Shown, ms: float) -> list[_Point]:
    drift = model.entry.drift
    if drift is None:
        return []
    middle = drift.raw if drift.corrected is None else drift.corrected
    return [_Point(model.label, outcome_of(model.entry), ms, middle, drift.low, drift.high)]


def _plot(
    title: str, unit: str, points: Sequence[_Point], floats: Sequence[tuple[float, str]], limit: float | None
) -> Scatter | None:
    """None without a quantized model on it, or where a value is not finite."""
    if not any(point.state != "plain" for point in points):
        return None
    ys = [0.0, *([] if limit is None else [limit])]
    ys += [v for point in points for v in (point.drift, point.low, point.high) if v is not None]
    xs = [*(point.ms for point in points), *(ms for ms, _ in floats)]
    if not all(map(math.isfinite, xs + ys)) or min(xs) < 0:
        return None
    logarithmic = 0 < _LOGARITHMIC * min(xs) < max(xs)
    across = (
        log_axis(xs, first=_LEFT, last=_RIGHT)
        if logarithmic
        else round_axis([0.0, *xs], first=_LEFT, last=_RIGHT)
    )
    down = round_axis(ys, first=_BOTTOM, last=_TOP)
    placed = []
    for point in points:
        x, y = across.at(point.ms), round(down.at(point.drift), 1)
        ends = "" if point.low is None else f" [{signed(point.low)}, {signed(point.high)}]"
        placed.append(
            Plotted(
                label=point.label,
                state=point.state,
                x=place(x),
                y=y,
                low=None if point.low is None else round(down.at(point.low), 1),
                high=None if point.high is None else round(down.at(point.high), 1),
                label_y=y,
                label_on_left=x > 60.0,
                text=numeral(f"{point.label}: {point.ms:.3g} {unit}, drift {signed(point.drift)}{ends}"),
            )
        )
    return Scatter(
        title=title,
        unit=unit,
        points=_apart(placed),
        x_ticks=across.ticks(signed=False),
        y_ticks=[(round(float(t.at.rstrip("%")), 1), t.text) for t in down.ticks(signed=True)],
        zero=round(down.at(0.0), 1),
        limit=None if limit is None else round(down.at(limit), 1),
        limit_text="" if limit is None else f"tolerance {limit:g}",
        floats=[(place(across.at(ms)), label, across.at(ms) > 60.0) for ms, label in floats],
        logarithmic=logarithmic,
    )


def _apart(points: list[Plotted]) -> list[Plotted]:
    """The labels moved up, from the lowest point on, so that no two on a side share a line."""
    moved: dict[int, float] = {}
    free = {True: math.inf, False: math.inf}
    for k in sorted(range(len(points)), key=lambda k: -points[k].y):
        side = points[k].label_on_left
        moved[k] = min(points[k].y - 4.0, free[side] - _LINE)
        free[side] = moved[k]
    return [
        Plotted(**{**vars(point), "label_y": round(max(moved[k], _LINE), 1)})
        for k, point in enumerate(points)
    ]
