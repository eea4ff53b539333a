"""`flatq study run` from end to end on a tiny network: killed on the way, gone on with, run again by hand."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from flatq.__main__ import main
from flatq.errors import FlatqError
from flatq.study.config import read_config
from flatq.study.estimate import cell_cost
from flatq.study.measure import Subject
from flatq.study.results import CellResult, read_result
from flatq.study.run import run_cell

STUDY = """
name = "tiny"
title = "A study for tests"
data = "digits:train"
heldout = "digits:heldout"
n = 128
steps = 2
pictures = 4

[train]
patch_size = 4
channels = [8]
steps = 6
batch_size = 8
heldout_every = 2

[flatness_settings]
images = 8
sigmas = [0.01]
relative_sigmas = []
pairs = 2
rhos = []
adaptive_rhos = []
eigenvalue_images = 8
probes = 2
random_draws = 2

[runs.adm]
seeds = [3, 7]
train = { snapshot_loss = 0.001 }
models = { adm = "step 4", adm-loss = "loss", adm-end = "end" }

[quantizers.naive8]
bits = 8
granularity = "per_tensor"
edges = "same"
activation_range = "minmax"
method = "rtn"

[[images]]
models = ["adm", "adm-loss"]
quantizers = ["naive8"]
steps = 2

[[images]]
models = ["adm-end"]
quantizers = ["naive8"]
steps = 2
runtime = "torch"
seeds = 1

[[flatness]]
models = ["adm"]
damage = ["naive8"]

[[exposure]]
models = ["adm"]
quantizers = ["float", "naive8"]
steps = 2
n = 8
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("study") / "study.toml"
    path.write_text(STUDY)
    return path


@pytest.fixture(scope="module")
def result(study: Path) -> CellResult:
    """Of the first cell, which was killed before its last step."""

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Subject, "exposure", killed)
        with pytest.raises(KeyboardInterrupt):
            _run_first(study, study.parent)
    work = study.parent / "work" / "adm-3"
    finished = {path.name: path.read_bytes() for path in (work / "results").iterdir()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flatq.train.loop.train", killed)
        patch.setattr(Subject, "images", killed)
        found = _run_first(study, study.parent, keep=True)
    assert len(finished) == 6
    assert finished.items() <= {p.name: p.read_bytes() for p in (work / "results").iterdir()}.items()
    return found


def _run_first(study: Path, folder: Path, keep: bool = False) -> CellResult:
    cell = read_config(study).cells("adm-3")[0]
    found = run_cell(cell, folder, keep=keep, progress=lambda *_: None, note=lambda _: None)
    assert found is not None
    return found


def _flatq(patch: pytest.MonkeyPatch, *arguments: object) -> object:
    patch.setattr(sys, "argv", ["flatq", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code


def test_a_cell_holds_all_that_was_measured(result: CellResult, study: Path) -> None:
    assert read_result(study.parent / "cells" / "adm-3.json", CellResult) == result
    assert (result.models["adm"].steps, result.models["adm-end"].steps) == (4, 6)
    assert "0.001" in result.missing["adm-loss"]
    assert [(r.model, r.runtime, r.n) for r in result.images] == [
        ("adm", "onnxruntime", 128),
        ("adm-end", "torch", 128),
    ]
    for images in result.images:
        assert images.picture is not None
        assert images.quantized["naive8"].picture is not None
        drift = images.quantized["naive8"].drift
        assert drift is not None
        assert drift.bias_float is not None
        assert images.fid == pytest.approx(drift.fid_float - drift.bias_float)
    parity = result.images[0].quantized["naive8"].parity
    assert parity is not None
    assert parity.problem is None
    assert parity.least_equal > 0.999
    assert result.images[1].quantized["naive8"].parity is None
    (flat,) = result.flatness
    assert flat.flatness.damage[0].precision == "w8a8-tensor-same-minmax"
    (exposed,) = result.exposure
    assert set(exposed.quantizers) == {"float", "naive8"}
    assert exposed.quantizers["float"].digest == result.models["adm"].digest
    assert {"train", "flatness-adm-raw"} <= set(result.seconds)
    assert result.settings["quantizers"]["naive8"]["recipe"]["edges"] == "same"


@pytest.mark.slow
def test_a_cell_run_again_gives_the_same_numbers(result: CellResult, study: Path, tmp_path: Path) -> None:
    again = _run_first(study, tmp_path)
    assert not (tmp_path / "work" / "adm-3").exists()
    plain, repeated = (_numbers(r.model_dump(mode="json")) for r in (result, again))
    assert plain == repeated


def _numbers(dumped: dict[str, Any]) -> dict[str, Any]:
    """Without times and what holds them."""
    for images in dumped["images"]:
        for model in images["quantized"].values():
            model.pop("digest")  # its manifest names the folder of the checkpoint
    return {k: dumped[k] for k in ("digest", "models", "images", "flatness", "exposure", "settings")}


def test_what_is_done_is_not_done_again(
    result: CellResult, study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (study.parent / "cells" / "adm-3.json").stat().st_mtime_ns
    assert _flatq(monkeypatch, "study", "run", study, "--cells", "adm-3") == 0
    assert "1 of 1 cells are done" in capsys.readouterr().err
    assert (study.parent / "cells" / "adm-3.json").stat().st_mtime_ns == before
    assert _flatq(monkeypatch, "study", "run", study, "--dry-run") == 0
    printed = capsys.readouterr().out
    assert "adm-3" in printed
    assert "adm-7" in printed
    hours = sum(result.seconds.values()) / 3600  # of the cell that is done
    assert f"Time left: {hours:.1f} hours" in printed


def test_the_cost_is_counted_from_the_settings(study: Path) -> None:
    first, second = read_config(study).cells()
    assert cell_cost(second).passes == 6 * 8
    images, flat, exposed = 3 * 128 * 2, 8 * (2 * 2 + 2 + 2), 2 * 8 * 2 * 2
    assert cell_cost(second).evaluations == images + 128 * 2 + flat + exposed
    assert cell_cost(first).evaluations == cell_cost(second).evaluations + 2 * 128 * 2
    assert (cell_cost(first).artifacts, cell_cost(second).artifacts) == (3, 2)


def test_bad_cells_and_folders_are_named_and_nothing_is_overwritten(
    result: CellResult,
    study: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cell = tmp_path / "cells" / "adm-3.json"
    cell.parent.mkdir()
    (tmp_path / "study.toml").write_text(STUDY)
    dumped = result.model_dump(mode="json")
    for content, words in (
        (json.dumps(dumped | {"digest": "0" * 64}), "not the result of this cell"),
        (json.dumps(dumped | {"seed": 4}), "not the result of this cell"),
        (json.dumps(dumped)[:-20], "cannot be read"),
        (json.dumps(dumped | {"format": "other"}), "cannot be read"),
    ):
        cell.write_text(content)
        assert _flatq(monkeypatch, "study", "run", tmp_path / "study.toml") == 2
        said = capsys.readouterr().err
        assert words in said
        assert "adm-3.json" in said
        assert cell.read_text() == content
    cell.unlink()
    assert _flatq(monkeypatch, "study", "run", study, "--cells", "sam-*", "-o", tmp_path) == 2
    assert "no cell matches" in capsys.readouterr().err
    (tmp_path / "study.toml").write_text(STUDY + "# changed\n")
    assert _flatq(monkeypatch, "study", "run", study, "-o", tmp_path) == 2
    assert "holds another study" in capsys.readouterr().err


def test_a_cell_is_gone_on_with_by_the_same_code_and_settings_alone(
    result: CellResult, study: Path, tmp_path: Path
) -> None:
    begun = tmp_path / "work" / "adm-3" / "begun"
    begun.parent.mkdir(parents=True)
    begun.write_text("other settings")
    with pytest.raises(FlatqError, match="begun with other settings"):
        _run_first(study, tmp_path)
    assert begun.read_text() == "other settings"
