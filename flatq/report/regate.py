"""Deciding again on a stored report: with other tolerances, at another confidence, or against an earlier one.

Nothing is sampled here; `flatq.evaluate.gate` decides.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from flatq.errors import DataError, UsageError
from flatq.evaluate.difference import DriftDifference, drift_difference
from flatq.evaluate.drift import at_confidence
from flatq.evaluate.gate import Tolerances, Verdict, decide_difference, judge
from flatq.report.model import ModelEntry, Report
from flatq.report.sidecar import measured, read_sidecar
from flatq.report.wording import not_finite

__all__ = ["Growth", "growth", "regate", "with_confidence", "with_verdicts"]


def regate(report: Report, tolerances: Tolerances, folder: Path | None = None) -> list[Verdict]:
    """The verdict on each of the report's models, in their order.

    Args:
        folder: of the report, where the sidecars of a relative tolerance are; None has none.

    Raises:
        UsageError, DataError: as `judge` and `read_sidecar`.
    """
    tolerances.check()
    verdicts = []
    for entry in report.models:
        sidecar = None
        if tolerances.max_drift_rel is not None and folder is not None:
            sidecar = read_sidecar(entry, folder)
        influences = () if sidecar is None else (sidecar.influence_float, sidecar.influence_quantized)
        lost = entry.not_finite
        verdicts.append(judge(entry.drift, entry.kid, tolerances, *influences, not_finite=lost))
    return verdicts


def with_confidence(report: Report, confidence: float) -> Report:
    """A copy with the FID drifts' intervals at another confidence; where the gate looked several times, at
    each look's share of it.

    Raises:
        DataError: confidence outside (0, 1).
    """
    models = []
    for entry in report.models:
        looks = None if entry.looks is None else replace(entry.looks, confidence=confidence)
        each = confidence if looks is None else looks.each
        models.append(entry.model_copy(update={"drift": at_confidence(entry.drift, each), "looks": looks}))
    return report.model_copy(update={"models": models})


@dataclass(frozen=True)
class Growth:
    """How much each model's drift grew over an earlier report's, and the verdicts.

    notes: what a reader should know of how the reports differ.
    """

    differences: list[DriftDifference]
    verdicts: list[Verdict]
    notes: list[str]


def growth(
    report: Report,
    folder: Path,
    earlier: Report,
    earlier_folder: Path,
    max_drift: float,
    *,
    min_samples: int | None = None,
) -> Growth:
    """The growth of each model's drift over that of the model of the same name in an earlier report.

    Paired by image index where both reports have the same noise (seed and version), else unpaired and
    labelled so. Models are found by name; where both reports hold one model, that.

    Raises:
        DataError: another feature extractor, reference or rounding, with which FIDs do not compare; damaged
            sidecars.
        UsageError: a model that the earlier report does not hold, or holds without finite samples.
    """
    _check_comparable(report, earlier)
    unpaired = _unpaired(report, earlier)
    notes = [
        f"{what} differ between the reports: the drift over the earlier report holds that too"
        for what, differs in (
            ("the float models", report.baseline.digest != earlier.baseline.digest),
            ("the plans of sampling", _without_seed(report) != _without_seed(earlier)),
        )
        if differs
    ]
    differences, verdicts = [], []
    for entry in report.models:
        other = _earlier(entry, report, earlier)
        if other.not_finite:
            raise UsageError(
                f"a drift cannot be judged over the earlier one of {other.name}",
                expected="finite samples",
                got=not_finite(other),
            )
        new = measured(entry, read_sidecar(entry, folder))
        old = measured(other, read_sidecar(other, earlier_folder))
        difference = drift_difference(old, new, unpaired=unpaired)
        differences.append(difference)
        lost = entry.not_finite
        verdicts.append(
            decide_difference(difference, entry.kid, max_drift, min_samples=min_samples, not_finite=lost)
        )
    return Growth(differences, verdicts, notes)


def with_verdicts(report: Report, verdicts: list[Verdict], gate: Tolerances | None = None) -> Report:
    """A copy of the report that holds these verdicts, one for each model, and what they rest on."""
    models = [
        entry.model_copy(update={"verdict": verdict})
        for entry, verdict in zip(report.models, verdicts, strict=True)
    ]
    return report.model_copy(update={"models": models, "gate": gate or report.gate})


def _check_comparable(report: Report, earlier: Report) -> None:
    """Refuse reports whose FIDs differ for other reasons than their models.

    Raises:
        DataError: names each of extractor, reference and rounding that differs.
    """
    differing = {
        "extractor": report.extractor.digest != earlier.extractor.digest,
        "reference": report.reference.digest != earlier.reference.digest,
        "rounding": report.rounding != earlier.rounding,
    }
    names = [name for name, differs in differing.items() if differs]
    if names:
        raise DataError(
            f"the drifts of the two reports cannot be compared: different {' and '.join(names)}",
            expected=f"as in the earlier report: {_settings(earlier, names)}",
            got=_settings(report, names),
            next_step="evaluate both models with the same extractor, reference and rounding",
        )


def _settings(report: Report, names: list[str]) -> str:
    words = {
        "extractor": f"extractor {report.extractor.name} (sha256 {report.extractor.digest[:16]}...)",
        "reference": f"reference {report.reference.name} (sha256 {report.reference.digest[:16]}...)",
        "rounding": f"rounding {report.rounding}",
    }
    return ", ".join(words[name] for name in names)


def _unpaired(report: Report, earlier: Report) -> str | None:
    """Why the images of an index do not pair up; None where they do."""
    seeds = report.plan.get("seed"), earlier.plan.get("seed")
    if seeds[0] != seeds[1]:
        return f"the seeds of the noise differ, {seeds[1]} and {seeds[0]}"
    if report.noise_version != earlier.noise_version:
        return f"the versions of the noise differ, {earlier.noise_version} and {report.noise_version}"
    return None


def _without_seed(report: Report) -> dict[str, object]:
    return {key: value for key, value in report.plan.items() if key != "seed"}


def _earlier(entry: ModelEntry, report: Report, earlier: Report) -> ModelEntry:
    named = [other for other in earlier.models if other.name == entry.name]
    if len(named) == 1:
        return named[0]
    if not named and len(report.models) == len(earlier.models) == 1:
        return earlier.models[0]
    raise UsageError(
        f"which model of the earlier report is {entry.name} compared with?",
        expected="exactly one model of that name",
        got=", ".join(other.name for other in earlier.models) or "none",
    )
