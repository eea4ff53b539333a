"""How to run a report again: the command, and what else decides its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flatq.report.again import eval_command, what_is_not_known
from flatq.report.html.shown import Source
from flatq.report.wording import ROUNDING, identity, reference_in_words

__all__ = ["Again", "again"]


@dataclass(frozen=True)
class Again:
    """command: for a shell. settings, digests, versions: name and value."""

    command: str
    caution: str | None
    settings: list[tuple[str, str]]
    digests: list[tuple[str, str]]
    versions: list[tuple[str, str]]


def again(sources: Sequence[Source]) -> list[Again]:
    """For each report."""
    return [_again(source) for source in sources]


def _again(source: Source) -> Again:
    report = source.report
    plan = {key: value for key, value in report.plan.items() if value is not None}
    if report.labels is None:
        plan.pop("guidance", None)
    net, reference, env = report.extractor, report.reference, report.environment
    settings = [
        ("Images", f"{report.n:,} pairs, indices {report.first_index} to {report.last_index}"),
        *((key.capitalize(), str(value)) for key, value in plan.items()),
        ("Noise", f"version {report.noise_version}"),
        *([("Labels", report.labels)] if report.labels is not None else []),
        ("To 8-bit pixels", f"by {ROUNDING[report.rounding]}"),
        ("Features", f"{net.name}, {net.dim} dimensions" + _prepared(net.preprocessing)),
        ("Reference", reference_in_words(report) + _prepared(reference.preprocessing)),
        ("Float model ran on", identity(report.baseline.runtime)),
        *((f"{entry.label} ran on", identity(entry.runtime)) for entry in report.models),
    ]
    digests = [
        (report.baseline.name, report.baseline.digest),
        *((entry.name, entry.digest) for entry in report.models),
        (net.name, net.digest),
        (reference.name, reference.digest),
    ]
    versions = [
        ("flatq", report.created_with),
        ("Python", env.python),
        ("Platform", env.platform),
        ("Processor", env.cpu),
        *((name, version) for name, version in sorted(env.versions.items()) if name != "flatq"),
    ]
    return Again(eval_command(report), what_is_not_known(report), settings, digests, versions)


def _prepared(preprocessing: str | None) -> str:
    return "" if preprocessing is None else f"; preprocessing: {preprocessing}"
