"""How to run a report again: the command, and what else decides its numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flatq.report.again import eval_command, what_is_not_known
from flatq.report.wording import ROUNDING, identity, reference_in_words

if TYPE_CHECKING:
    from flatq.report.model import Report

__all__ = ["rerun"]


def rerun(report: Report) -> tuple[str, str | None, dict[str, list[tuple[str, str]]]]:
    """The command for a shell, what it does not know, and title -> names and values of the settings."""
    plan = {key: value for key, value in report.plan.items() if value is not None}
    if report.labels is None:
        plan.pop("guidance", None)
    net, reference, env = report.extractor, report.reference, report.environment
    tables = {
        "Setting": [
            ("Images", f"{report.n:,} pairs, indices {report.first_index} to {report.last_index}"),
            *((key.capitalize(), str(value)) for key, value in plan.items()),
            ("Noise", f"version {report.noise_version}"),
            *([("Labels", report.labels)] if report.labels is not None else []),
            ("To 8-bit pixels", f"by {ROUNDING[report.rounding]}"),
            ("Features", f"{net.name}, {net.dim} dimensions" + _prepared(net.preprocessing)),
            ("Reference", reference_in_words(report) + _prepared(reference.preprocessing)),
            ("Float model ran on", identity(report.baseline.runtime)),
            *((f"{entry.label} ran on", identity(entry.runtime)) for entry in report.models),
        ],
        "Digests (sha256)": [
            (report.baseline.name, report.baseline.digest),
            *((entry.name, entry.digest) for entry in report.models),
            (net.name, net.digest),
            (reference.name, reference.digest),
        ],
        "Environment": [
            ("flatq", report.created_with),
            ("Python", env.python),
            ("Platform", env.platform),
            ("Processor", env.cpu),
            *((name, version) for name, version in sorted(env.versions.items()) if name != "flatq"),
        ],
    }
    return eval_command(report), what_is_not_known(report), tables


def _prepared(preprocessing: str | None) -> str:
    return "" if preprocessing is None else f"; preprocessing: {preprocessing}"
