"""The page report.md of a report. Renders only: every number is the report's."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from flatq.evaluate.drift import Contrast
from flatq.evaluate.ladder import ERRORS
from flatq.report.wording import (
    NONE,
    ROUNDING,
    cautions,
    ends,
    identity,
    latency,
    neighbours,
    number,
    precision_recall,
    reference_in_words,
    scale,
    signed,
    size,
)
from flatq.verify.tables import audit_markdown

if TYPE_CHECKING:
    from flatq.report.model import ModelEntry, Report

__all__ = ["render_markdown"]

_HEAD = (
    "model",
    "FID float",
    "FID quantized",
    "raw drift",
    "bias correction",
    "corrected drift [low, high]",
    "SE",
    "n/r",
    "precision / recall",
    "per-image rms",
    "size",
    "latency",
    "verdict",
)


def render_markdown(report: Report) -> str:
    """The report as Markdown; grids are linked relative to the report's folder."""
    blocks = [
        "# flatq report",
        _verdicts(report),
        "## Drift",
        _table(report),
        _reading(report),
        _details(report),
        "## Setting",
        _setting(report),
        *_ladders(report),
        *_audits(report),
        *_grids(report),
        "## Environment",
        _environment(report),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _ladders(report: Report) -> list[str]:
    """Where the drift of each model comes from."""
    climbed = [(entry.label, entry.ladder) for entry in report.models if entry.ladder is not None]
    if not climbed:
        return []
    blocks = [
        "## Ladder",
        "A is the float model in torch, B its float export on the runtime, C the quantized graph in torch, D "
        "that graph on the runtime. Export error is B - A, quantization error C - A, kernel error "
        "D - C - B + A; together they are the drift, D - A.",
    ]
    for label, ladder in climbed:
        fids = ", ".join(f"{rung} {number(fid)}" for rung, fid in sorted(ladder.fids.items()))
        rows = ["| error | raw | corrected [low, high] | SE |", "| --- | ---: | ---: | ---: |"]
        for name in ERRORS:
            found: Contrast = getattr(ladder, name)
            interval = (
                "no interval"
                if found.corrected is None
                else f"{signed(found.corrected)} {ends(found.low, found.high)}"
            )
            rows.append(f"| {name} | {signed(found.raw)} | {interval} | {number(found.standard_error)} |")
        blocks.append(f"### {_text(label)}\n\nFIDs: {fids}.")
        blocks.append("\n".join(rows))
        blocks.append(
            f"B ran on {_text(identity(ladder.runtimes['B']))}; "
            f"C ran on {_text(identity(ladder.runtimes['C']))}."
        )
    return blocks


def _audits(report: Report) -> list[str]:
    """What the runtime of each model said that it runs."""
    audited = [(entry.label, entry.audit) for entry in report.models if entry.audit is not None]
    sections = [f"### {_text(label)}\n\n{audit_markdown(audit)}".rstrip() for label, audit in audited]
    return ["## Kernels", *sections] if sections else []


def _verdicts(report: Report) -> str:
    lines = []
    for entry in report.models:
        if entry.verdict is None:
            lines.append(f"- **{_text(entry.label)}: not gated**")
            continue
        more = entry.verdict.samples_to_settle
        settle = f" Samples that are likely to settle it: {more}." if more is not None else ""
        outcome = entry.verdict.outcome.upper()
        lines.append(f"- **{_text(entry.label)}: {outcome}** - {_text(entry.verdict.reason)}{settle}")
    return "\n".join(lines) or "No models were compared."


def _table(report: Report) -> str:
    rows = [_HEAD, ("---", *["---:"] * (len(_HEAD) - 2), "---")]
    base = report.baseline
    float_fids = {number(entry.drift.fid_float) for entry in report.models}
    rows.append(
        (
            f"{_text(base.name)} (float, {_text(base.precision)})",
            float_fids.pop() if len(float_fids) == 1 else NONE,
            *[NONE] * 6,
            precision_recall(base.prc),
            NONE,
            size(base.size_bytes),
            latency(base.latency_ms),
            "baseline",
        )
    )
    rows += [_row(entry) for entry in report.models]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(entry: ModelEntry) -> tuple[str, ...]:
    drift = entry.drift
    return (
        f"{_text(entry.label)} ({_text(entry.precision)})",
        number(drift.fid_float),
        number(drift.fid_quantized),
        signed(drift.raw),
        signed(drift.bias_correction),
        signed(drift.corrected)
        + (f" {ends(drift.low, drift.high)}" if drift.low is not None else " (no interval)"),
        number(drift.standard_error),
        f"{drift.n_over_rank:.1f}",
        precision_recall(entry.prc),
        number(entry.rms_distance_mean),
        size(entry.size_bytes),
        latency(entry.latency_ms),
        entry.verdict.outcome if entry.verdict is not None else "not gated",
    )


def _reading(report: Report) -> str:
    net = report.extractor
    lines = [
        f"All distances are in the features of **{_text(net.name)}** ({net.dim} dimensions, sha256 "
        f"`{net.digest[:16]}`). {_text(scale(report))}",
        "The raw drift is FID quantized minus FID float as usually published; the corrected drift is the raw "
        "drift less the bias correction for the number of samples. n/r is samples per feature direction; "
        "per-image rms is the mean over pairs, in units of [-1, 1]; latency is the median of one network "
        "evaluation at the sampling batch.",
        _text(neighbours(report)),
    ]
    lines += map(_text, cautions(report))
    return "\n\n".join(lines)


def _details(report: Report) -> str:
    lines = []
    for entry in report.models:
        parts, drift, kid = [], entry.drift, entry.kid
        if drift.identical:
            parts.append("all features are identical to the float model's")
        if drift.low is None:
            parts.append(f"no interval: {_text(drift.reason)}")
        else:
            parts.append(f"interval at {100 * drift.confidence:.3g} %")
        what = "KID from the float samples" if kid.against == "float" else "KID drift"
        parts.append(f"{what} {signed(kid.drift)} {ends(kid.low, kid.high)}, SE {number(kid.standard_error)}")
        if entry.looks is not None:
            looks = entry.looks
            parts.append(
                f"look {looks.taken} of {len(looks.planned)} planned (at n = "
                f"{', '.join(map(str, looks.planned))}), together at {100 * looks.confidence:.3g} %"
            )
        parts.append(f"largest per-image rms {number(entry.rms_distance_max)}")
        parts.append(f"ran on {_text(identity(entry.runtime))}")
        parts.append(f"digest `{_text(entry.digest[:16])}`")
        if entry.sidecar is not None:
            parts.append(f"[features and influences]({quote(entry.sidecar)})")
        lines.append(f"- {_text(entry.label)}: {'; '.join(parts)}.")
    return "\n".join(lines)


def _setting(report: Report) -> str:
    plan = dict(report.plan)
    if plan.pop("label", None) is None and report.labels is None:
        plan.pop("guidance", None)
    base = report.baseline
    lines = [f"- n: {report.n} pairs on the same noise, indices {report.first_index} to {report.last_index}"]
    lines += [f"- {key}: {_text(plan.pop(key))}" for key in ("steps", "sampler", "seed") if key in plan]
    lines += [f"- {_text(key)}: {_text(value)}" for key, value in plan.items()]
    lines.append(f"- noise: version {report.noise_version}")
    if report.labels is not None:
        lines.append(f"- labels: {_text(report.labels)}")
    net = report.extractor
    lines += [
        f"- rounding: {report.rounding}: samples become uint8 by {ROUNDING[report.rounding]}",
        f"- extractor: {_text(net.name)}, digest `{_text(net.digest)}`"
        + ("" if net.preprocessing is None else f", {_text(net.preprocessing)}"),
        f"- reference: {_reference(report)}",
        f"- baseline: {_text(base.name)}, {_text(base.precision)}, digest `{_text(base.digest[:16])}`, "
        f"ran on {_text(identity(base.runtime))}",
    ]
    return "\n".join(lines)


def _reference(report: Report) -> str:
    reference = report.reference
    prepared = "" if reference.preprocessing is None else f", preprocessing: {_text(reference.preprocessing)}"
    return f"{_text(reference_in_words(report))}, digest `{_text(reference.digest[:16])}`{prepared}"


def _grids(report: Report) -> list[str]:
    if not report.models:
        return []
    blocks = ["## Samples", "Float on the left, quantized on the right, on the same noise."]
    for entry in report.models:
        label = _text(entry.label).replace("[", "(").replace("]", ")")
        blocks.append(f"**{label}**\n\n![{label}: float and quantized]({quote(entry.grid)})")
    return blocks


def _environment(report: Report) -> str:
    env = report.environment
    versions = ", ".join(f"{_text(name)} {_text(version)}" for name, version in sorted(env.versions.items()))
    lines = [
        f"- flatq {_text(report.created_with)}",
        f"- Python {_text(env.python)} on {_text(env.platform)}",
        f"- CPU: {_text(env.cpu)}",
    ]
    return "\n".join(lines + ([f"- {versions}"] if versions else []))


def _text(value: object) -> str:
    """On one line, and harmless in a table cell."""
    return " ".join(str(value).split()).replace("|", "\\|")
