"""The templates of the pages, one way to open them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from markupsafe import Markup

from flatq.report import wording

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = ["open_template"]

_FILTERS = (
    "bits_in_words count ends hyphens identity joined latency number numeral percent precision_recall signed "
    "size"
)


def open_template(name: str) -> Template:
    """A template of `templates/`, with functions of `flatq.report.wording` as filters.

    What it prints is escaped: in HTML as text, in Markdown to one line without bars, so that it fits a table.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    html = name.endswith(".html")
    environment = Environment(
        loader=PackageLoader("flatq.report"),
        autoescape=html,
        finalize=None if html else _one_cell,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {word: getattr(wording, word) for word in _FILTERS.split()}
    return environment.get_template(name)


def _one_cell(value: object) -> str:
    if isinstance(value, Markup):
        return value
    return " ".join(str(value).split()).replace("|", "\\|")
