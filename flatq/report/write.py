"""Writing a report's folder: report.json and the pages."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from flatq.errors import DataError
from flatq.files import replacing
from flatq.report.html.page import render_html
from flatq.report.html.page_models import PageSource
from flatq.report.markdown import render_markdown
from flatq.report.model import Report

__all__ = ["write_report"]


def write_report(report: Report, folder: str | os.PathLike[str]) -> Path:
    """Writes report.md, report.html and report.json into `folder` (made where absent), each atomically.

    The HTML page holds what the sidecars in the folder hold, so these have to be there before.

    Returns:
        The path of report.json.

    Raises:
        DataError: the folder cannot be written.
    """
    target = Path(folder)
    pages: dict[str, Callable[[], str]] = {
        "report.md": lambda: render_markdown(report),
        "report.html": lambda: render_html([PageSource(report, target)]),
        "report.json": lambda: report.model_dump_json(indent=2) + "\n",
    }
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name, render in pages.items():
            with replacing(target / name) as temporary:
                temporary.write_text(render(), encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"cannot write the report into {target}",
            expected="a folder that can be written",
            got=error.strerror or str(error),
        ) from error
    return target / "report.json"
