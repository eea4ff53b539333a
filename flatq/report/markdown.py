"""The page report.md of a report. Renders only: every number is the report's."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from flatq.evaluate.drift import Drift
from flatq.evaluate.kid import KidDrift
from flatq.evaluate.prc import PrecisionRecall
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
_NONE = "-"
_ROUNDING = {
    "round": ("rounding to the nearest level", "(the convention of diffusers)"),
    "truncate": (
        "dropping the fraction",
        "(the convention of guided-diffusion; half a level darker on average, which moves the FID)",
    ),
}


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
        *_audits(report),
        *_grids(report),
        "## Environment",
        _environment(report),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


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
        settle = f" Samples that would settle it: {more}." if more is not None else ""
        outcome = entry.verdict.outcome.upper()
        lines.append(f"- **{_text(entry.label)}: {outcome}** - {_text(entry.verdict.reason)}{settle}")
    return "\n".join(lines) or "No models were compared."


def _table(report: Report) -> str:
    rows = [_HEAD, ("---", *["---:"] * (len(_HEAD) - 2), "---")]
    base = report.baseline
    float_fids = {_number(entry.drift.fid_float) for entry in report.models if entry.drift is not None}
    rows.append(
        (
            f"{_text(base.name)} (float, {_text(base.precision)})",
            float_fids.pop() if len(float_fids) == 1 else _NONE,
            *[_NONE] * 6,
            _prc(base.prc),
            _NONE,
            _size(base.size_bytes),
            _latency(base.latency_ms),
            "baseline",
        )
    )
    rows += [_row(entry) for entry in report.models]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(entry: ModelEntry) -> tuple[str, ...]:
    drift = entry.drift
    if drift is None:
        middle: tuple[str, ...] = (_NONE,) * 7
    else:
        middle = (
            _number(drift.fid_float),
            _number(drift.fid_quantized),
            _signed(drift.raw),
            _signed(drift.bias_correction),
            _signed(drift.corrected) + (f" {_ends(drift)}" if drift.low is not None else " (no interval)"),
            _number(drift.standard_error),
            f"{drift.n_over_rank:.1f}",
        )
    return (
        f"{_text(entry.label)} ({_text(entry.precision)})",
        *middle,
        _prc(entry.prc),
        _number(entry.rms_distance_mean),
        _size(entry.size_bytes),
        _latency(entry.latency_ms),
        entry.verdict.outcome if entry.verdict is not None else "not gated",
    )


def _reading(report: Report) -> str:
    net = report.extractor
    lines = [
        f"All distances are in the features of **{_text(net.name)}** ({net.dim} dimensions, sha256 "
        f"`{net.digest[:16]}`). {_scale(report)}",
        "The raw drift is FID quantized minus FID float as usually published; the corrected drift is the raw "
        "drift less the bias correction for the number of samples. n/r is samples per feature direction; "
        "per-image rms is the mean over pairs, in units of [-1, 1]; latency is the median of one network "
        "evaluation at the sampling batch.",
        _neighbours(report),
    ]
    if report.reference.kind == "foreign-statistics":
        lines.insert(
            1,
            f"The reference statistics name no extractor: that {_text(net.name)} made them, and from how "
            "many images, cannot be checked.",
        )
    relative = {e.drift.relative_tolerance for e in report.models if e.drift is not None} - {None}
    lines += [
        f"Drifts are counted beyond a relative tolerance: (1 + {tolerance:g}) times FID float is subtracted."
        for tolerance in sorted(t for t in relative if t is not None)
    ]
    if any(re.search(r"w4(?!\d)", entry.precision.lower()) for entry in report.models):
        lines.append("w4: 4-bit values run on 8-bit kernels; the latency is that of 8 bits.")
    return "\n\n".join(lines)


def _scale(report: Report) -> str:
    """What the distances compare with."""
    net, reference = report.extractor, report.reference
    if net.kind != "inception":
        return "These distances compare with each other, never with Inception FID."
    count = "an unknown number of" if reference.n is None else f"{reference.n}"
    parts = [
        "The weights are the published ones, so the raw FIDs are of the standard kind"
        if net.published
        else "The weights did not come from the published file, so flatq cannot say that the raw FIDs are of "
        "the standard kind",
        f": {report.n} samples of {report.plan.get('steps', 'unknown')} steps, to uint8 by "
        f"{_ROUNDING[report.rounding][0]}, against {count} reference images. Published FIDs are of 50,000 "
        "samples; fewer give a larger value. Raw FIDs compare only at the same weights, number of samples, "
        "rounding, reference and preprocessing; corrected drifts never with published numbers.",
    ]
    return "".join(parts)


def _neighbours(report: Report) -> str:
    """What precision and recall are of, or why there are none."""
    reference = report.reference
    if reference.kind != "images":
        return (
            "The reference is statistics alone. KID needs the reference's features, and so do precision and "
            "recall: instead of a KID drift there is the KID of each quantized model from the float samples "
            "themselves, which is no distance to the data."
        )
    every = [report.baseline.prc, *(entry.prc for entry in report.models)]
    found = next((prc for prc in every if prc is not None), None)
    if found is None:
        return ""
    some = [
        f"{used} of the {total} {what} (a fixed random choice)"
        if total is not None and used < total
        else f"all {used} {what}"
        for used, total, what in (
            (found.n, report.n, "samples"),
            (found.n_reference, reference.n, "reference images"),
        )
    ]
    return (
        f"Precision / recall (Kynkaanniemi et al. 2019, k = {found.k}) is of {some[0]} against {some[1]}, in "
        "the same features: read it beside the float model's."
    )


def _details(report: Report) -> str:
    lines = []
    for entry in report.models:
        parts = []
        if not entry.finite:
            parts.append("the quantized samples are not finite, so there is no drift")
        if entry.drift is not None and entry.drift.identical:
            parts.append("all features are identical to the float model's")
        if entry.drift is not None and entry.drift.low is None:
            parts.append(f"no interval: {_text(entry.drift.reason or 'no reason given')}")
        if entry.drift is not None and entry.drift.low is not None:
            parts.append(f"interval at {100 * entry.drift.confidence:.3g} %")
        if entry.kid is not None:
            kid = entry.kid
            what = "KID from the float samples" if kid.against == "float" else "KID drift"
            parts.append(f"{what} {_signed(kid.drift)} {_ends(kid)}, SE {_number(kid.standard_error)}")
        if entry.looks is not None:
            looks = entry.looks
            parts.append(
                f"look {looks.taken} of {len(looks.planned)} planned (at n = "
                f"{', '.join(map(str, looks.planned))}), together at {100 * looks.confidence:.3g} %"
            )
        if entry.rms_distance_max is not None:
            parts.append(f"largest per-image rms {_number(entry.rms_distance_max)}")
        parts.append(f"ran on {_identity(entry.runtime)}")
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
    if report.labels is not None:
        lines.append(f"- labels: {_text(report.labels)}")
    net = report.extractor
    lines += [
        f"- rounding: {report.rounding}: samples become uint8 by {' '.join(_ROUNDING[report.rounding])}",
        f"- extractor: {_text(net.name)}, digest `{_text(net.digest)}`"
        + ("" if net.preprocessing is None else f", {_text(net.preprocessing)}"),
        f"- reference: {_reference(report)}",
        f"- baseline: {_text(base.name)}, {_text(base.precision)}, digest `{_text(base.digest[:16])}`, "
        f"ran on {_identity(base.runtime)}",
    ]
    return "\n".join(lines)


def _reference(report: Report) -> str:
    reference = report.reference
    count = "an unknown number of images" if reference.n is None else f"{reference.n} images"
    kind = {
        "images": "",
        "statistics": "statistics of ",
        "foreign-statistics": "statistics of others in ",
    }[reference.kind]
    prepared = "" if reference.preprocessing is None else f", preprocessing: {_text(reference.preprocessing)}"
    return f"{kind}{_text(reference.name)}, {count}, digest `{_text(reference.digest[:16])}`{prepared}"


def _grids(report: Report) -> list[str]:
    drawn = [entry for entry in report.models if entry.grid is not None]
    if not drawn:
        return []
    blocks = ["## Samples", "Float on the left, quantized on the right, on the same noise."]
    for entry in drawn:
        label = _text(entry.label).replace("[", "(").replace("]", ")")
        blocks.append(f"**{label}**\n\n![{label}: float and quantized]({quote(entry.grid or '')})")
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


def _identity(runtime: dict[str, Any]) -> str:
    return ", ".join(f"{_text(key)} {_text(value)}" for key, value in runtime.items()) or "an unnamed runtime"


def _text(value: object) -> str:
    """On one line, and harmless in a table cell."""
    return " ".join(str(value).split()).replace("|", "\\|")


def _number(value: float | None) -> str:
    return _NONE if value is None else f"{value:.4g}"


def _signed(value: float | None) -> str:
    return _NONE if value is None else f"{value:+.4g}"


def _ends(interval: Drift | KidDrift) -> str:
    return f"[{_signed(interval.low)}, {_signed(interval.high)}]"


def _prc(prc: PrecisionRecall | None) -> str:
    return _NONE if prc is None else f"{prc.precision:.3f} / {prc.recall:.3f}"


def _size(size: int) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.2f} {unit}"
    return f"{size} B"


def _latency(latency: float | None) -> str:
    return _NONE if latency is None else f"{latency:.3g} ms"
