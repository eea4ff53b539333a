"""The table of all measures, a column for each model, and what each measure means."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flatq.evaluate.gate import COLLAPSE_VARIANCE
from flatq.report.html.shown import Shown, Source, outcome_of
from flatq.report.html.text import joined, numeral, percent
from flatq.report.wording import ends, latency, number, precision_recall, signed, size

if TYPE_CHECKING:
    from flatq.report.model import ModelEntry, Report

__all__ = ["Cell", "Column", "Row", "Table", "table"]

_NO_VALUE = "\N{EN DASH}"


@dataclass(frozen=True)
class Cell:
    """main, and below it in small print sub. state: an outcome, which sets the colour."""

    main: str = _NO_VALUE
    sub: str = ""
    state: str = ""


@dataclass(frozen=True)
class Column:
    label: str
    name: str


@dataclass(frozen=True)
class Row:
    """name of the measure, note on what it means, a cell for each column."""

    name: str
    note: str
    cells: list[Cell]


@dataclass(frozen=True)
class Table:
    columns: list[Column]
    rows: list[Row]


def table(models: Sequence[Shown]) -> Table:
    """The float model of each report (once, where reports share it) and its models, side by side."""
    columns: list[Column] = []
    parts: list[tuple[Report, ModelEntry | None]] = []
    before: Source | None = None
    for model in models:
        report = model.source.report
        if before is None or _unlike(before.report, report):
            columns.append(Column("float", report.baseline.name))
            parts.append((report, None))
        before = model.source
        columns.append(Column(model.label, model.entry.name))
        parts.append((report, model.entry))
    levels = sorted({level for model in models for level in _levels(model.entry)})
    sure = f"at {joined([percent(level) for level in levels])} confidence" if levels else ""
    rows = [
        Row(
            name,
            note.format(sure=sure),
            [of(entry) if entry is not None else of_float(report) for report, entry in parts],
        )
        for name, note, of, of_float in _measures()
    ]
    return Table(columns, [row for row in rows if any(cell.main != _NO_VALUE for cell in row.cells)])


def _levels(entry: ModelEntry) -> list[float]:
    """Of the drift's interval, at which the gate judged, and of the KID's."""
    return [part.confidence for part in (entry.drift, entry.kid) if part is not None]


def _unlike(one: Report, other: Report) -> bool:
    return one.baseline != other.baseline


_Measure = tuple[str, str, Callable[["ModelEntry"], Cell], Callable[["Report"], Cell]]


def _measures() -> list[_Measure]:
    return [
        ("Verdict", "", _verdict, lambda report: Cell("baseline")),
        (
            "Corrected drift",
            "FID quantized minus FID float, less the bias that a finite number of images gives each of the "
            "two FIDs. Below it the interval {sure}. Read this one.",
            _corrected,
            _nothing,
        ),
        ("Raw drift", "The plain difference of the two FIDs, as usually published.", _raw, _nothing),
        ("Bias correction", "What was taken from the raw drift.", _bias, _nothing),
        ("FID float", "Of the float model's images from the reference.", _fid_float, _fid_of_baseline),
        ("FID quantized", "Of the quantized model's images.", _fid_quantized, _nothing),
        (
            "KID",
            "A second distance, the squared MMD, which has no such bias: its drift, and the interval.",
            _kid,
            _nothing,
        ),
        (
            "Precision / recall",
            "Share of the images that look like the reference, and of the reference that the images cover. "
            "They decide nothing.",
            lambda entry: Cell(precision_recall(entry.prc)) if entry.prc else Cell(),
            lambda report: Cell(precision_recall(report.baseline.prc)) if report.baseline.prc else Cell(),
        ),
        (
            "Variety",
            "Variance of the features, as a share of the float images'. Below "
            f"{percent(COLLAPSE_VARIANCE)} the model repeats itself: a collapse, which fails at any drift.",
            _variety,
            _nothing,
        ),
        (
            "Distance of a pair",
            "Root mean square between the two images from one noise, in units of [\N{MINUS SIGN}1, 1]: mean, "
            "and the largest.",
            _distance,
            _nothing,
        ),
        (
            "Images",
            "Pairs compared; below it images for each direction of the features (below 2.5 there is no "
            "interval).",
            _images,
            lambda report: Cell(f"{report.n:,}"),
        ),
        (
            "Size",
            "Of the model file; of a checkpoint, of its weights.",
            lambda entry: Cell(size(entry.size_bytes)),
            lambda report: Cell(size(report.baseline.size_bytes)),
        ),
        (
            "Latency",
            "Median of one evaluation of the network at the sampling batch, and where it ran. No benchmark: "
            "flatq bench is one.",
            lambda entry: _latency(entry.latency_ms, entry.runtime.get("runtime")),
            lambda report: _latency(report.baseline.latency_ms, report.baseline.runtime.get("runtime")),
        ),
    ]


def _nothing(report: Report) -> Cell:
    return Cell()


def _verdict(entry: ModelEntry) -> Cell:
    outcome = outcome_of(entry)
    return Cell("not gated" if outcome == "none" else outcome, state=outcome)


def _corrected(entry: ModelEntry) -> Cell:
    drift = entry.drift
    if drift is None:
        return Cell(sub="samples not finite")
    if drift.corrected is None or drift.low is None:
        return Cell(sub=f"no interval: {drift.reason}")
    return Cell(numeral(signed(drift.corrected)), numeral(ends(drift.low, drift.high)), outcome_of(entry))


def _raw(entry: ModelEntry) -> Cell:
    return Cell() if entry.drift is None else Cell(numeral(signed(entry.drift.raw)))


def _bias(entry: ModelEntry) -> Cell:
    drift = entry.drift
    if drift is None or drift.bias_correction is None:
        return Cell()
    return Cell(numeral(signed(drift.bias_correction)))


def _fid_float(entry: ModelEntry) -> Cell:
    return Cell() if entry.drift is None else Cell(number(entry.drift.fid_float))


def _fid_of_baseline(report: Report) -> Cell:
    found = {number(entry.drift.fid_float) for entry in report.models if entry.drift is not None}
    return Cell(found.pop()) if len(found) == 1 else Cell()


def _fid_quantized(entry: ModelEntry) -> Cell:
    return Cell() if entry.drift is None else Cell(number(entry.drift.fid_quantized))


def _kid(entry: ModelEntry) -> Cell:
    kid = entry.kid
    if kid is None:
        return Cell()
    sub = numeral(ends(kid.low, kid.high)) + ("; from the float images" if kid.against == "float" else "")
    return Cell(numeral(signed(kid.drift)), sub)


def _variety(entry: ModelEntry) -> Cell:
    if entry.kid is None:
        return Cell()
    share = entry.kid.variance_share
    state = "fail" if share < COLLAPSE_VARIANCE else ""
    return Cell(percent(share) if math.isfinite(share) else numeral("inf"), state=state)


def _distance(entry: ModelEntry) -> Cell:
    if entry.rms_distance_mean is None:
        return Cell()
    return Cell(number(entry.rms_distance_mean), f"at most {number(entry.rms_distance_max)}")


def _images(entry: ModelEntry) -> Cell:
    if entry.drift is None:
        return Cell()
    looks = entry.looks
    sub = f"{entry.drift.n_over_rank:.1f} a direction"
    return Cell(
        f"{entry.drift.n:,}", sub + (f"; look {looks.taken} of {len(looks.planned)}" if looks else "")
    )


def _latency(latency_ms: float | None, runtime: object) -> Cell:
    return Cell() if latency_ms is None else Cell(latency(latency_ms), str(runtime or ""))
