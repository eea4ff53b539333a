"""What the commands share: progress on stderr, the artifact of the working folder, output names."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from flatq.errors import UsageError

__all__ = ["Report", "note", "one_artifact", "progress_bar"]


class Report(Protocol):
    """Called with (what, done, total)."""

    def __call__(self, what: str, done: int, total: int) -> None: ...


def note(text: str) -> None:
    """One line on stderr."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def progress_bar() -> Iterator[Report]:
    """A progress bar for each named stage; nothing where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda what, done, total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        tasks: dict[str, TaskID] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done, total=total)

        yield report


def one_artifact(path: Path | None) -> Path:
    """The path given, or the one artifact of the working folder.

    Raises:
        UsageError: there is none, or there are several (they are listed).
    """
    if path is not None:
        return path
    from flatq.deployment import MANIFEST
    from flatq.models import kind_of

    found = [
        folder.parent
        for folder in sorted(Path().glob(f"*/{MANIFEST}"))
        if kind_of(folder.parent) == "artifact"
    ]
    if len(found) != 1:
        raise UsageError(
            "which artifact?",
            expected="exactly one artifact in the working folder, or its path as the argument",
            got=", ".join(map(str, found)) or "none",
            next_step="name one" if found else "make one with `flatq quantize`",
        )
    return found[0]
