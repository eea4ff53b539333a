"""Sections of paragraphs and tables, which the Markdown and the page of a study share."""

from __future__ import annotations

from dataclasses import dataclass

from flatq.report.wording import count

__all__ = ["Entry", "Section", "Table", "estimate", "interval", "row", "three_digits"]


@dataclass(frozen=True)
class Entry:
    """A cell of a table. lines: smaller, below the text. tone: CSS class of a verdict, or nothing."""

    text: str
    lines: tuple[str, ...] = ()
    tone: str = ""


def row(*cells: str | Entry) -> tuple[Entry, ...]:
    """A row of a table."""
    return tuple(cell if isinstance(cell, Entry) else Entry(cell) for cell in cells)


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


def estimate(mean: float, low: float | None, high: float | None, seeds: int, *, sign: bool = True) -> Entry:
    """A mean over seeds, with its interval and the number of seeds below it."""
    lines = (interval(low, high, sign=sign), count(seeds, "seed"))
    return Entry(three_digits(mean, sign=sign), tuple(filter(None, lines)))
