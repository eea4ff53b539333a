"""Judging a stored report: with other tolerances, at another confidence, or by how much the drift grew over
an earlier report. Nothing is sampled here; `flatq.evaluate.gate` decides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from flatq.assessment import GateSettings
from flatq.errors import DataError, UsageError
from flatq.evaluate.difference import DriftDifference, MeasuredDrift, drift_difference
from flatq.evaluate.drift import at_confidence
from flatq.evaluate.gate import Tolerances, Verdict, decide_difference, judge
from flatq.report.model import ExtractorEntry, ModelEntry, ReferenceEntry, Report, read_report
from flatq.report.result import GateResult, gate_result
from flatq.report.sidecar import read_sidecar
from flatq.report.wording import not_finite

__all__ = ["judge_report", "regate", "with_confidence", "with_verdicts"]


def judge_report(
    report: Report, folder: Path | None, settings: GateSettings, note: Callable[[str], None]
) -> tuple[Report, GateResult]:
    """The report with its new verdicts, and the result.

    Args:
        folder: the report's, with its sidecars; None for a report that is in memory only.

    Raises:
        UsageError: no tolerance, or tolerances that do not go with an earlier report.
        DataError: a report or a sidecar that is damaged, or reports that do not compare.
    """
    limit, relative, earlier = settings.max_drift, settings.max_drift_rel, settings.baseline
    tolerances = Tolerances(limit, relative, settings.min_samples)
    if settings.confidence is not None:
        report = with_confidence(report, settings.confidence)
    if earlier is None:
        if limit is None and relative is None and report.gate is not None:
            least = settings.min_samples or report.gate.min_samples
            tolerances = replace(report.gate, min_samples=least)
            note(f"tolerances: those of the report, {tolerances}")
        judged = with_verdicts(report, regate(report, tolerances, folder), tolerances)
        return judged, gate_result(judged, settings.on_inconclusive)
    if limit is None or relative is not None:
        raise UsageError(
            "the growth over an earlier report needs one tolerance",
            expected="--max-drift with --baseline",
            got="--max-drift-rel" if limit is None else "both --max-drift and --max-drift-rel",
        )
    if folder is None:
        raise UsageError(
            "the growth over an earlier report needs the sidecars of both",
            expected="the path of the report",
            got="a report in memory",
        )
    earlier_folder = earlier if earlier.is_dir() else earlier.parent
    earlier_report = read_report(earlier)
    differences = _growth(report, folder, earlier_report, earlier_folder)
    verdicts = [
        decide_difference(
            difference, entry.kid, limit, min_samples=settings.min_samples, not_finite=entry.not_finite
        )
        for entry, difference in zip(report.models, differences, strict=True)
    ]
    plans = [of.plan | {"seed": None} for of in (report, earlier_report)]
    notes = [
        f"the {what} differ between the reports: the drift over the earlier report holds that too"
        for what, differs in (
            ("float models", report.baseline.digest != earlier_report.baseline.digest),
            ("sampling plans", plans[0] != plans[1]),
        )
        if differs
    ]
    for line in notes:
        note(line)
    judged = with_verdicts(report, verdicts, tolerances)
    return judged, gate_result(judged, settings.on_inconclusive, differences, notes)


def regate(report: Report, tolerances: Tolerances, folder: Path | None = None) -> list[Verdict]:
    """The verdict on each of the report's models, in their order.

    Args:
        folder: the report's, with the sidecars that a relative tolerance needs.

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
    each look's part of it.

    Raises:
        DataError: confidence outside (0, 1).
    """
    models = []
    for entry in report.models:
        looks = None if entry.looks is None else replace(entry.looks, confidence=confidence)
        each = confidence if looks is None else looks.each
        models.append(entry.model_copy(update={"drift": at_confidence(entry.drift, each), "looks": looks}))
    return report.model_copy(update={"models": models})


def with_verdicts(report: Report, verdicts: list[Verdict], tolerances: Tolerances) -> Report:
    """A copy of the report that holds these verdicts, one for each model, and what they rest on."""
    models = [
        entry.model_copy(update={"verdict": verdict})
        for entry, verdict in zip(report.models, verdicts, strict=True)
    ]
    return report.model_copy(update={"models": models, "gate": tolerances})


def _growth(report: Report, folder: Path, earlier: Report, earlier_folder: Path) -> list[DriftDifference]:
    """The growth of each model's drift over that of the model of the same name in an earlier report.

    Paired by image index where both reports have the same noise (seed and version), else unpaired and
    labelled so. Models are found by name; where both reports hold one model, that.

    Raises:
        DataError: another feature extractor, reference or rounding, with which FIDs do not compare; damaged
            sidecars.
        UsageError: a model that the earlier report does not hold, or holds without finite samples.
    """
    _check_comparable(report, earlier)
    unpaired = None
    for what, new, old in (
        ("seeds", report.plan.get("seed"), earlier.plan.get("seed")),
        ("versions", report.noise_version, earlier.noise_version),
    ):
        if new != old and unpaired is None:
            unpaired = f"the {what} of the noise differ, {old} and {new}"
    differences = []
    for entry in report.models:
        other = _earlier(entry, report, earlier)
        if other.not_finite:
            raise UsageError(
                f"a drift cannot be judged over the earlier one of {other.name}",
                expected="finite samples",
                got=not_finite(other),
            )
        sides = _measured(other, earlier_folder), _measured(entry, folder)
        differences.append(drift_difference(*sides, unpaired=unpaired))
    return differences


def _measured(entry: ModelEntry, folder: Path) -> MeasuredDrift:
    sidecar = read_sidecar(entry, folder)
    if sidecar is None:
        return MeasuredDrift(entry.drift)
    values = None
    if sidecar.influence_float is not None and sidecar.influence_quantized is not None:
        values = sidecar.influence_quantized - sidecar.influence_float
    return MeasuredDrift(entry.drift, sidecar.indices, values)


def _check_comparable(report: Report, earlier: Report) -> None:
    """Refuse reports whose FIDs differ for other reasons than their models.

    Raises:
        DataError: names each of extractor, reference and rounding that differs.
    """

    def settings(of: Report) -> dict[str, tuple[str, str]]:
        named: dict[str, ExtractorEntry | ReferenceEntry] = {
            "extractor": of.extractor,
            "reference": of.reference,
        }
        found = {
            what: (part.digest, f"{part.name} (sha256 {part.digest[:16]}...)") for what, part in named.items()
        }
        return found | {"rounding": (of.rounding, of.rounding)}

    new, old = settings(report), settings(earlier)
    names = [name for name in new if new[name][0] != old[name][0]]
    if names:
        raise DataError(
            f"the drifts of the two reports cannot be compared: different {' and '.join(names)}",
            expected="as in the earlier report: " + ", ".join(f"{name} {old[name][1]}" for name in names),
            got=", ".join(f"{name} {new[name][1]}" for name in names),
            next_step="evaluate both models with the same extractor, reference and rounding",
        )


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
