"""Where the parts of a plot of intervals lie: a lane for each, zero and the tolerance across all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from flatq.report.html.axis import Axis, Tick, place, round_axis
from flatq.report.html.text import numeral
from flatq.report.wording import ends, signed

__all__ = ["Bar", "IntervalPlot", "Lane", "interval_plot"]

_FIRST, _LAST = 3.0, 97.0


@dataclass(frozen=True)
class Bar:
    """What a lane shows. middle: the corrected value, or the raw one where there is no interval. low, high:
    None without an interval. limit: the lane's own tolerance. state: an outcome, which sets the colour."""

    label: str
    middle: float
    low: float | None = None
    high: float | None = None
    limit: float | None = None
    state: str = "plain"


@dataclass(frozen=True)
class Lane:
    """Positions in percent; width is of the interval."""

    label: str
    value: str
    state: str
    middle: str
    low: str | None
    high: str | None
    width: str | None
    limit: str | None


@dataclass(frozen=True)
class IntervalPlot:
    """limit: of the line through all lanes; beyond: how much of the width lies above it."""

    lanes: list[Lane]
    ticks: list[Tick]
    zero: str
    limit: str | None
    beyond: str | None
    limit_text: str | None
    limit_on_right: bool


def interval_plot(bars: Sequence[Bar], limit: float | None = None) -> IntervalPlot | None:
    """The plot, with zero always on it; None where there is nothing to show.

    Args:
        limit: the tolerance of all lanes.
    """
    values = [0.0]
    for bar in bars:
        values += [v for v in (bar.middle, bar.low, bar.high, bar.limit) if v is not None]
    if not bars or not all(map(math.isfinite, values)):
        return None
    axis = round_axis(values if limit is None else [*values, limit], first=_FIRST, last=_LAST)
    at = None if limit is None else axis.at(limit)
    return IntervalPlot(
        lanes=[_lane(bar, axis) for bar in bars],
        ticks=axis.ticks(signed=True),
        zero=place(axis.at(0.0)),
        limit=None if at is None else place(at),
        beyond=None if at is None else place(100.0 - at),
        limit_text=None if limit is None else f"tolerance {limit:g}",
        limit_on_right=at is not None and at < 60.0,
    )


def _lane(bar: Bar, axis: Axis) -> Lane:
    low = high = width = None
    value = f"{signed(bar.middle)}, no interval"
    if bar.low is not None and bar.high is not None:
        low, high = place(axis.at(bar.low)), place(axis.at(bar.high))
        width = place(axis.at(bar.high) - axis.at(bar.low))
        value = f"{signed(bar.middle)} {ends(bar.low, bar.high)}"
    return Lane(
        label=bar.label,
        value=numeral(value),
        state=bar.state,
        middle=place(axis.at(bar.middle)),
        low=low,
        high=high,
        width=width,
        limit=None if bar.limit is None else place(axis.at(bar.limit)),
    )
