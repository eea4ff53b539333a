"""Readers that leave: the exit code stays the verdict's, and nothing is said at the interpreter's end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flatq.evaluate.drift import fid_drift
from flatq.evaluate.kid import kid_drift
from flatq.evaluate.moments import reference_from_features
from flatq.report.model import Baseline, Environment, ExtractorEntry, ModelEntry, ReferenceEntry, Report
from flatq.report.write import write_report


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of one model whose drift is about 2, with an interval."""
    folder = tmp_path_factory.mktemp("report")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 4))
    reference = reference_from_features(rng.normal(size=(500, 4)))
    runtime = {"runtime": "onnxruntime"}
    q = x + 0.7 + 0.1 * rng.normal(size=x.shape)
    entry = ModelEntry(
        name="w4", label="ema w4", precision="w4", digest="ab", runtime=runtime, size_bytes=1,
        drift=fid_drift(x, q, reference), kid=kid_drift(x, q, None), not_finite=0,
        rms_distance_mean=0.05, rms_distance_max=0.2, grid="w4.png",
    )  # fmt: skip
    report = Report(
        plan={"steps": 2, "sampler": "ddim", "seed": 0}, n=200, first_index=0, last_index=199,
        extractor=ExtractorEntry(name="net", digest="cd", dim=4),
        reference=ReferenceEntry(name="images", digest="ef", n=500), rounding="round",
        baseline=Baseline(name="float", digest="01", precision="fp32", runtime=runtime, size_bytes=4),
        models=[entry], environment=Environment(python="3.11", platform="Linux", versions={}, cpu="CPU"),
    )  # fmt: skip
    write_report(report, folder)
    return folder


def _flatq(*arguments: object, **streams: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flatq", *map(str, arguments)]
    return subprocess.run(command, text=True, timeout=300, check=False, **streams)


def _into_a_closed_pipe(*arguments: object, both: bool = False) -> subprocess.CompletedProcess[str]:
    """Standard output, and error where asked for, is a pipe whose reader has already gone."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        return _flatq(*arguments, stdout=writer, stderr=writer if both else subprocess.PIPE)
    finally:
        os.close(writer)


@pytest.mark.parametrize(
    ("options", "code"),
    [(("--max-drift", 9), 0), (("--max-drift", 0.01), 1), (("--max-drift", 9, "--min-samples", 999), 4)],
)
def test_a_closed_pipe_leaves_the_verdict(folder: Path, tmp_path: Path, options: Any, code: int) -> None:
    gate = ("gate", folder, *options, "--json", "--junit", tmp_path / "junit.xml")
    ended = _into_a_closed_pipe(*gate)
    assert (ended.returncode, ended.stderr) == (code, "")
    assert (tmp_path / "junit.xml").is_file()
    assert _into_a_closed_pipe(*gate, both=True).returncode == code


def test_streams_that_are_closed_from_the_start(folder: Path) -> None:
    for closing in (">&-", "2>&-", ">&- 2>&-", ">&- 2>&- <&-"):
        command = f'"{sys.executable}" -m flatq gate "{folder}" --max-drift 0.01 {closing}'
        assert subprocess.run(command, shell=True, timeout=300, check=False).returncode == 1, closing


@pytest.mark.slow
def test_other_commands_and_errors_in_a_closed_pipe(folder: Path) -> None:
    for arguments, code in ((("report", folder), 0), (("--help",), 0), (("report", "nothing"), 2)):
        ended = _into_a_closed_pipe(*arguments)
        assert ended.returncode == code
        assert "Exception ignored" not in ended.stderr
        assert "Traceback" not in ended.stderr
    assert _into_a_closed_pipe("report", "nothing", both=True).returncode == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_behind_standard_output_is_an_error(folder: Path) -> None:
    with Path("/dev/full").open("w") as full:
        ended = _flatq("gate", folder, "--max-drift", 9, stdout=full, stderr=subprocess.PIPE)
    assert ended.returncode == 2
    assert "flatq: the disk is full" in ended.stderr
    assert "Exception ignored" not in ended.stderr
