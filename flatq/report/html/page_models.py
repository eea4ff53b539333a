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

__all__ = ["Against", "Group", "PageModel", "PageSource", "groups", "outcome_of", "page_models"]

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


@dataclass(frozen=True)
class Group:
    """Models that were compared with one float model on the same noise, so that their images pair up."""

    models: list[PageModel]

    @property
    def source(self) -> PageSource:
        return self.models[0].source


def page_models(sources: Sequence[PageSource]) -> list[PageModel]:
    """All models in their order. Where a label occurs twice, the name stands beside it; else a number.

    Raises:
        DataError: reports whose distances do not compare.
    """
    first = sources[0].report
    for other in (source.report for source in sources[1:]):
        if _scale(other) != _scale(first):
            raise DataError(
                "the reports' distances do not compare",
                expected=_scale_in_words(first),
                got=_scale_in_words(other),
                next_step="make a page of each",
            )
    pairs = [(source, entry) for source in sources for entry in source.report.models]
    labels = _unlike([(entry.label, entry.name) for _, entry in pairs])
    return [PageModel(label, entry, source) for label, (source, entry) in zip(labels, pairs, strict=True)]


def groups(models: Sequence[PageModel]) -> list[Group]:
    """By float model, plan, noise, first index: in the order in which they appear."""
    found: dict[str, Group] = {}
    for model in models:
        report = model.source.report
        key = (
            report.baseline.digest,
            report.baseline.name,
            sorted(report.baseline.runtime.items(), key=str),
            sorted(report.plan.items()),
            report.noise_version,
            report.first_index,
            report.labels,
        )
        found.setdefault(repr(key), Group([])).models.append(model)
    return list(found.values())


def outcome_of(entry: ModelEntry) -> str:
    """pass, fail, inconclusive or none."""
    return "none" if entry.verdict is None else entry.verdict.outcome


def _scale(report: Report) -> tuple[str, str, str]:
    return report.extractor.digest, report.reference.digest, report.rounding


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
