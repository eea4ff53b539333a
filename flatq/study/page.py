"""The page of a study: one HTML file without scripts that loads nothing."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

from flatq.report.html.images import Picture
from flatq.report.template import open_template
from flatq.study.config import FLOAT, StudyConfig
from flatq.study.plots import exposure_plots, fid_plots, noise_plots
from flatq.study.results import CellResult
from flatq.study.sections import lead, sections
from flatq.study.summary import StudyReport
from flatq.study.values import Values

__all__ = ["render_page"]


def render_page(study: StudyConfig, cells: Sequence[CellResult], report: StudyReport) -> str:
    """The HTML text.

    Args:
        cells: those that the report was made from; plots and pictures are taken from them.
    """
    values = Values(study, cells)
    *parts, last = sections(study, report)
    return open_template("study.html").render(
        study=study,
        report=report,
        lead=lead(study, report),
        sections=parts,
        again=last,
        noise=noise_plots(study, values),
        distances=fid_plots(study, values),
        exposure=exposure_plots(study, cells),
        strips=_strips(study, cells),
    )


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
