"""Plots by matplotlib as SVG inside a page, in the page's colours; also the bars of a benchmark as a PNG."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from markupsafe import Markup

from flatq.files import replacing
from flatq.report.wording import ends, numeral, signed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from flatq.evaluate.drift import Contrast, Drift
    from flatq.report.findings import MethodResult

__all__ = [
    "COLOURS",
    "GRID",
    "INK",
    "SOFT",
    "Interval",
    "Point",
    "TimeBar",
    "drift_plot",
    "format_signed",
    "inline_plot",
    "interval_plots",
    "logarithmic_axis",
    "plain_axes",
    "save_time_bars",
    "scatter_plot",
]

# Stand-ins in a figure for the CSS variables of these names: a plot turns dark with its page.
_NAMES = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
COLOURS = tuple(f"#0404{i:02}" for i in range(10, 18))
"""Stand-ins that tell models apart."""
INK, SOFT, GRID, _PAPER, _TINT = "#010101", "#020202", "#030303", "#050501", "#050502"
_TONES = {
    "pass": "#050510",
    "fail": "#050511",
    "inconclusive": "#050512",
    "none": "#050513",
    "plain": "#050513",
    "total": INK,
}
"""Outcome of a model, or part of its drift -> colour."""
_VARIABLES = {
    **dict(zip(COLOURS, _NAMES, strict=True)),
    **{colour: name for name, colour in _TONES.items() if name not in ("plain", "total")},
    INK: "ink",
    SOFT: "soft",
    GRID: "grid",
    _PAPER: "paper",
    _TINT: "fail-tint",
}
_HALO = {"facecolor": _PAPER, "edgecolor": "none", "pad": 1.5}
"""Behind text, so that no line crosses it."""
_LINEAR_BELOW = 0.1
_LOGARITHMIC = 10.0
"""Ratio of the latencies above which their axis is logarithmic."""


@dataclass(frozen=True)
class Interval:
    """A lane of `interval_plots`.

    Attributes:
        middle: the corrected value, or the raw one without an interval. low, high: None without an interval.
        limit: the lane's own tolerance.
        state: pass, fail, inconclusive, none, plain or total.
    """

    label: str
    middle: float
    low: float | None = None
    high: float | None = None
    limit: float | None = None
    state: str = "plain"

    @classmethod
    def of(cls, label: str, drift: Drift | Contrast, state: str, limit: float | None = None) -> Self:
        """A drift or an error of the ladder."""
        middle = drift.raw if drift.corrected is None else drift.corrected
        return cls(label, middle, drift.low, drift.high, limit, state)

    @property
    def text(self) -> str:
        """The numbers."""
        spread = ", no interval" if self.low is None else f" {ends(self.low, self.high)}"
        return numeral(signed(self.middle) + spread)


@dataclass(frozen=True)
class Point:
    """A model of `scatter_plot`: ms of a network evaluation, and its drift."""

    ms: float
    drift: Interval


@dataclass(frozen=True)
class TimeBar:
    """A model of `save_time_bars`; times in ms for an image."""

    label: str
    median: float
    p90: float
    text: str
    is_float: bool


def inline_plot(draw: Callable[[Figure], None], size: tuple[float, float], salt: str) -> Markup:
    """An `<svg>` element of what `draw` draws with the stand-ins above.

    Args:
        size: inches, at 72 CSS pixels and text of 11 pixels; it scales as a whole.
        salt: makes the ids of a plot unique on its page.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt, "font.size": 11}):
        figure = Figure(figsize=size, dpi=72, layout="constrained")
        draw(figure)
        return _inline(figure)


def plain_axes(axes: Axes, grid: str) -> None:
    """No frame, no tick marks, and a grid behind along `grid` ("x", "y" or "both")."""
    axes.tick_params(which="both", colors=SOFT, labelcolor=INK, length=0)
    axes.grid(axis=grid, color=GRID)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)


def logarithmic_axis(axes: Axes) -> None:
    """The x axis, with labels at 1, 2 and 5 times the powers of ten."""
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")


def format_signed(value: float, _: Any = None) -> str:
    """A tick's label: the number with its sign."""
    return numeral(f"{value:+.6g}") if abs(value) > 1e-12 else "0"


def interval_plots(lanes: Sequence[Interval], limit: float | None, salt: str) -> list[tuple[str, Markup]]:
    """The intervals as (CSS class, `<svg>` element), for wide and for narrow screens; zero is always on it.

    Empty without lanes, and where a value is not finite.

    Args:
        limit: the tolerance of all lanes.
    """
    values = [0.0, *_values(lanes), *([] if limit is None else [limit])]
    if not lanes or not all(map(math.isfinite, values)):
        return []
    room = 0.04 * (max(values) - min(values)) or 0.5
    left, right = min(values) - room, max(values) + room

    def draw(figure: Figure, lines: int) -> None:
        axes = figure.add_subplot()
        axes.axvline(0, color=SOFT, linewidth=1)
        if limit is not None:
            axes.axvspan(limit, right, color=_TINT, linewidth=0)
            axes.axvline(limit, color=_TONES["fail"], linestyle=(0, (5, 4)), linewidth=1.5)
            align = "left" if limit < (left + right) / 2 else "right"
            place: dict[str, Any] = {
                "xytext": (5 if align == "left" else -5, 2),
                "textcoords": "offset points",
            }
            axes.annotate(f"tolerance {limit:g}", (limit, -0.8), ha=align, color=_TONES["fail"], **place)
        for number, lane in enumerate(lanes):
            _draw_interval(axes, lane, number)
            head: dict[str, Any] = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points"}
            above = (3, 18 * lines - 7)
            axes.annotate(lane.label, (0, number), above, color=INK, weight="bold", bbox=_HALO, **head)
            x, align = (1, "right") if lines == 1 else (0, "left")
            axes.annotate(lane.text, (x, number), (3 - 6 * x, 11), color=SOFT, ha=align, **head)
        axes.set_xlim(left, right)
        axes.set_ylim(len(lanes) - 0.6, -1.1)
        axes.set_yticks([])
        axes.xaxis.set_major_formatter(format_signed)
        axes.set_xlabel("drift in FID", color=SOFT)
        plain_axes(axes, "x")

    shapes = (("wide", 10.2, 1), ("narrow", 4.6, 2))
    plots = []
    for name, width, lines in shapes:
        size = width, 0.6 + (len(lanes) + 0.5) * (0.38 + 0.24 * lines)
        plots.append((name, inline_plot(partial(draw, lines=lines), size, salt + name)))
    return plots


def _draw_interval(axes: Axes, lane: Interval, y: float) -> None:
    colour = _TONES[lane.state]
    if lane.limit is not None:
        place = [y - 0.25, y + 0.25]
        axes.plot([lane.limit] * 2, place, color=_TONES["fail"], linestyle=(0, (5, 4)), linewidth=1.5)
    if lane.low is not None and lane.high is not None:
        axes.plot([lane.low, lane.high], [y, y], color=colour, linewidth=3)
        axes.plot([lane.low, lane.high], [y, y], "|", color=colour, markersize=10, markeredgewidth=2)
    axes.plot([lane.middle], [y], "o", markersize=9, markeredgewidth=2, **_dot(lane))


def _dot(lane: Interval) -> dict[str, Any]:
    """Filled, or open without an interval."""
    colour = _TONES[lane.state]
    if lane.low is None and lane.state != "plain":
        return {"markerfacecolor": _PAPER, "markeredgecolor": colour}
    return {"markerfacecolor": colour, "markeredgecolor": _PAPER}


def _values(lanes: Sequence[Interval]) -> list[float]:
    return [v for lane in lanes for v in (lane.middle, lane.low, lane.high, lane.limit) if v is not None]


def scatter_plot(
    points: Sequence[Point], floats: Mapping[str, float], limit: float | None, unit: str, salt: str
) -> tuple[Markup, bool] | None:
    """Drift over latency as an `<svg>` element, and whether its latencies are on a logarithmic scale.

    None without a quantized model on it, and where a value is not finite.

    Args:
        floats: label -> ms of float models without a drift, each a dotted line.
        limit: the tolerance, where all models share it.
        unit: unit of the latencies.
    """
    ys = [0.0, *_values([p.drift for p in points]), *([] if limit is None else [limit])]
    xs = [*(point.ms for point in points), *floats.values()]
    if all(point.drift.state == "plain" for point in points) or not all(map(math.isfinite, xs + ys)):
        return None
    logarithmic = 0 < _LOGARITHMIC * min(xs) < max(xs)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.axhline(0, color=SOFT, linewidth=1)
        if logarithmic:
            logarithmic_axis(axes)
            axes.set_xlim(min(xs) / 1.6, max(xs) * 1.6)
        else:
            axes.set_xlim(0, 1.08 * max(xs))
        axes.margins(y=0.12)
        if limit is not None:
            axes.axhline(limit, color=_TONES["fail"], linestyle=(0, (5, 4)), linewidth=1.5)
            head: dict[str, Any] = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points"}
            axes.annotate(
                f"tolerance {limit:g}", (1, limit), (0, 4), ha="right", color=_TONES["fail"], **head
            )
        above: dict[str, Any] = {"xycoords": axes.get_xaxis_transform(), "textcoords": "offset points"}
        for label, ms in floats.items():
            axes.axvline(ms, color=_TONES["none"], linestyle=":", linewidth=1)
            axes.annotate(label, (ms, 1), (0, 4), ha="right", color=SOFT, **above)
        for point in points:
            drift, colour = point.drift, _TONES[point.drift.state]
            if drift.low is not None and drift.high is not None:
                axes.plot([point.ms] * 2, [drift.low, drift.high], color=colour, linewidth=3)
            axes.plot([point.ms], [drift.middle], "o", markersize=9, markeredgewidth=2, **_dot(drift))
        axes.yaxis.set_major_formatter(format_signed)
        axes.set_xlabel(unit, color=SOFT)
        axes.set_ylabel("drift in FID", color=SOFT)
        plain_axes(axes, "y")
        _label_points(figure, axes, points)

    return inline_plot(draw, (5.4, 4.0), salt), logarithmic


def _label_points(figure: Figure, axes: Axes, points: Sequence[Point]) -> None:
    """Labels beside the points, moved up from the lowest point on, so that no two share a line."""
    figure.draw_without_rendering()
    free = -math.inf
    for point in sorted(points, key=lambda point: point.drift.middle):
        at = (point.ms, point.drift.middle)
        x, y = axes.transData.transform(at)
        free = max(y + 3, free + 13)
        on_left = axes.transAxes.inverted().transform((x, y))[0] > 0.6
        place, align = (-8 if on_left else 8, free - y), "right" if on_left else "left"
        look: dict[str, Any] = {"textcoords": "offset points", "ha": align, "color": INK, "weight": "bold"}
        axes.annotate(point.drift.label, at, place, **look)


def drift_plot(results: Sequence[MethodResult], width_inches: float) -> Markup:
    """An `<svg>` element: a line for each result's interval, grouped by bit width.

    The axis is linear from -0.1 to 0.1 and logarithmic beyond, as drifts differ by orders of magnitude.
    Results without an interval are left out.

    Args:
        results: results of at most two methods.
    """
    methods = list(dict.fromkeys(result.method for result in results))
    bits = list(dict.fromkeys(result.bits for result in results))

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for result in results:
            drift = result.entry.drift
            if drift.corrected is None or drift.low is None or drift.high is None:
                continue
            number = methods.index(result.method)
            lane = bits.index(result.bits) + 0.2 * (2 * number - 1)
            look: dict[str, Any] = {"color": COLOURS[number], "linewidth": 3}
            axes.plot([drift.low, drift.high], [lane, lane], **look)
            axes.plot([drift.corrected], [lane], "os"[number], markersize=6, color=COLOURS[number])
        for number, method in enumerate(methods):
            look = {"color": COLOURS[number], "linewidth": 3, "marker": "os"[number], "markersize": 7}
            axes.plot([], [], label=method, **look)
        axes.axvline(0, color=SOFT, linewidth=1)
        axes.set_xscale("symlog", linthresh=_LINEAR_BELOW)
        axes.xaxis.set_major_formatter(format_signed)
        axes.set_xlabel("drift in FID", color=SOFT)
        axes.set_ylim(len(bits) - 0.5, -0.5)
        axes.set_yticks(range(len(bits)), bits, color=INK)
        plain_axes(axes, "x")
        figure.legend(loc="outside upper left", ncols=2, frameon=False, labelcolor=INK)

    return inline_plot(draw, (width_inches, 0.9 + 0.55 * len(bits)), f"flatq {width_inches}")


def save_time_bars(batches: Mapping[int, Sequence[TimeBar]], path: Path) -> None:
    """Write a PNG, atomically: for each batch size the models' ms for an image, the bar to the median and a
    line to the 90th percentile. Float models are grey, quantized ones blue; all share a scale."""
    from matplotlib.figure import Figure

    count = sum(map(len, batches.values()))
    figure = Figure(figsize=(8, 0.7 * len(batches) + 0.3 * count), dpi=120, layout="constrained")
    panels = figure.subplots(
        len(batches), sharex=True, squeeze=False, height_ratios=[len(bars) for bars in batches.values()]
    )[:, 0]
    for axes, (batch, bars) in zip(panels, batches.items(), strict=True):
        lanes = range(len(bars))
        colours = ["#8a8f98" if bar.is_float else "#2563a8" for bar in bars]
        axes.barh(lanes, [bar.median for bar in bars], color=colours)
        axes.hlines(lanes, [bar.median for bar in bars], [bar.p90 for bar in bars], color="#444444")
        for lane, bar in zip(lanes, bars, strict=True):
            axes.annotate(bar.text, (bar.p90, lane), (4, 0), textcoords="offset points", va="center")
        axes.set_yticks(lanes, [bar.label for bar in bars])
        axes.invert_yaxis()
        axes.margins(x=0.25)
        axes.set_title(f"batch {batch}", loc="left", fontsize=11)
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("ms for an image: bar to the median, line to the 90th percentile")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def _inline(figure: Figure) -> Markup:
    """The figure's `<svg>` without what belongs to a file: declarations, metadata, a style sheet, names of
    groups, and the fixed size."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    for unwanted in (r"<metadata>.*?</metadata>", r"<style.*?</style>", r"<!--.*?-->", r'(?<=<g) id="[^"]*"'):
        text = re.sub(unwanted, "", text, flags=re.DOTALL)
    text = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 aria-hidden="true">', text)
    text = re.sub(r"'[^;\"]*sans-serif", "system-ui, sans-serif", text)
    for stand_in, name in _VARIABLES.items():
        text = text.replace(stand_in, f"var(--{name})")
    return Markup(text)
