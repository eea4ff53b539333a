"""The ladder and the audit of each model: where its drift comes from, and which kernels ran it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flatq.evaluate.ladder import ERRORS
from flatq.report.html.intervals import Bar, IntervalPlot, interval_plot
from flatq.report.html.shown import Shown
from flatq.report.html.text import count, numeral, percent
from flatq.report.wording import ends, identity, number, signed
from flatq.verify.tables import integer_groups

if TYPE_CHECKING:
    from flatq.evaluate.drift import Contrast
    from flatq.evaluate.ladder import Ladder
    from flatq.verify import Audit

__all__ = ["Climb", "ErrorRow", "Kernels", "audits", "ladders"]

_NAMES = {
    "export": ("Export", "B \N{MINUS SIGN} A"),
    "quantization": ("Quantization", "C \N{MINUS SIGN} A"),
    "kernel": ("Kernels", "D \N{MINUS SIGN} C \N{MINUS SIGN} B + A"),
    "total": ("Together", "D \N{MINUS SIGN} A"),
}
_RUNGS = {
    "A": "float model in torch",
    "B": "its float export on the runtime",
    "C": "quantized graph in torch",
    "D": "that graph on the runtime",
}


@dataclass(frozen=True)
class ErrorRow:
    name: str
    formula: str
    raw: str
    corrected: str
    interval: str


@dataclass(frozen=True)
class Climb:
    """rungs: letter, what it is, its FID, what it ran on."""

    label: str
    rungs: list[tuple[str, str, str, str]]
    rows: list[ErrorRow]
    confidence: str
    plot: IntervalPlot | None


@dataclass(frozen=True)
class Kernels:
    """share: of the multiply-accumulates in integers, in words; width: the same as a width. groups: kernels,
    precision, stored bits, layers, MACs. floats: layer, MACs, kernels, precision, reason."""

    label: str
    share: str
    width: str
    summary: str
    where: str
    groups: list[tuple[str, str, str, str, str]]
    floats: list[tuple[str, str, str, str, str]]
    unmatched: list[str]


def ladders(models: Sequence[Shown]) -> list[Climb]:
    """Of the models that have one."""
    return [_climb(model.label, model.entry.ladder) for model in models if model.entry.ladder is not None]


def audits(models: Sequence[Shown]) -> list[Kernels]:
    """Of the models that have one."""
    return [_kernels(model.label, model.entry.audit) for model in models if model.entry.audit is not None]


def _climb(label: str, ladder: Ladder) -> Climb:
    found: dict[str, Contrast] = {name: getattr(ladder, name) for name in ERRORS}
    bars = [
        Bar(
            _NAMES[name][0],
            error.raw if error.corrected is None else error.corrected,
            error.low,
            error.high,
            state="total" if name == "total" else "plain",
        )
        for name, error in found.items()
    ]
    rows = [
        ErrorRow(
            *_NAMES[name],
            raw=numeral(signed(error.raw)),
            corrected=numeral(signed(error.corrected)) if error.corrected is not None else "\N{EN DASH}",
            interval=numeral(ends(error.low, error.high))
            if error.low is not None
            else f"none: {error.reason}",
        )
        for name, error in found.items()
    ]
    rungs: list[tuple[str, str, str, str]] = [
        (rung, _RUNGS[rung], number(fid), identity(ladder.runtimes[rung]))
        for rung, fid in sorted(ladder.fids.items())
    ]
    return Climb(label, rungs, rows, percent(ladder.total.confidence), interval_plot(bars))


def _kernels(label: str, audit: Audit) -> Kernels:
    share = audit.integer_share
    layers = sum(entry.integer for entry in audit.entries)
    return Kernels(
        label=label,
        share=percent(share),
        width=f"{round(100 * share, 2):g}%",
        summary=f"of {audit.macs:,} multiply-accumulates run in integers, in {layers} of "
        f"{count(len(audit.entries), 'layer')}",
        where=f"From {audit.source}: {identity(audit.runtime)}.",
        groups=[
            (" + ".join(group.kernels), group.precision, group.stored, f"{group.layers:,}", f"{group.macs:,}")
            for group in integer_groups(audit)
        ],
        floats=[
            (
                entry.layer,
                f"{entry.macs:,}",
                " + ".join(entry.kernels) or "none",
                entry.precision or "none",
                entry.reason or "",
            )
            for entry in audit.fallbacks
        ],
        unmatched=list(audit.unmatched),
    )
