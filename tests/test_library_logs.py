"""What other libraries log or warn of stays off the user's stderr."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from networks import checkpoint

_NOISY = """
import logging, sys, warnings
from flatq.cli import main
from flatq.cli.app import app

@app.command("noisy")
def noisy() -> None:
    warnings.warn("an old option")
    logging.getLogger("some.library").warning("an optional part is missing")
    logging.getLogger("some.library").error("an error")

sys.argv = ["flatq", "noisy"]
main()
"""

_MARKED = """
import json, sys
from flatq.cli import common, main

common.note = lambda text: print("flatq:", " ".join(text.split()), file=sys.stderr)
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["flatq", *arguments]
    try:
        main()
    except SystemExit as stop:
        assert stop.code == 0, (arguments, stop.code)
"""


def _stderr(script: str, *arguments: str, environment: Mapping[str, str] | None = None) -> str:
    given = {**os.environ, **(environment or {})}
    ran = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False, env=given
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stderr


def test_only_errors_of_other_libraries_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLATQ_DEBUG", raising=False)
    assert _stderr(_NOISY) == "an error\n"
    shown = _stderr(_NOISY, environment={"FLATQ_DEBUG": "1"})
    assert "an old option" in shown
    assert "an optional part is missing" in shown


@pytest.mark.slow
@pytest.mark.parametrize(
    "script",
    [
        "import flatq.quantize.lowering",
        "from flatq.interop.diffusers_source import quiet_diffusers\nwith quiet_diffusers(): pass",
    ],
)
def test_importing_torchao_and_diffusers_prints_nothing(script: str) -> None:
    assert _stderr(script) == ""


@pytest.mark.slow
def test_whole_commands_print_nothing_but_their_own_lines(tmp_path: Path) -> None:
    model, artifact = str(checkpoint("digits", tmp_path).source), str(tmp_path / "artifact")
    few, against = ("--steps", "1", "--threads", "1"), ("--baseline", model, "--fid", "--data", "digits")
    commands = [
        ("quantize", model, "--method", "rtn", "--calib-images", "1", *few, "-o", artifact),
        ("export", artifact, "--onnx", "--no-verify"),
        ("sample", artifact, "-n", "1", *few, "-o", str(tmp_path / "x.npz")),
        ("eval", artifact, *against, "-n", "150", *few, "-o", str(tmp_path / "report")),
    ]
    lines = _stderr(_MARKED, json.dumps(commands)).splitlines()
    assert len(lines) >= len(commands)
    assert [line for line in lines if not line.startswith("flatq:")] == []
