"""The error tree, each class with its exit code. Nothing here computes or prints.

FlatqError
  InputError            2   bad usage or bad input
    UsageError              an option or a combination of options that is not offered
    DataError               images, features, reference statistics
    CheckpointError         a checkpoint that cannot be read or does not fit its configuration
    ArtifactError           a quantized artifact or an export that is damaged or was changed
    ModelError              a network that flatq cannot trace, quantize or run
  MissingRuntimeError   3   a runtime or an optional package is not installed

Exit codes of the command line: 0 pass, 1 a gate failed, 2 and 3 as above, 4 inconclusive,
70 a bug in flatq (any exception that is not a `FlatqError`).
"""

from __future__ import annotations

__all__ = [
    "EXIT_BUG",
    "EXIT_GATE_FAILED",
    "EXIT_INCONCLUSIVE",
    "EXIT_INPUT",
    "EXIT_MISSING",
    "EXIT_OK",
    "ArtifactError",
    "CheckpointError",
    "DataError",
    "FlatqError",
    "InputError",
    "MissingRuntimeError",
    "ModelError",
    "UsageError",
    "one_line",
]

EXIT_OK = 0
EXIT_GATE_FAILED = 1
EXIT_INPUT = 2
EXIT_MISSING = 3
EXIT_INCONCLUSIVE = 4
EXIT_BUG = 70


class FlatqError(Exception):
    """An error that a user can act on.

    Args:
        what: one sentence, what failed and on which file or value.
        expected: what would have been right, or None where `what` says it.
        got: what came instead, or None.
        next_step: what the reader can do now, or None.
    """

    exit_code = EXIT_BUG

    def __init__(
        self,
        what: str,
        *,
        expected: str | None = None,
        got: str | None = None,
        next_step: str | None = None,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.expected = expected
        self.got = got
        self.next_step = next_step

    def __str__(self) -> str:
        lines = [self.what]
        for label, text in (("expected", self.expected), ("got", self.got), ("next", self.next_step)):
            if text is not None:
                lines.append(f"  {label + ':':<10}{text}")
        return "\n".join(lines)


class InputError(FlatqError):
    """Bad usage or bad input."""

    exit_code = EXIT_INPUT


class UsageError(InputError):
    """An option, or a combination of options, that is not offered."""


class DataError(InputError):
    """Images, features or reference statistics that cannot be used."""


class CheckpointError(InputError):
    """A checkpoint that cannot be read or does not fit its configuration."""


class ArtifactError(InputError):
    """A quantized artifact or an export that is damaged, changed or of another version."""


class ModelError(InputError):
    """A network that flatq cannot trace, quantize or run."""


class MissingRuntimeError(FlatqError):
    """A runtime or an optional package is not installed."""

    exit_code = EXIT_MISSING


def one_line(error: BaseException, most: int = 300) -> str:
    """An error's text on one line, at most so many characters; the name of its type where it has none."""
    return " ".join(str(error).split())[:most] or type(error).__name__
