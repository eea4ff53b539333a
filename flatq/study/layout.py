"""Sections of paragraphs and tables, which the Markdown and the page of a study share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["Entry", "Section", "Table", "interval", "markdown", "three_digits"]


@dataclass(frozen=True)
class Entry:
    """A cell of a table. lines: smaller, below the text. tone: CSS class of a verdict, or nothing."""

    text: str
    lines: tuple[str, ...] = ()
    tone: str = ""


@dataclass(frozen=True)
class Table:
    """A table with its title and a note, or "".

    Attributes:
        words: number of columns before those of numbers; None where there is no column of numbers.
        folded: long, and shown on the page only when asked for.
    """

    head: tuple[str, ...]
    rows: tuple[tuple[Entry, ...], ...]
    title: str = ""
    note: str = ""
    words: int | None = None
    folded: bool = False


@dataclass(frozen=True)
class Section:
    """code: shown verbatim after the paragraphs. tables_first: tables come before the paragraphs."""

    id: str
    heading: str
    paragraphs: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    code: str = ""
    tables_first: bool = False


def three_digits(value: float, *, sign: bool = True) -> str:
    """For instance `+0.123`."""
    return f"{value:+.3g}" if sign else f"{value:.3g}"


def interval(low: float | None, high: float | None, *, sign: bool = True) -> str:
    """For instance `[+0.1, +0.2]`; empty where there is none."""
    if low is None or high is None:
        return ""
    return f"[{three_digits(low, sign=sign)}, {three_digits(high, sign=sign)}]"


def markdown(title: str, lead: Sequence[str], cautions: Sequence[str], sections: Iterable[Section]) -> str:
    """All of it as Markdown."""
    blocks = [f"# {title}", *lead]
    if cautions:
        blocks.append("\n".join(f"- **Caution**: {line}" for line in cautions))
    for section in sections:
        tables = [block for table in section.tables for block in _table(table)]
        code = [f"```\n{section.code}\n```"] if section.code else []
        words = [*section.paragraphs, *code]
        blocks += [
            f"## {section.heading}",
            *([*tables, *words] if section.tables_first else [*words, *tables]),
        ]
    return "\n\n".join(blocks) + "\n"


def _table(table: Table) -> list[str]:
    def row(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rows = [row("<br>".join((entry.text, *entry.lines)) for entry in entries) for entries in table.rows]
    text = "\n".join([row(table.head), row("---" for _ in table.head), *rows])
    return [*([f"### {table.title}"] if table.title else []), *([table.note] if table.note else []), text]
