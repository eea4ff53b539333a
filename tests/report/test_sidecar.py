"""The files beside a report: their digests are checked wherever they are read."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from command_line import Cli
from damage import damaged
from pages import add_pictures, changed_entry
from reports import make_report

from flatq.checkpoint import file_digest
from flatq.report.write import write_report


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    return Cli(monkeypatch, capsys)


def test_a_damaged_sidecar_is_refused_wherever_it_is_read(cli: Cli, tmp_path: Path) -> None:
    report = make_report(tmp_path, {"w8": 0.3}, n=60)
    add_pictures(tmp_path, "w8", range(24))
    file = tmp_path / "w8.npz"
    good, page = file.read_bytes(), tmp_path / "report.html"
    write_report(changed_entry(report, 0, sidecar_sha256=file_digest(file)), tmp_path)
    readers = (
        ("report", tmp_path),
        ("gate", tmp_path, "--max-drift-rel", 0.5),
        ("gate", tmp_path, "--max-drift", 9, "--baseline", tmp_path),
        ("gate", tmp_path, "--max-drift", 9, "--html", page),
    )
    for reader in readers:
        assert cli(*reader) in (0, 1), cli.err
    made = page.read_bytes()
    rng = random.Random(0)
    for attempt in range(60):
        file.write_bytes(damaged(good, rng))
        assert cli(*readers[attempt % 4]) == 2
        assert "checksum mismatch" in cli.err
    assert page.read_bytes() == made
    # A report from before the digests is read as it was; a file cut short shows anyway.
    file.write_bytes(good[:-100])
    raw = json.loads((tmp_path / "report.json").read_text())
    del raw["models"][0]["sidecar_sha256"]
    (tmp_path / "report.json").write_text(json.dumps(raw))
    assert cli("report", tmp_path) == 2
    file.write_bytes(good)
    assert cli("report", tmp_path) == 0
