"""Parity and audit for readers: one-line summaries, a table for the terminal, Markdown. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from flatq.verify.results import Audit, AuditEntry, Parity

__all__ = [
    "KernelGroup",
    "audit_markdown",
    "audit_summary",
    "audit_table",
    "integer_groups",
    "markdown_table",
    "numbered",
    "parity_summary",
    "text_table",
]

_HEAD = ("layer", "kind", "MACs", "kernel", "precision", "stored", "reason if float")


def parity_summary(parity: Parity) -> str:
    """For instance `51/51 layers match the PyTorch reference on onnxruntime; SQNR of the network 36.6 dB`."""
    passed = len(parity.layers) - len(parity.failed)
    ratios = parity.end_to_end
    what = "layers and products" if any(layer.kind == "attention" for layer in parity.layers) else "layers"
    text = (
        f"{passed}/{len(parity.layers)} {what} match the PyTorch reference on {parity.target}; "
        f"SQNR of the network {ratios.deployed_to_lowered:.1f} dB"
    )
    if ratios.deployed_to_float is not None and ratios.lowered_to_float is not None:
        text += (
            f", against the float model {ratios.deployed_to_float:.1f} dB "
            f"(torch graph {ratios.lowered_to_float:.1f} dB)"
        )
    return text


def audit_summary(audit: Audit) -> str:
    """For instance `93.91 % of 4,947,456 MACs in integers; float: 4 attention`, and what was not matched."""
    kinds: dict[str, int] = {}
    for entry in audit.fallbacks:
        kinds[entry.kind] = kinds.get(entry.kind, 0) + 1
    floats = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    text = f"{100 * audit.integer_share:.2f} % of {audit.macs:,} MACs in integers"
    if floats:
        text += f"; float: {floats}"
    if audit.unmatched:
        text += f"; {len(audit.unmatched)} operators of the runtime belong to no layer"
    return text


def _cells(entry: AuditEntry) -> tuple[str, ...]:
    return (
        entry.layer,
        entry.kind,
        f"{entry.macs:,}",
        " + ".join(entry.kernels) or "none",
        entry.precision or "none",
        "" if entry.stored_bits is None else f"{entry.stored_bits} bit",
        entry.reason or "",
    )


def text_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[str] = ("MACs",)
) -> list[str]:
    """The lines of a table, columns two spaces apart; those of `numbers` are aligned on the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if name in numbers else cell.ljust(width)
            for cell, width, name in zip(row, widths, head, strict=True)
        ).rstrip()
        for row in (head, *rows)
    ]


def numbered(reasons: Iterable[str | None]) -> dict[str, int]:
    """Each distinct reason -> its number from 1, in order of first appearance."""
    return {why: n for n, why in enumerate(dict.fromkeys(why for why in reasons if why), 1)}


def audit_table(audit: Audit) -> str:
    """A row for each candidate, then the reasons why candidates are float, then what was not matched."""
    reasons = numbered(entry.reason for entry in audit.entries)
    rows = [(*_cells(e)[:-1], str(reasons[e.reason]) if e.reason else "") for e in audit.entries]
    lines = [audit_summary(audit), _where(audit), "", *text_table(_HEAD, rows)]
    if reasons:
        lines += ["", *(f"{n}: {why}" for why, n in reasons.items())]
    return "\n".join([*lines, *(f"no layer's: {name}" for name in audit.unmatched)])


def _where(audit: Audit) -> str:
    identity = ", ".join(f"{key} {value}" for key, value in audit.runtime.items())
    return f"from {audit.source}: {identity}"


@dataclass(frozen=True)
class KernelGroup:
    """Layers that the same kernels run in integers. stored: width of their weights in words, or empty."""

    kernels: tuple[str, ...]
    precision: str
    stored: str
    layers: int
    macs: int


def integer_groups(audit: Audit) -> list[KernelGroup]:
    """What runs in integers, by kernel, in order of first execution."""
    groups: dict[tuple[tuple[str, ...], str, str], list[AuditEntry]] = {}
    for entry in audit.entries:
        if entry.integer:
            cells = _cells(entry)
            groups.setdefault((entry.kernels, cells[4], cells[5]), []).append(entry)
    return [KernelGroup(*key, len(found), sum(e.macs for e in found)) for key, found in groups.items()]


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table of cells that need no escaping."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows))


def audit_markdown(audit: Audit) -> str:
    """The summary and the table, folded to what differs: the float candidates in full, the rest by kernel."""
    lines = [f"{audit_summary(audit)}.", "", f"{_where(audit)[0].upper()}{_where(audit)[1:]}.", ""]
    lines += ["| kernel | precision | stored | layers | MACs |", "|---|---|---|---:|---:|"]
    for group in integer_groups(audit):
        key = (" + ".join(group.kernels) or "none", group.precision, group.stored)
        lines.append(f"| {' | '.join(map(_escaped, key))} | {group.layers} | {group.macs:,} |")
    if audit.fallbacks:
        lines += ["", "| float | MACs | kernel | precision | reason |", "|---|---:|---|---|---|"]
    for entry in audit.fallbacks:
        name, _, macs, kernel, precision, _, reason = _cells(entry)
        lines.append(f"| {' | '.join(_escaped(c) for c in (name, macs, kernel, precision, reason))} |")
    if audit.unmatched:
        lines += ["", "Operators of the runtime that belong to no layer:", ""]
        lines += [f"- {_escaped(name)}" for name in audit.unmatched]
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|")
