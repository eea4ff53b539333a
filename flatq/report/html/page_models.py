"""What a page is made of: the models of one report or several, each with a label of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from flatq.errors import DataError

if TYPE_CHECKING:
    from flatq.report.model import ModelEntry, Report

__all__ = ["Against", "PageModel", "PageSource", "groups", "outcome_of", "page_models"]

Against = Literal["float model", "earlier report"]


@dataclass(frozen=True)
class PageSource:
    """A report and its folder, which holds sidecars and pictures. against: what its verdicts judge the drift
    over. notes: what a reader of the verdicts should know."""

    report: Report
    folder: Path
    against: Against = "float model"
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class PageModel:
    """A model of the page. label: its own on this page."""

    label: str
    entry: ModelEntry
    source: PageSource


def page_models(sources: Sequence[PageSource]) -> list[PageModel]:
    """All models in their order. Where a label occurs twice, the name stands beside it; else a number.

    Raises:
        DataError: reports whose distances do not compare.
    """
    reports = [source.report for source in sources]
    scales = [(r.extractor.digest, r.reference.digest, r.rounding) for r in reports]
    odd = next((report for report, scale in zip(reports, scales, strict=True) if scale != scales[0]), None)
    if odd is not None:
        raise DataError(
            "the reports' distances do not compare",
            expected=_scale_in_words(reports[0]),
            got=_scale_in_words(odd),
            next_step="make a page of each",
        )
    pairs = [(source, entry) for source in sources for entry in source.report.models]
    labels = _unlike([(entry.label, entry.name) for _, entry in pairs])
    return [PageModel(label, entry, source) for label, (source, entry) in zip(labels, pairs, strict=True)]


def groups(models: Sequence[PageModel]) -> list[list[PageModel]]:
    """Models that were compared with one float model on the same noise, so that their images pair up; in the
    order in which they appear."""
    found: dict[str, list[PageModel]] = {}
    for model in models:
        r = model.source.report
        runtime = sorted(r.baseline.runtime.items(), key=str)
        noise = (sorted(r.plan.items()), r.noise_version, r.first_index, r.labels)
        found.setdefault(repr((r.baseline.digest, r.baseline.name, runtime, noise)), []).append(model)
    return list(found.values())


def outcome_of(entry: ModelEntry) -> str:
    """pass, fail, inconclusive or none."""
    return "none" if entry.verdict is None else entry.verdict.outcome


def _scale_in_words(report: Report) -> str:
    net, reference = report.extractor, report.reference
    return (
        f"features of {net.name} (sha256 {net.digest[:16]}), reference {reference.name} "
        f"({reference.digest[:16]}), rounding {report.rounding}"
    )


def _unlike(names: list[tuple[str, str]]) -> list[str]:
    labels = [label for label, _ in names]
    for more in ([name for _, name in names], [f"#{number}" for number in range(1, len(names) + 1)]):
        times = Counter(labels)
        labels = [
            label if times[label] == 1 else f"{label} {word}"
            for label, word in zip(labels, more, strict=True)
        ]
    return labels
