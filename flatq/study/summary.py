"""`StudyReport`: everything that the report of a study shows in numbers. No files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from flatq.report.model import Record
from flatq.study.config import StudyConfig
from flatq.study.findings import Findings, find
from flatq.study.origins import CellOrigin, LayerParity, cautions, common_origin, layer_parity, origin
from flatq.study.paper import PaperRow, paper_rows
from flatq.study.results import CellResult
from flatq.study.values import Values

__all__ = ["StudyReport", "summarize"]


class StudyReport(Record):
    """The report, as in report.json.

    Attributes:
        expected: number of cells of the study. missing: names of those that are not there.
        origin: sentences on what the cells share. cautions: sentences on what weakens the result.
        absent_models: cell -> model -> why it does not exist.
    """

    format: Literal["flatq-study-report"] = "flatq-study-report"
    version: Literal[1] = 1
    study: str
    title: str
    cells: tuple[CellOrigin, ...]
    expected: int
    missing: tuple[str, ...]
    origin: tuple[str, ...]
    cautions: tuple[str, ...]
    findings: Findings
    paper: tuple[PaperRow, ...]
    parity: tuple[LayerParity, ...]
    absent_models: dict[str, dict[str, str]]


def summarize(study: StudyConfig, cells: Sequence[CellResult]) -> StudyReport:
    """The report of a study by the cells that are there.

    Raises:
        DataError: two cells of one run and seed, or a contrast that is not finite.
    """
    values = Values(study, cells)
    origins = [origin(cell) for cell in cells]
    there = {found.cell for found in origins}
    missing = [cell.name for cell in study.cells() if cell.name not in there]
    return StudyReport(
        study=study.name,
        title=study.title,
        cells=tuple(origins),
        expected=len(study.cells()),
        missing=tuple(missing),
        origin=tuple(common_origin(origins)),
        cautions=tuple(cautions(study, cells, missing)),
        findings=find(study, values),
        paper=tuple(paper_rows(study, values)),
        parity=tuple(layer_parity(cells)),
        absent_models={cell.name: cell.missing for cell in cells if cell.missing},
    )
