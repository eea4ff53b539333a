"""Numbers and sentences that the pages of a report share. Plain text: each page escapes it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flatq.evaluate.precision_recall import PrecisionRecall
    from flatq.report.model import ModelEntry, Report

__all__ = [
    "NONE",
    "ROUNDING",
    "bits_in_words",
    "cautions",
    "count",
    "ends",
    "hyphens",
    "identity",
    "joined",
    "latency",
    "neighbours",
    "not_finite",
    "number",
    "numeral",
    "percent",
    "precision_recall",
    "reference_in_words",
    "sampling_settings",
    "scale",
    "signed",
    "size",
]

NONE = "-"
ROUNDING = {
    "round": "rounding to the nearest level (the convention of diffusers)",
    "truncate": "dropping the fraction (the convention of guided-diffusion; half a level darker on average, "
    "which moves the FID)",
}


def number(value: float | None) -> str:
    """Four digits."""
    return NONE if value is None else f"{value:.4g}"


def signed(value: float | None) -> str:
    """Four digits and the sign."""
    return NONE if value is None else f"{value:+.4g}"


def ends(low: float | None, high: float | None) -> str:
    """An interval, for instance `[-0.1, +0.2]`."""
    return f"[{signed(low)}, {signed(high)}]"


def numeral(text: str) -> str:
    """Text with true minus signs before numbers, and infinity as a sign."""
    text = re.sub(r"(?<![\w.])-(?=[\d.]|inf\b)|(?<=\de)-(?=\d)", "\N{MINUS SIGN}", text)
    return re.sub(r"\binf\b", "\N{INFINITY}", text)


def hyphens(text: str) -> str:
    """Text that does not break at its hyphens."""
    return text.replace("-", "\N{NON-BREAKING HYPHEN}")


def percent(fraction: float) -> str:
    """Three digits, on one line with their sign."""
    return f"{100 * fraction:.3g}\N{NO-BREAK SPACE}%"


def count(number: int, one: str) -> str:
    """For instance `1 model` and `2 models`."""
    return f"{number:,} {one}{'' if number == 1 else 's'}"


def joined(words: Sequence[str]) -> str:
    """For instance `a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def precision_recall(found: PrecisionRecall | None) -> str:
    return NONE if found is None else f"{found.precision:.3f} / {found.recall:.3f}"


def size(size_bytes: int) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.2f} {unit}"
    return f"{size_bytes} B"


def latency(latency_ms: float | None) -> str:
    return NONE if latency_ms is None else f"{latency_ms:.3g} ms"


def identity(runtime: Mapping[str, Any]) -> str:
    """A runtime's identity, on one line."""
    return ", ".join(f"{key} {value}" for key, value in runtime.items()) or "an unnamed runtime"


def bits_in_words(precision: str) -> str | None:
    """For instance `4-bit weights, 8-bit activations`; None where a precision has not that form."""
    found = re.match(r"w(\d+)(?:a(\d+))?(?![\da-z])", precision.lower())
    if found is None:
        return None
    weights, activations = found.groups()
    floats = activations in (None, "32")
    return f"{weights}-bit weights, {'float' if floats else f'{activations}-bit'} activations"


def scale(report: Report) -> str:
    """What the distances compare with."""
    net, reference = report.extractor, report.reference
    if net.kind != "inception":
        return "These distances compare with each other, never with Inception FID."
    count = "an unknown number of" if reference.n is None else f"{reference.n}"
    weights = (
        "The weights are the published ones, so the raw FIDs are of the standard kind"
        if net.published
        else "The weights did not come from the published file, so flatq cannot say that the raw FIDs are of "
        "the standard kind"
    )
    rounding = ROUNDING[report.rounding].split(" (")[0]
    return (
        f"{weights}: {report.n} samples of {report.plan.get('steps', 'unknown')} steps, to uint8 by "
        f"{rounding}, against {count} reference images. Published FIDs are of 50,000 "
        "samples; fewer give a larger value. Raw FIDs compare only at the same weights, number of samples, "
        "rounding, reference and preprocessing; corrected drifts never with published numbers."
    )


def neighbours(report: Report) -> str:
    """Samples of precision and recall, or why there are none; empty in a report without them."""
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


def cautions(report: Report) -> list[str]:
    """What a reader of this report's numbers has to know besides."""
    lines = []
    if report.reference.kind == "foreign-statistics":
        lines.append(
            f"The reference statistics name no extractor: that {report.extractor.name} made them, and from "
            "how many images, cannot be checked."
        )
    relative = {e.drift.relative_tolerance for e in report.models} - {None}
    lines += [
        f"Drifts are counted beyond a relative tolerance: (1 + {tolerance:g}) times FID float is subtracted."
        for tolerance in sorted(t for t in relative if t is not None)
    ]
    lines += [f"{entry.label}: {not_finite(entry)}." for entry in report.models if entry.not_finite]
    lines += [
        f"{entry.label}: images of ladder stage {joined(stages)} were not finite and count as mid-grey."
        for entry in report.models
        if entry.ladder is not None and (stages := entry.ladder.not_finite)
    ]
    if any(re.search(r"w4(?!\d)", entry.precision.lower()) for entry in report.models):
        lines.append("w4: 4-bit values run on 8-bit kernels; the latency is that of 8 bits.")
    return lines


def not_finite(entry: ModelEntry) -> str:
    """How many of a model's images were not finite."""
    return f"{entry.not_finite} of {entry.drift.n} images were not finite and count as mid-grey"


def reference_in_words(report: Report) -> str:
    """Kind, name and number of images of the reference."""
    reference = report.reference
    count = "an unknown number of images" if reference.n is None else f"{reference.n} images"
    kind = {
        "images": "",
        "statistics": "statistics of ",
        "foreign-statistics": "statistics of others in ",
    }[reference.kind]
    return f"{kind}{reference.name}, {count}"


def sampling_settings(report: Report) -> dict[str, Any]:
    """The settings of the sampling plan that have a value; guidance only with labels."""
    unused = {"guidance"} if report.labels is None else set()
    return {key: value for key, value in report.plan.items() if value is not None and key not in unused}
