"""Small pieces of text for the page: numerals, counts, lists in words."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["count", "joined", "numeral", "percent"]


def numeral(text: str) -> str:
    """Text that is made of numbers, with true minus signs, and infinity as a sign."""
    text = re.sub(r"(?<![\w.])-(?=[\d.i])", "\N{MINUS SIGN}", text)
    return re.sub(r"e-(?=\d)", "e\N{MINUS SIGN}", text).replace("inf", "\N{INFINITY}")


def percent(share: float) -> str:
    """Three digits, on one line with their sign."""
    return f"{100 * share:.3g}\N{NO-BREAK SPACE}%"


def count(number: int, one: str, many: str | None = None) -> str:
    """For instance `1 model` and `2 models`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def joined(words: Sequence[str]) -> str:
    """For instance `a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
