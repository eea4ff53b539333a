"""Plots by matplotlib as SVG inside a page, in the page's colours: the drift of each model."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from flatq.report.findings import MethodResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["drift_plot"]

_COLOURS = {"#010101": "ink", "#020202": "soft", "#030303": "grid", "#040404": "first", "#050505": "second"}
"""Stand-ins in the figure, and the CSS variables that take their place: the plot turns dark with the page."""
_INK, _SOFT, _GRID, *_METHODS = _COLOURS
_LINEAR_BELOW = 0.1


def drift_plot(results: Sequence[MethodResult], width_inches: float) -> str:
    """An `<svg>` element: a line for each result's interval, grouped by bit width.

    The axis is linear from -0.1 to 0.1 and logarithmic beyond, as drifts differ by orders of magnitude.
    Results without an interval are left out.

    Args:
        results: of at most two methods.
        width_inches: of the figure, at 72 CSS pixels and text of 11 pixels; it scales as a whole.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    methods = list(dict.fromkeys(result.method for result in results))
    bits = list(dict.fromkeys(result.bits for result in results))
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": f"flatq {width_inches}", "font.size": 11}):
        figure = Figure(figsize=(width_inches, 0.9 + 0.55 * len(bits)), layout="constrained")
        axes = figure.add_subplot()
        for result in results:
            drift = result.entry.drift
            if drift is None or drift.corrected is None or drift.low is None or drift.high is None:
                continue
            number = methods.index(result.method)
            lane = bits.index(result.bits) + 0.2 * (2 * number - 1)
            colour = _METHODS[number]
            axes.plot([drift.low, drift.high], [lane, lane], color=colour, linewidth=3)
            axes.plot([drift.corrected], [lane], marker="os"[number], markersize=6, color=colour)
        for number, method in enumerate(methods):
            axes.plot(
                [], [], color=_METHODS[number], marker="os"[number], markersize=7, linewidth=3, label=method
            )
        axes.axvline(0, color=_SOFT, linewidth=1)
        axes.set_xscale("symlog", linthresh=_LINEAR_BELOW)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:+g}" if value else "0")
        axes.set_xlabel("drift in FID", color=_SOFT)
        axes.set_ylim(len(bits) - 0.5, -0.5)
        axes.set_yticks(range(len(bits)), bits, color=_INK)
        axes.tick_params(colors=_SOFT, labelcolor=_INK, length=0)
        axes.grid(axis="x", color=_GRID)
        axes.set_axisbelow(True)
        axes.spines[:].set_visible(False)
        legend = figure.legend(loc="outside upper left", ncols=2, frameon=False, labelcolor=_INK)
        legend.set_in_layout(True)
        return _inline(figure)


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
    for stand_in, name in _COLOURS.items():
        text = text.replace(stand_in, f"var(--{name})")
    return text
