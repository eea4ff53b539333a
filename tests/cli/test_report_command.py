"""`flatq report`, `flatq gate --html`, and the command that a report gives to run it again."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from command_line import Cli
from networks import checkpoint

from flatq.bench.result import BenchResult, Entry, Measured, speeds_of, write_result
from flatq.bench.run import this_machine
from flatq.bench.timing import Latency
from flatq.checkpoint import file_digest
from flatq.report.eval_command import eval_command
from flatq.report.html.latency import Speed
from flatq.report.model import Report, read_report

PLAN = ("--steps", 2, "--sampler", "ddim", "--eta", 0.5, "--seed", 7, "--batch-size", 50, "--first", 3)


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    return Cli(monkeypatch, capsys)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two names of one untrained network; the second has one in its name that a shell would take apart."""
    folder = tmp_path_factory.mktemp("again")
    source = checkpoint("digits", folder).source
    assert source is not None
    shutil.copy(source, folder / "base.pt")
    shutil.copy(source, folder / "a model & more.pt")
    return folder


def _evaluate(cli: Cli, folder: Path, out: Path, *more: object) -> int:
    return cli(
        "eval", folder / "a model & more.pt", "--fid", "--baseline", folder / "base.pt", "--threads", 1,
        "--rounding", "truncate", *PLAN, "-o", out, *more,
    )  # fmt: skip


def _without_times(report: Report) -> dict[str, Any]:
    content = report.model_dump()
    for part in (content["baseline"], *content["models"]):
        part["latency_ms"] = part["seconds_per_image"] = None
    return content


@pytest.mark.parametrize(
    "more", [("-n", 130, "--max-drift", 0.25), ("-n", 70, "--confidence", 0.9, "--min-samples", 5)]
)
def test_the_command_of_a_report_makes_it_again(
    cli: Cli, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[object, ...]
) -> None:
    assert _evaluate(cli, folder, tmp_path / "one", *more) == 0, cli.err
    assert str(tmp_path / "one" / "report.html") in cli.out.splitlines()
    report = read_report(tmp_path / "one")
    command = eval_command(report)
    assert report.options is not None
    assert str(folder) not in (tmp_path / "one" / "report.html").read_text()
    monkeypatch.chdir(folder)
    assert cli(*shlex.split(command)[1:], "-o", tmp_path / "two") == 0, cli.err
    assert _without_times(read_report(tmp_path / "two")) == _without_times(report)


def test_the_page_from_what_eval_left(cli: Cli, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "e"
    assert _evaluate(cli, folder, out, "-n", 130, "--max-drift", 0.25) == 0, cli.err
    made = (out / "report.html").read_bytes()
    assert b"data:image/png;base64," in made
    assert b"No image changed at all." in made
    (out / "report.html").unlink()
    assert cli("report", out) == 0
    assert cli.out.strip() == str(out / "report.html")
    assert (out / "report.html").read_bytes() == made
    entry = read_report(out).models[0]
    for name, digest in ((entry.sidecar, entry.sidecar_sha256), (entry.grid, entry.grid_sha256)):
        assert file_digest(out / str(name)) == digest
    assert cli("report", out / "report.json", "-o", tmp_path / "other.html") == 0
    assert (tmp_path / "other.html").read_bytes() == made

    assert cli("gate", out, "--max-drift", 0.125, "--html", tmp_path / "gate.html") == 0
    assert "Tolerated: a drift of at most 0.125" in (tmp_path / "gate.html").read_text()
    assert cli("gate", out, "--baseline", out, "--max-drift", 0.1, "--html", tmp_path / "growth.html") == 0
    assert "over that of an earlier report" in (tmp_path / "growth.html").read_text()


def test_a_benchmark_on_the_page(cli: Cli, folder: Path, tmp_path: Path) -> None:
    assert _evaluate(cli, folder, tmp_path / "e", "-n", 60) == 0, cli.err
    digest = read_report(tmp_path / "e").models[0].digest
    once = Latency(median_ms=8.0, p90_ms=9.0, min_ms=7.0)
    measured = Measured(
        batch=4, per_image_ms=2.0, wall=once, cpu=once, speedup=None, wall_ms=(8.0,), cpu_ms=(8.0,)
    )
    entry = Entry(
        label="a", model="a", precision="fp32", weights="raw", digest=digest, runtime={"runtime": "torch"},
        source="a", size_bytes=1, memory=None, measured=(measured,),
    )  # fmt: skip
    result = BenchResult(
        machine=this_machine(), batches=(4,), threads=1, rounds=1, warmup=0, seed=0, entries=(entry,),
        left_out=(),
    )  # fmt: skip
    assert speeds_of(result) == [Speed(digest, "torch", True, {4: 2.0})]
    write_result(result, tmp_path / "bench")
    assert cli("report", tmp_path / "e", "--bench", tmp_path / "bench") == 0, cli.err
    assert "Benchmark, batch 4: ms an image" in (tmp_path / "e" / "report.html").read_text()


def test_bad_input_exits_2(cli: Cli, tmp_path: Path) -> None:
    assert cli("report") == 2
    assert cli("report", tmp_path / "nothing.json") == 2
    (tmp_path / "report.json").write_text("{}")
    assert cli("report", tmp_path) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
