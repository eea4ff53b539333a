"""The table of all measures, a column for each model, and what each measure means."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from flatq.evaluate.gate import COLLAPSE_VARIANCE
from flatq.report.html.page_models import PageModel, outcome_of
from flatq.report.wording import ends, joined, latency, number, percent, precision_recall, signed, size

if TYPE_CHECKING:
    from flatq.report.model import Baseline, ModelEntry, Report

__all__ = ["Cell", "Row", "measures"]


class Cell(NamedTuple):
    """main, and below it in small print sub. state: an outcome, which sets the colour."""

    main: str = "\N{EN DASH}"
    sub: str = ""
    state: str = ""


class Row(NamedTuple):
    """name of the measure, note on what it means, a cell for each column."""

    name: str
    note: str
    cells: list[Cell]


def measures(models: Sequence[PageModel]) -> tuple[list[tuple[str, str]], list[Row]]:
    """Columns as (label, name) and rows: the float model of each report (once, where reports share it) and
    its models, side by side. Measures that no model has are left out."""
    columns: list[tuple[str, str]] = []
    parts: list[tuple[Report, ModelEntry | None]] = []
    for model in models:
        report = model.source.report
        if not parts or parts[-1][0].baseline != report.baseline:
            columns.append(("float", report.baseline.name))
            parts.append((report, None))
        columns.append((model.label, model.entry.name))
        parts.append((report, model.entry))
    levels = sorted({part.confidence for m in models for part in (m.entry.drift, m.entry.kid)})
    sure = f"at {joined([percent(level) for level in levels])} confidence" if levels else ""
    rows = []
    for name, note, of, of_float in _MEASURES:
        cells = [of_float(report) if entry is None else of(entry) for report, entry in parts]
        rows.append(Row(name, note.format(sure=sure), [cell or Cell() for cell in cells]))
    return columns, [row for row in rows if any(cell.main != Cell().main for cell in row.cells)]


def _nothing(_: Report) -> None:
    return None


def _of_drift(name: str, write: Callable[[Any], str] = signed) -> Callable[[ModelEntry], Cell | None]:
    """A field of the drift."""

    def cell(entry: ModelEntry) -> Cell | None:
        value = getattr(entry.drift, name)
        return None if value is None else Cell(write(value))

    return cell


def _verdict(entry: ModelEntry) -> Cell:
    outcome = outcome_of(entry)
    return Cell("not gated" if outcome == "none" else outcome, state=outcome)


def _corrected(entry: ModelEntry) -> Cell:
    drift = entry.drift
    if drift.corrected is None or drift.low is None:
        return Cell(sub=f"no interval: {drift.reason}")
    return Cell(signed(drift.corrected), ends(drift.low, drift.high), outcome_of(entry))


def _fid_of_baseline(report: Report) -> Cell | None:
    found = {number(entry.drift.fid_float) for entry in report.models}
    return Cell(found.pop()) if len(found) == 1 else None


def _kid(entry: ModelEntry) -> Cell:
    kid = entry.kid
    against = "; from the float images" if kid.against == "float" else ""
    return Cell(signed(kid.drift), ends(kid.low, kid.high) + against)


def _prc(entry: ModelEntry | Baseline) -> Cell | None:
    return None if entry.prc is None else Cell(precision_recall(entry.prc))


def _variance(entry: ModelEntry) -> Cell:
    ratio = entry.kid.variance_share
    state = "fail" if ratio < COLLAPSE_VARIANCE else ""
    return Cell(percent(ratio) if math.isfinite(ratio) else "inf", state=state)


def _images(entry: ModelEntry) -> Cell:
    look = "" if entry.looks is None else f"; look {entry.looks.taken} of {len(entry.looks.planned)}"
    return Cell(f"{entry.drift.n:,}", f"{entry.drift.n_over_rank:.1f} per feature rank{look}")


def _latency(entry: ModelEntry | Baseline) -> Cell | None:
    where = str(entry.runtime.get("runtime") or "")
    return None if entry.latency_ms is None else Cell(latency(entry.latency_ms), where)


_MEASURES: tuple[
    tuple[str, str, Callable[[ModelEntry], Cell | None], Callable[[Report], Cell | None]], ...
] = (
    ("Verdict", "", _verdict, lambda report: Cell("baseline")),
    (
        "Corrected drift",
        "FID quantized minus FID float, less the bias that a finite number of images gives each of the "
        "two FIDs. Below it the interval {sure}. Read this one.",
        _corrected,
        _nothing,
    ),
    ("Raw drift", "The plain difference of the two FIDs, as usually published.", _of_drift("raw"), _nothing),
    ("Bias correction", "What was subtracted from the raw drift.", _of_drift("bias_correction"), _nothing),
    ("FID float", "FID of the float model's images.", _of_drift("fid_float", number), _fid_of_baseline),
    ("FID quantized", "FID of the quantized model's images.", _of_drift("fid_quantized", number), _nothing),
    (
        "KID",
        "A second distance, the squared MMD, which has no such bias: its drift, and the interval.",
        _kid,
        _nothing,
    ),
    (
        "Precision / recall",
        "Fraction of the images that look like the reference, and fraction of the reference that the images "
        "cover. They decide nothing.",
        _prc,
        lambda report: _prc(report.baseline),
    ),
    (
        "Feature variance ratio",
        "Variance of the features over that of the float images. Below "
        f"{percent(COLLAPSE_VARIANCE)} the model repeats itself: a collapse, which fails at any drift.",
        _variance,
        _nothing,
    ),
    (
        "Paired RMSE",
        "Root mean square difference of the two images from one noise, in units of [\N{MINUS SIGN}1, 1]: "
        "mean, and the largest.",
        lambda entry: Cell(number(entry.rms_distance_mean), f"at most {number(entry.rms_distance_max)}"),
        _nothing,
    ),
    (
        "Images",
        "Pairs compared, and samples per feature rank (below 2.5 there is no interval).",
        _images,
        lambda report: Cell(f"{report.n:,}"),
    ),
    (
        "Size",
        "Of the model file, or of a checkpoint's weights.",
        lambda entry: Cell(size(entry.size_bytes)),
        lambda report: Cell(size(report.baseline.size_bytes)),
    ),
    (
        "Latency",
        "Median of one network evaluation at the sampling batch, and where it ran. This is no benchmark: "
        "use flatq bench for one.",
        _latency,
        lambda report: _latency(report.baseline),
    ),
)
