"""The callbacks by which long work reports where it is."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Note", "Progress"]

Progress = Callable[[str, int, int], None]
"""Called with the name of a stage, the units done and the total."""
Note = Callable[[str], None]
"""Called with one line for the user."""
