"""Writing a report's folder, report.json and the pages; and the HTML page alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from flatq.errors import DataError
from flatq.files import replacing
from flatq.report.html.latency import Speed
from flatq.report.html.page import render_html
from flatq.report.html.page_models import PageSource
from flatq.report.markdown import render_markdown
from flatq.report.model import Report

__all__ = ["write_html", "write_report"]


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
    with _naming(target):
        target.mkdir(parents=True, exist_ok=True)
        for name, render in pages.items():
            with replacing(target / name) as temporary:
                temporary.write_text(render(), encoding="utf-8")
    return target / "report.json"


def write_html(sources: Sequence[PageSource], path: Path, speeds: Sequence[Speed] = ()) -> Path:
    """Writes the page of reports atomically into a folder that is there; gives `path` back.

    Raises:
        DataError: as `render_html`, or the file cannot be written.
    """
    text = render_html(sources, speeds)
    with _naming(path), replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


@contextmanager
def _naming(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot write {target}",
            expected="a name in a folder that can be written",
            got=error.strerror or str(error),
        ) from error
