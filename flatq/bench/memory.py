"""The memory of this process, as Linux tells it."""

from __future__ import annotations

import contextlib
from pathlib import Path

__all__ = ["Watermark"]

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Watermark:
    """How far the resident memory rises above what it is now.

    The system's own high-water mark is set back first, so that what came before does not hide it; where that
    is not allowed, it includes the imports. (The maximum of `getrusage` would even include the process that
    started this one.)
    """

    def __init__(self) -> None:
        with contextlib.suppress(OSError):
            _CLEAR.write_text("5")
        self._before = _read("VmRSS")

    def read(self) -> tuple[int, int] | None:
        """(bytes at the start, high-water mark since), or None where the system does not tell."""
        peak = _read("VmHWM")
        return None if self._before is None or peak is None else (self._before, peak)


def _read(key: str) -> int | None:
    lines = _STATUS.read_text().splitlines() if _STATUS.is_file() else []
    found = (line.split()[1] for line in lines if line.startswith(f"{key}:"))
    return next((1024 * int(number) for number in found), None)
