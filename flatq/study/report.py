"""The report of a study: report.json, report.md and the page index.html, from the cells that are there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from flatq.errors import DataError
from flatq.files import replacing
from flatq.study.config import StudyConfig, read_config
from flatq.study.layout import markdown
from flatq.study.page import render_page
from flatq.study.results import CellResult
from flatq.study.run import existing_result
from flatq.study.sections import lead, sections, verdict_lines
from flatq.study.summary import summarize

__all__ = ["write_report"]


def write_report(folder: Path, note: Callable[[str], None]) -> list[str]:
    """Judge the claims by the cells of a study's folder; write report.json, report.md and index.html there.

    Args:
        note: called with each sentence on what weakens the result.

    Returns:
        Lines to print: the verdicts or choices, and where the page is.

    Raises:
        UsageError: no study, or one that is not valid.
        DataError: no cell, one that is damaged or of another study, or a contrast that is not finite.
            Nothing is written then.
    """
    study = read_config(folder / "study.toml")
    cells = _cells(study, folder)
    report = summarize(study, cells)
    texts = {
        "report.json": report.model_dump_json(indent=1) + "\n",
        "report.md": markdown(study.title, lead(study, report), report.cautions, sections(study, report)),
        "index.html": render_page(study, cells, report),
    }
    for name, text in texts.items():
        with replacing(folder / name) as partial:
            partial.write_text(text, encoding="utf-8")
    for line in report.cautions:
        note(line)
    return [*verdict_lines(report), f"The page: {folder / 'index.html'}"]


def _cells(study: StudyConfig, folder: Path) -> list[CellResult]:
    known = study.cells()
    strangers = {path.stem for path in (folder / "cells").glob("*.json")} - {cell.name for cell in known}
    if strangers:
        raise DataError(
            f"{folder / 'cells' / min(strangers)}.json is no cell of the study {study.name}",
            expected="files named RUN-SEED.json, of " + ", ".join(cell.name for cell in known),
            got=", ".join(f"{name}.json" for name in sorted(strangers)),
            next_step="move it away",
        )
    found = [result for cell in known if (result := existing_result(folder, cell)) is not None]
    if not found:
        raise DataError(
            f"{folder} holds no cell",
            expected="files cells/RUN-SEED.json",
            got="none",
            next_step=f"run `flatq study run {folder / 'study.toml'}`",
        )
    return found
