"""The command line in this process, for tests: `cli("quantize", path)` gives the exit code."""

from __future__ import annotations

import sys

import pytest

from flatq.cli import main


class Cli:
    """Runs `flatq`; `out` and `err` are what the last run wrote. A traceback fails the test.

    Args:
        prefix: arguments before those of every call.
    """

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *prefix: str
    ) -> None:
        self._monkeypatch, self._capsys, self._prefix = monkeypatch, capsys, prefix
        self.out = self.err = ""

    def __call__(self, *arguments: object) -> int:
        self._monkeypatch.setattr(sys, "argv", ["flatq", *self._prefix, *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        self.out, self.err = self._capsys.readouterr()
        assert "Traceback" not in self.err
        assert isinstance(stop.value.code, int)
        return stop.value.code
