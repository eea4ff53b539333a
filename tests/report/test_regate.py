"""Deciding on stored reports: tolerances, confidence, and against an earlier report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Cli
from reports import REFERENCE, features, make_report

from flatq.assessment import GateSettings
from flatq.errors import DataError, UsageError
from flatq.evaluate.drift import beyond_relative_tolerance, fid_drift
from flatq.evaluate.gate import Tolerances
from flatq.evaluate.looks import Looks
from flatq.report.gating import judge_report, regate, with_confidence
from flatq.report.model import ExtractorEntry, ReferenceEntry, Report, read_report
from flatq.report.result import GateResult
from flatq.report.write import write_report


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(monkeypatch, capsys)


def test_a_relative_tolerance_from_the_sidecar(tmp_path: Path) -> None:
    report = make_report(tmp_path, {"w8": 0.01, "w4": 0.6})
    drift = report.models[1].drift
    assert drift is not None
    with np.load(tmp_path / "w4.npz") as kept:
        expected = beyond_relative_tolerance(drift, 0.2, kept["influence_float"], kept["influence_quantized"])
    w8, w4 = regate(report, Tolerances(None, 0.2), tmp_path)
    assert (w8.outcome, w4.outcome) == ("pass", "fail")
    assert f"[{expected.low:+.4g}, {expected.high:+.4g}]" in w4.reason
    with pytest.raises(DataError, match="influence values"):
        regate(report, Tolerances(None, 0.2))
    (tmp_path / "w4.npz").unlink()
    with pytest.raises(DataError, match="influence values"):
        regate(report, Tolerances(None, 0.2), tmp_path)
    assert len(regate(report, Tolerances(0.2), tmp_path)) == 2


def test_a_sidecar_of_other_samples_is_refused(tmp_path: Path) -> None:
    report = make_report(tmp_path / "a", {"w8": 0.1})
    make_report(tmp_path / "b", {"w8": 0.1}, seed=1)
    (tmp_path / "b" / "w8.npz").replace(tmp_path / "a" / "w8.npz")
    with pytest.raises(DataError, match="not of the report's samples"):
        regate(report, Tolerances(None, 0.2), tmp_path / "a")
    (tmp_path / "a" / "w8.npz").write_bytes(b"no npz")
    with pytest.raises(DataError, match="cannot be read"):
        regate(report, Tolerances(None, 0.2), tmp_path / "a")


def test_another_confidence_is_shared_by_the_looks(tmp_path: Path) -> None:
    report = make_report(tmp_path, {"w8": 0.1})
    drift = with_confidence(report, 0.8).models[0].drift
    again = fid_drift(*features(0.1, 400), REFERENCE, 0.8)
    assert drift is not None
    assert (drift.low, drift.high) == pytest.approx((again.low, again.high), rel=1e-12)
    looked = report.models[0].model_copy(update={"looks": Looks((100, 400), 0.95, 2)})
    found = with_confidence(report.model_copy(update={"models": [looked]}), 0.8).models[0]
    assert found.drift is not None
    assert found.drift.confidence == pytest.approx(0.9)
    assert found.looks == Looks((100, 400), 0.8, 2)


def _growth(tmp_path: Path, new: Report, max_drift: float = 0.2, folder: str = "new") -> GateResult:
    settings = GateSettings(max_drift, baseline=tmp_path / "old")
    return judge_report(new, tmp_path / folder, settings, lambda _: None)[1]


def _reason(result: GateResult) -> str:
    return result.models[0].verdict.reason


def test_growth_is_paired_by_index(tmp_path: Path) -> None:
    new, old = make_report(tmp_path / "new", {"w4": 0.31}), make_report(tmp_path / "old", {"w4": 0.3}, 300)
    found = _growth(tmp_path, new)
    difference = found.models[0].difference
    assert difference is not None
    assert (difference.paired, difference.shared, difference.n) == (True, 300, (300, 400))
    assert found.notes == ()
    assert found.outcome == "pass"
    assert _growth(tmp_path, old, 0.0, "old").outcome == "pass"  # the difference is exactly 0
    assert _growth(tmp_path, make_report(tmp_path / "new", {"w4": 0.8})).outcome == "fail"
    broken = make_report(tmp_path / "new", {"w4": float("nan")})
    assert _growth(tmp_path, broken).outcome == "fail"


def test_growth_that_does_not_pair_says_so(tmp_path: Path) -> None:
    make_report(tmp_path / "old", {"w4": 0.3})
    new = make_report(tmp_path / "new", {"w4": 0.31}, seed=1)
    assert "unpaired: the seeds of the noise differ, 0 and 1" in _reason(_growth(tmp_path, new))
    new = make_report(tmp_path / "new", {"w4": 0.31}, noise_version=2)
    assert "unpaired: the versions of the noise differ, 1 and 2" in _reason(_growth(tmp_path, new))
    new = make_report(tmp_path / "new", {"w4": 0.31}, plan={"steps": 50, "seed": 0})
    found = _growth(tmp_path, new)
    assert "the sampling plans differ" in found.notes[0]
    assert found.models[0].difference is not None
    assert found.models[0].difference.paired
    (tmp_path / "old" / "w4.npz").unlink()
    assert "unpaired: the influence values of the images were not kept" in _reason(_growth(tmp_path, new))


def test_growth_refuses(tmp_path: Path) -> None:
    make_report(tmp_path / "old", {"w4": 0.3, "w8": 0.1})
    new = make_report(tmp_path / "new", {"other": 0.3})
    with pytest.raises(UsageError, match="which model"):
        _growth(tmp_path, new)
    make_report(tmp_path / "old", {"w4": float("nan")})
    with pytest.raises(UsageError, match="400 of 400 images were not finite"):
        _growth(tmp_path, make_report(tmp_path / "new", {"w4": 0.3}))


@pytest.mark.parametrize(
    ("changed", "differing"),
    [
        ({"reference": ReferenceEntry(name="others", digest="12" * 32, n=9)}, "different reference\n"),
        ({"extractor": ExtractorEntry(name="digits48", digest="99" * 32, dim=6)}, "different extractor\n"),
        ({"rounding": "truncate"}, "different rounding\n"),
        (
            {"reference": ReferenceEntry(name="others", digest="12" * 32, n=9), "rounding": "truncate"},
            "different reference and rounding\n",
        ),
    ],
)
def test_a_baseline_whose_fids_do_not_compare_is_refused(
    cli: Cli, tmp_path: Path, changed: dict[str, Any], differing: str
) -> None:
    make_report(tmp_path / "old", {"w4": 0.3})
    make_report(tmp_path / "new", {"w4": 0.3}, **changed)
    assert cli("gate", tmp_path / "new", "--baseline", tmp_path / "old", "--max-drift", 2) == 2
    assert differing in cli.err
    renamed = ReferenceEntry(name="another name of the same images", digest="ef" * 32, n=2000)
    make_report(tmp_path / "new", {"w4": 0.3}, reference=renamed)
    assert cli("gate", tmp_path / "new", "--baseline", tmp_path / "old", "--max-drift", 2) == 0


def test_the_command(cli: Cli, tmp_path: Path) -> None:
    make_report(tmp_path / "old", {"w4": 0.3})
    make_report(tmp_path / "new", {"w4": 0.31})
    new = tmp_path / "new" / "report.json"
    assert cli("gate", new) == 2  # no tolerance anywhere
    assert "--max-drift" in cli.err
    assert cli("gate", new, "--max-drift", 2) == 0
    assert cli("gate", tmp_path / "new", "--max-drift", 0.01) == 1
    assert cli("gate", new, "--max-drift", 2, "--max-drift-rel", 0.001) == 1
    assert cli("gate", new, "--max-drift", 2, "--min-samples", 500) == 4
    for choice, code in (("pass", 0), ("fail", 1), ("error", 4)):
        many = ("--min-samples", 500, "--on-inconclusive", choice)
        assert cli("gate", new, "--max-drift", 2, *many) == code
    assert cli("gate", new, "--max-drift", 2, "--confidence", 0.5) == 0
    assert "50 % in" in cli.out
    assert cli("gate", new, "--max-drift", 2, "--confidence", 1.5) == 2
    baseline = ("--baseline", tmp_path / "old" / "report.json")
    assert cli("gate", new, *baseline, "--max-drift", 0.2) == 0
    assert "paired on 400 images" in cli.out
    assert cli("gate", new, *baseline) == 2
    assert cli("gate", new, *baseline, "--max-drift-rel", 0.2) == 2


def test_the_tolerances_of_the_report_are_the_default(cli: Cli, tmp_path: Path) -> None:
    make_report(tmp_path, {"w4": 0.3}, gate=Tolerances(0.001))
    assert cli("gate", tmp_path) == 1
    assert "those of the report" in cli.err
    assert cli("gate", tmp_path, "--max-drift", 2) == 0


def test_a_report_with_looks_survives(tmp_path: Path) -> None:
    report = make_report(tmp_path, {"w4": 0.3}, gate=Tolerances(0.5, 0.1, 9))
    entry = report.models[0].model_copy(update={"looks": Looks((100, 400), 0.95, 2)})
    report = report.model_copy(update={"models": [entry]})
    write_report(report, tmp_path)
    assert read_report(tmp_path) == report
