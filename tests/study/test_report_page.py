"""The report of a study, from planted cells to verdicts, texts and the page."""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import Cli
from planted import STUDY, Planted, planted_cell, write_study

from flatq.study.report import write_report
from flatq.study.results import write_result
from flatq.study.run import cell_file
from flatq.study.summary import StudyReport

ADM = Planted(spread=0.05)
EARLY = replace(ADM, lpf=0.09)
WINS = Planted(fid=8.0, lpf=0.03, drifts={"naive8": 0.01, "naive4": 0.1}, spread=0.05)
LOSES = Planted(fid=14.0, lpf=0.2, drifts={"naive8": 0.9, "naive4": 6.0}, spread=0.05)
FILES = ("report.json", "report.md", "index.html")


def models(sam: Planted, adm: Planted = ADM) -> dict[str, Planted]:
    return {"adm": adm, "adm-early": EARLY, "sam": sam}


def report_of(folder: Path) -> tuple[list[str], list[str], StudyReport]:
    """Lines, cautions, and the report as read back."""
    cautions: list[str] = []
    lines = write_report(folder, cautions.append)
    return lines, cautions, StudyReport.model_validate_json((folder / "report.json").read_bytes())


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(monkeypatch, capsys, "study", "report")


@pytest.mark.parametrize(
    ("sam", "weak", "paper"),
    [(WINS, "confirmed", "confirmed"), (LOSES, "refuted", "refuted"), (ADM, "undecided", "refuted")],
    ids=["wins", "loses", "ties"],
)
def test_planted_effects_come_out_as_they_are(
    tmp_path: Path, cli: Cli, sam: Planted, weak: str, paper: str
) -> None:
    write_study(tmp_path, models(sam))
    assert cli(tmp_path) == 0
    assert f"C1a: weak form: {weak}; paper's form: {paper}" in cli.out
    assert f"C2-raw: weak form: {weak}" in cli.out
    assert "C6: weak form: no verdict: too few seeds" in cli.out
    assert f"The page: {tmp_path / 'index.html'}" in cli.out
    for name in ("report.md", "index.html"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert weak in text
        assert paper in text
        assert "no verdict: too few seeds" in text
    found = StudyReport.model_validate_json((tmp_path / "report.json").read_bytes()).findings
    assert found.claims[0].weak is not None
    assert found.claims[0].weak.verdict == weak


def test_the_page_is_whole_and_loads_nothing(tmp_path: Path) -> None:
    write_study(tmp_path, models(WINS))
    report_of(tmp_path)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert not re.search(r"url\((?!#)|@import|https?:(?!//www\.w3\.org)", page)
    assert set(re.findall(r'src="([^,]*)', page)) == {"data:image/png;base64"}
    assert "&lt;every number&gt;" in page
    headings = re.findall(r'<h2 id="(\w+)-head"', page)
    assert headings[0] == "verdicts"
    assert headings[-1] == "again"
    assert set(headings) >= {"controls", "questions", "paper", "noise", "distances", "exposure", "pictures"}
    assert "34.47" in page  # the paper's
    assert "git checkout " + "a" * 40 in page
    assert "All cells have the same CPU: a CPU, 2 cores." in page
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_controls_stand_beside_without_a_verdict(tmp_path: Path) -> None:
    write_study(tmp_path, models(WINS))
    *_, report = report_of(tmp_path)
    (control,) = report.findings.claims[0].beside
    assert control.name == "ADM stopped at SAM's loss"
    assert control.weak is not None
    claimed = report.findings.claims[0].weak
    assert claimed is not None
    # against 0.09 instead of 0.1
    assert control.weak.conditions[0].mean - claimed.conditions[0].mean == pytest.approx(0.105, abs=0.08)
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    controls = markdown.split("## Controls")[1].split("\n## ")[0]
    assert "adm-early in the place of adm" in controls
    assert "confirmed" not in controls


def test_an_absent_premise_stands_beside_the_verdict(tmp_path: Path) -> None:
    robust = replace(ADM, drifts={"naive8": 0.05, "naive4": 0.1})
    write_study(tmp_path, models(WINS, robust))
    lines, _, report = report_of(tmp_path)
    assert report.findings.claims[1].premise_absent
    assert "C2-raw: weak form: confirmed; premise absent" in lines
    assert "confirmed, premise absent" in (tmp_path / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("seeds", [1, 4])
def test_few_seeds_give_estimates_alone(tmp_path: Path, seeds: int) -> None:
    write_study(tmp_path, models(WINS), seeds=seeds)
    lines, _, report = report_of(tmp_path)
    assert all("confirmed" not in line and "refuted" not in line for line in lines)
    weak = report.findings.claims[0].weak
    assert weak is not None
    assert weak.conditions[0].mean < 0


def test_a_log_ratio_near_zero_becomes_differences_and_says_so(tmp_path: Path) -> None:
    noisy = replace(WINS, lpf=0.0005)
    write_study(tmp_path, models(noisy))
    *_, report = report_of(tmp_path)
    weak = report.findings.claims[0].weak
    assert weak is not None
    assert "differences over the mean" in weak.conditions[0].name
    assert weak.conditions[0].mean == pytest.approx((0.0005 - 0.1) / 0.1, abs=0.01)


def test_missing_cells_and_models_are_named(tmp_path: Path) -> None:
    study = write_study(tmp_path, {"adm": ADM, "sam": WINS})
    cell_file(tmp_path, study.cells("sam-5")[0]).unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lines, cautions, report = report_of(tmp_path)
    assert lines[0] == "11 of 12 cells"
    assert report.missing == ("sam-5",)
    assert "Missing: sam-5." in cautions[0]
    assert "adm-early of adm-0 (the held-out loss never fell to 0.1)" in cautions[-1]
    assert report.findings.claims[0].beside == ()
    assert "no cell has damage(adm, ema, naive8)" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_what_weakens_the_numbers_is_said(tmp_path: Path) -> None:
    study = write_study(tmp_path, models(replace(WINS, n_over_rank=6.0)))
    cell = study.cells("adm-0")[0]
    broken = planted_cell(cell, {"adm": replace(ADM, finite=False), "adm-early": EARLY})
    update: dict[str, Any] = {"commit": "b" * 40 + "+", "instructions": "avx2"}
    write_result(broken.model_copy(update=update), cell_file(tmp_path, cell))
    _, cautions, report = report_of(tmp_path)
    text = " ".join(cautions)
    assert "fewer than 10 samples per feature rank: sam-0 sam raw T = 20 onnxruntime (6.0)" in text
    assert "adm-0 adm raw T = 20 onnxruntime naive8" in text
    assert "not finite, which count as mid-grey" in text
    assert report.findings.claims[1].seeds[0] == (0, 1, 2, 3, 4, 5)
    origin = " ".join(report.origin)
    assert f"Cells differ in their commit. {'b' * 40}+: adm-0; {'a' * 40}: sam-0" in origin
    assert "avx2: adm-0" in origin
    assert "not committed" in origin


def _damaged(folder: Path) -> None:
    (folder / "cells" / "sam-0.json").write_text("{", encoding="utf-8")


def _of_another_seed(folder: Path) -> None:
    (folder / "cells" / "sam-0.json").write_bytes((folder / "cells" / "sam-1.json").read_bytes())


def _of_other_settings(folder: Path) -> None:
    path = folder / "study.toml"
    path.write_text(path.read_text(encoding="utf-8").replace("steps = 30", "steps = 31"), encoding="utf-8")


def _no_cell_of_the_study(folder: Path) -> None:
    (folder / "cells" / "sam-0.json").rename(folder / "cells" / "sam-00.json")


def _none(folder: Path) -> None:
    for path in (folder / "cells").iterdir():
        path.unlink()


def _no_study(folder: Path) -> None:
    (folder / "study.toml").unlink()


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (_damaged, "sam-0.json cannot be read"),
        (_of_another_seed, "sam-0.json is not the result of this cell"),
        (_of_other_settings, "adm-0.json is not the result of this cell"),
        (_no_cell_of_the_study, "sam-00.json is no cell of the study planted"),
        (_none, "holds no cell"),
        (_no_study, "study.toml cannot be read"),
    ],
)
def test_bad_cells_are_refused_and_nothing_is_overwritten(
    tmp_path: Path, cli: Cli, harm: Any, message: str
) -> None:
    write_study(tmp_path, models(WINS), seeds=2)
    for name in FILES:
        (tmp_path / name).write_text("before", encoding="utf-8")
    harm(tmp_path)
    assert cli(tmp_path) == 2
    assert message in cli.err
    assert {(tmp_path / name).read_text(encoding="utf-8") for name in FILES} == {"before"}


PILOT = """
name = "pilot"
title = "A pilot"
data = "digits:train"
heldout = "digits:heldout"
train = { steps = 30, heldout_every = 10 }
runs.adm = { seeds = [7, 8] }
runs.sam-1 = { seeds = [7, 8], train = { method = "sam", rho = 0.1 } }
runs.sam-2 = { seeds = [7, 8], train = { method = "sam", rho = 0.2 } }
quantizers = { w8 = { bits = 8 }, w8a8 = { bits = 8 }, w4 = { bits = 4 }, w4a4 = { bits = 4 } }
images = [{ models = ["adm"], weights = ["raw", "ema"], quantizers = ["w8", "w8a8", "w4", "w4a4"] }]
flatness = [{ models = ["adm", "sam-1", "sam-2"] }]
flatness_settings = { sigmas = [0.01] }
[pilot]
plain = "adm"
radii = { sam-1 = 0.1, sam-2 = 0.2 }
at_8 = ["w8", "w8a8"]
at_4 = ["w4", "w4a4"]
"""


@pytest.mark.parametrize(
    ("flat", "drifts", "chosen"),
    [
        ((0.06, 0.04), (0.2, 0.7, 2.5, 5.0), (0.1, "w8a8", "w4")),
        ((0.07, 0.04), (0.9, 2.0, 1.0, 2.1), (0.2, "w8", "w4a4")),
        ((0.08, 0.07), (0.0, 1.8, 0.5, 0.1), (0.2, "w8a8", "w4")),  # nothing suffices: largest, harshest
    ],
)
def test_a_pilot_chooses_by_its_rules(tmp_path: Path, flat: Any, drifts: Any, chosen: Any) -> None:
    adm = Planted(spread=0.0, drifts=dict(zip(("w8", "w8a8", "w4", "w4a4"), drifts, strict=True)))
    sam = [Planted(spread=0.0, lpf=lpf) for lpf in flat]
    study = write_study(tmp_path, {"adm": adm, "sam-1": sam[0], "sam-2": sam[1]}, text=PILOT)
    lines, _, report = report_of(tmp_path)
    found = report.findings.choices
    assert found is not None
    assert (found.rho, found.naive_at_8, found.naive_at_4) == chosen
    assert found.loss == pytest.approx(0.1)
    assert found.ratios == pytest.approx({"0.1": flat[0] / 0.1, "0.2": flat[1] / 0.1})
    assert found.drift_at_8 == pytest.approx(dict(zip(("w8", "w8a8"), drifts[:2], strict=True)))
    assert found.fid_ratio_at_4["w4"] == pytest.approx(1 + drifts[2])
    assert f"Naive quantizer at 8 bits: {chosen[1]}." in lines
    assert f"{chosen[1]} (chosen)" in (tmp_path / "report.md").read_text(encoding="utf-8")

    cell_file(tmp_path, study.cells("sam-2-8")[0]).unlink()
    *_, report = report_of(tmp_path)
    assert report.findings.choices is None
    assert "No choice yet" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_report_json_holds_only_json(tmp_path: Path) -> None:
    write_study(tmp_path, models(WINS), seeds=1, text=STUDY)
    report_of(tmp_path)

    def refuse(word: str) -> None:
        raise AssertionError(word)

    json.loads((tmp_path / "report.json").read_text(encoding="utf-8"), parse_constant=refuse)
