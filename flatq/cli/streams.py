"""Standard output and error whose reader may leave, as `| head -1` does."""

from __future__ import annotations

import io
import os
import sys
from typing import Any

__all__ = ["keep_writing"]


def keep_writing() -> None:
    """From here on a closed pipe on standard output or error ends nothing: what is written to it is dropped.

    So a command finishes its files, and its exit code stays the verdict's. A stream that was closed from the
    start is opened on the null device, so that no file gets its descriptor.
    """
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, _null(number))
        elif stream is getattr(sys, f"__{name}__"):  # not one that a program around flatq has put there
            stream.flush()
            setattr(
                sys,
                name,
                io.TextIOWrapper(
                    io.BufferedWriter(_Leavable(number, "w", closefd=False)),
                    encoding=stream.encoding,
                    errors=stream.errors,
                    line_buffering=stream.line_buffering,
                ),
            )


class _Leavable(io.FileIO):
    """Drops what is written after the reader has left. Another error, of a full disk say, is raised once."""

    _lost = False

    def write(self, content: Any, /) -> int:
        size = memoryview(content).nbytes
        if self._lost:
            return size
        try:
            return super().write(content)
        except OSError as error:
            self._lost = True
            if isinstance(error, BrokenPipeError):
                return size
            raise


def _null(number: int) -> io.TextIOWrapper:
    opened = os.open(os.devnull, os.O_WRONLY)
    if opened != number:
        os.dup2(opened, number)
        os.close(opened)
    return io.TextIOWrapper(io.FileIO(number, "w", closefd=False), write_through=True)
