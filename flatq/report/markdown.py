"""The page report.md of a report. Renders only: every number is the report's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flatq.evaluate.ladder import ERRORS
from flatq.report.template import open_template
from flatq.report.wording import (
    NONE,
    ROUNDING,
    cautions,
    neighbours,
    number,
    reference_in_words,
    sampling_settings,
    scale,
)
from flatq.verify.tables import audit_markdown

if TYPE_CHECKING:
    from flatq.report.model import Report

__all__ = ["render_markdown"]


def render_markdown(report: Report) -> str:
    """The report as Markdown; grids are linked relative to the report's folder."""
    floats = {number(entry.drift.fid_float) for entry in report.models}
    return open_template("report.md").render(
        report=report,
        fid_float=floats.pop() if len(floats) == 1 else NONE,
        scale=scale(report),
        notes=[line for line in (neighbours(report), *cautions(report)) if line],
        plan=sampling_settings(report),
        rounding=ROUNDING[report.rounding],
        reference=reference_in_words(report),
        errors=ERRORS,
        audit_markdown=audit_markdown,
    )
