"""The templates of the pages, one way to open them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flatq.report import wording

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = ["open_template"]

_FILTERS = (
    "bits_in_words",
    "count",
    "ends",
    "hyphens",
    "identity",
    "joined",
    "latency",
    "number",
    "numeral",
    "percent",
    "signed",
    "size",
)


def open_template(name: str) -> Template:
    """A template of `templates/`, with functions of `flatq.report.wording` as filters; what it prints is
    escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("flatq.report.html"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {name: getattr(wording, name) for name in _FILTERS}
    return environment.get_template(name)
