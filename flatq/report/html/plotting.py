"""Plots by matplotlib as SVG inside a page, in the page's colours; the drift of each model."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from flatq.report.findings import MethodResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "GRID", "INK", "SOFT", "drift_plot", "inline_plot", "plain_axes"]

INK, SOFT, GRID = "#010101", "#020202", "#030303"
"""Stand-ins in a figure for the CSS variables --ink, --soft and --grid: the plot turns dark with the page."""
COLOURS = tuple(f"#0404{i:02}" for i in range(10, 18))
"""Stand-ins for the CSS variables --first, --second, ... that tell models apart."""
_NAMES = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
_VARIABLES = {INK: "ink", SOFT: "soft", GRID: "grid", **dict(zip(COLOURS, _NAMES, strict=True))}
_LINEAR_BELOW = 0.1


def inline_plot(draw: Callable[[Figure], None], size: tuple[float, float], salt: str) -> str:
    """An `<svg>` element of what `draw` draws with the stand-ins above.

    Args:
        size: inches, at 72 CSS pixels and text of 11 pixels; it scales as a whole.
        salt: of the ids in it, another one for each plot of a page.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt, "font.size": 11}):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        return _inline(figure)


def plain_axes(axes: Axes, grid: str) -> None:
    """No frame, no tick marks, and a grid behind along `grid` ("x", "y" or "both")."""
    axes.tick_params(which="both", colors=SOFT, labelcolor=INK, length=0)
    axes.grid(axis=grid, color=GRID)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)


def drift_plot(results: Sequence[MethodResult], width_inches: float) -> str:
    """An `<svg>` element: a line for each result's interval, grouped by bit width.

    The axis is linear from -0.1 to 0.1 and logarithmic beyond, as drifts differ by orders of magnitude.
    Results without an interval are left out.

    Args:
        results: of at most two methods.
    """
    methods = list(dict.fromkeys(result.method for result in results))
    bits = list(dict.fromkeys(result.bits for result in results))

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for result in results:
            drift = result.entry.drift
            if drift is None or drift.corrected is None or drift.low is None or drift.high is None:
                continue
            number = methods.index(result.method)
            lane = bits.index(result.bits) + 0.2 * (2 * number - 1)
            colour = COLOURS[number]
            axes.plot([drift.low, drift.high], [lane, lane], color=colour, linewidth=3)
            axes.plot([drift.corrected], [lane], marker="os"[number], markersize=6, color=colour)
        for number, method in enumerate(methods):
            axes.plot(
                [], [], color=COLOURS[number], marker="os"[number], markersize=7, linewidth=3, label=method
            )
        axes.axvline(0, color=SOFT, linewidth=1)
        axes.set_xscale("symlog", linthresh=_LINEAR_BELOW)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:+g}" if value else "0")
        axes.set_xlabel("drift in FID", color=SOFT)
        axes.set_ylim(len(bits) - 0.5, -0.5)
        axes.set_yticks(range(len(bits)), bits, color=INK)
        plain_axes(axes, "x")
        legend = figure.legend(loc="outside upper left", ncols=2, frameon=False, labelcolor=INK)
        legend.set_in_layout(True)

    return inline_plot(draw, (width_inches, 0.9 + 0.55 * len(bits)), f"flatq {width_inches}")


def _inline(figure: Figure) -> str:
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
    return text
