"""What the commands share: notes and progress on stderr, tables, the artifact of the working folder."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from flatq.errors import UsageError
from flatq.progress import Progress

__all__ = ["note", "one_artifact", "print_table", "progress_bar"]


def note(text: str) -> None:
    """One line on stderr."""
    print(text, file=sys.stderr, flush=True)


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[str]) -> None:
    """A table on stdout; the columns in `numbers` are aligned on the right."""
    from flatq.verify.tables import text_table

    print("\n".join(text_table(head, rows, numbers)))


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A progress bar for each named stage; nothing where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda what, done, total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bars(*columns, console=console) as progress:
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

    folders = [file.parent for file in sorted(Path().glob(f"*/{MANIFEST}"))]
    found = [folder for folder in folders if kind_of(folder) == "artifact"]
    if len(found) != 1:
        raise UsageError(
            "no artifact is named, and the working folder does not hold exactly one",
            expected="exactly one artifact in the working folder, or its path as the argument",
            got=", ".join(map(str, found)) or "none",
            next_step="name one" if found else "make one with `flatq quantize`",
        )
    return found[0]
