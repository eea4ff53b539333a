"""The report of a study: report.json, report.md and the page index.html, from the cells that are there."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from pathlib import Path

from flatq.errors import DataError
from flatq.files import replacing
from flatq.report.html.images import Picture
from flatq.report.template import open_template
from flatq.study.config import FLOAT, StudyConfig, read_config
from flatq.study.plots import exposure_plots, fid_plots, noise_plots
from flatq.study.results import CellResult
from flatq.study.run import existing_result
from flatq.study.sections import lead, sections, verdict_lines
from flatq.study.summary import summarize
from flatq.study.values import Values

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
    shared = {"study": study, "report": report, "lead": lead(study, report)}
    parts, values = sections(study, report), Values(study, cells)
    page = open_template("study.html").render(
        **shared,
        sections=parts[:-1],
        again=parts[-1],
        noise=noise_plots(study, values),
        distances=fid_plots(study, values),
        exposure=exposure_plots(study, cells),
        strips=_strips(study, cells),
    )
    texts = {
        "report.json": report.model_dump_json(indent=1) + "\n",
        "report.md": open_template("study.md").render(**shared, sections=parts),
        "index.html": page,
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


def _strips(study: StudyConfig, cells: Sequence[CellResult]) -> dict[str, list[Picture]]:
    """ "MODEL, WEIGHTS" -> the float model's first images and each quantized one's, from the same noise."""
    found: dict[str, list[Picture]] = {}
    for cell in cells:
        for result in cell.images:
            if (result.steps, result.runtime) != (study.steps, study.runtime):
                continue
            name = f"{result.model}, {result.weights}"
            pictures = {FLOAT: result.picture} | {q: r.picture for q, r in result.quantized.items()}
            for level, picture in pictures.items():
                if picture is not None:
                    found.setdefault(name, []).append(_picture(picture, f"{name}, {level}: samples", level))
    return found


def _picture(encoded: str, alt: str, caption: str) -> Picture:
    from PIL import Image

    with Image.open(io.BytesIO(base64.b64decode(encoded))) as image:
        width, height = image.size
    return Picture(f"data:image/png;base64,{encoded}", width, height, alt, caption, sharp=width < 1200)
