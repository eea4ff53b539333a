"""`flatq bench` from end to end on the digits network, a few rounds. No test looks at a time."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from command_line import Cli
from networks import checkpoint

from flatq.bench import models_on_runtimes, read_result
from flatq.bench.models_on_runtimes import BenchTask, missing_runtime
from flatq.calib.inputs import CalibrationPlan
from flatq.checkpoint import load_checkpoint
from flatq.export.deploy import export_artifact, export_checkpoint
from flatq.quantize.artifact import write_artifact
from flatq.quantize.rounding import quantize_checkpoint
from flatq.recipe import PRESETS

FEW = ("--threads", 1, "--rounds", 2, "--warmup", 1)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits, w8a8, exported for ONNX Runtime; the checkpoint beside it."""
    folder = tmp_path_factory.mktemp("bench")
    parent = checkpoint("digits", folder)
    quantized = quantize_checkpoint(
        parent, PRESETS["w8a8"], calibration=CalibrationPlan(images=2, steps=2), threads=1
    )
    write_artifact(quantized, folder / "digits.w8a8")
    export_artifact(folder / "digits.w8a8", "onnxruntime", folder / "digits.w8a8" / "onnxruntime")
    return folder / "digits.w8a8"


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(monkeypatch, capsys, "bench")


@pytest.mark.slow
def test_float_and_quantized_on_every_runtime(artifact: Path, cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert cli(artifact, *FEW, "--batch", "1,3", "-o", out) == 0, cli.err
    result = read_result(out)
    able = [r for r in ("torch", "onnxruntime", "openvino", "tensorrt") if missing_runtime(r) is None]
    assert sorted(p.name for p in out.iterdir()) == ["bench.json", "bench.png"]
    assert [e.label for e in result.entries] == [
        f"{model} on {runtime}" for model in ("digits.pt (raw)", "digits.w8a8") for runtime in able
    ]
    assert result.batches == (1, 3)
    for entry in result.entries:
        assert [m.batch for m in entry.measured] == [1, 3]
        assert all(len(m.wall_ms) == len(m.cpu_ms) == 2 for m in entry.measured)
        assert entry.runtime["threads"] == 1
        assert entry.size_bytes > 0
        assert all((m.speedup is None) == (entry.precision == "fp32") for m in entry.measured)
        for measured in entry.measured:
            if measured.speedup is not None:
                assert measured.speedup.against == entry.label.replace("digits.w8a8", "digits.pt (raw)")
    sources = {e.label: e.source for e in result.entries}
    assert sources["digits.w8a8 on onnxruntime"] == str(artifact / "onnxruntime")
    assert sources["digits.pt (raw) on onnxruntime"] == "exported for this run"
    assert sources["digits.w8a8 on torch"] == str(artifact)
    # Nothing is left where the models stand, and what was not measured is said.
    assert sorted(p.name for p in artifact.parent.iterdir()) == ["digits.pt", "digits.w8a8"]
    for runtime in {"torch", "onnxruntime", "openvino", "tensorrt"} - set(able):
        assert f"left out: {runtime}: " in cli.out
    for words in ("digits.pt (raw)", "digits.w8a8", "x float", "memory", "integers simulated"):
        assert words in cli.out


@pytest.mark.slow
def test_deployment_folders_and_an_artifact_without_its_checkpoint(
    artifact: Path, cli: Cli, tmp_path: Path
) -> None:
    parent = load_checkpoint(artifact.with_name("digits.pt"))
    export_checkpoint(parent, "onnxruntime", tmp_path / "float" / "onnxruntime")
    quick = (*FEW, "--batch", 2, "--json", "--runtime", "onnxruntime")
    assert cli(tmp_path / "float" / "onnxruntime", artifact / "onnxruntime", *quick) == 0, cli.err
    entries = json.loads(cli.out)["entries"]
    assert [e["label"] for e in entries] == [
        "float/onnxruntime on onnxruntime",
        "digits.w8a8/onnxruntime on onnxruntime",
    ]
    assert entries[1]["measured"][0]["speedup"]["against"] == entries[0]["label"]

    moved = tmp_path / "alone" / "copy"
    shutil.copytree(artifact, moved)
    assert cli(moved, *quick) == 0, cli.err
    content = json.loads(cli.out)
    assert [e["measured"][0]["speedup"] for e in content["entries"]] == [None]
    assert content["left_out"] == [
        {
            "label": "the float model of copy",
            "reason": "digits.pt, which was quantized, is not beside it: name it with --baseline",
        }
    ]
    # A deployment that is of another artifact than its folder's is not taken.
    manifest = moved / "flatq.json"
    manifest.write_text(manifest.read_text().replace("{\n", "{\n\n", 1))
    assert cli(moved, *quick, "--baseline", artifact.with_name("digits.pt")) == 0, cli.err
    content = json.loads(cli.out)
    assert [e["source"] for e in content["entries"]] == ["exported for this run"] * 2
    assert "not taken" in cli.err
    assert content["entries"][1]["measured"][0]["speedup"] is not None


def test_engines_are_built_for_the_batch_sizes_of_the_run(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Over an exporter and a builder that only take notes: the real ones need a GPU."""
    from flatq.export import deploy, engine

    made: list[tuple[str, object]] = []
    for name in ("export_artifact", "export_checkpoint"):
        monkeypatch.setattr(deploy, name, lambda _, target, out, **__: made.append((target, out)))
    monkeypatch.setattr(engine, "build_engine", lambda folder, batches: made.append((folder.name, batches)))
    monkeypatch.setattr(models_on_runtimes, "missing_runtime", lambda _: None)
    task = BenchTask((artifact,), ("tensorrt",), batches=(8, 1, 4))
    found, left_out = models_on_runtimes.models_on_runtimes(task, tmp_path, print)
    assert [(model.label, model.source) for model in found] == [
        ("digits.pt (raw) on tensorrt", "exported for this run"),
        ("digits.w8a8 on tensorrt", "exported for this run"),
    ]
    assert left_out == []
    assert made == [
        ("tensorrt", tmp_path / "1"),
        ("1", (1, 8, 8)),
        ("tensorrt", tmp_path / "2"),
        ("2", (1, 8, 8)),
    ]


def test_bad_input(artifact: Path, cli: Cli, tmp_path: Path) -> None:
    assert cli(artifact, "--batch", "0") == 2
    assert "--batch is not valid" in cli.err
    assert cli(artifact, "--batch", "one") == 2
    assert cli(artifact, "--rounds", 0) == 2
    assert cli(tmp_path / "none") == 2
    assert "there is nothing at" in cli.err
    assert cli(tmp_path) == 2
    assert cli(artifact, "--runtime", "tflite") == 2
    assert "--runtime tflite is not offered" in cli.err
    assert cli(artifact.with_name("digits.pt"), "--weights", "ema") == 2
    (tmp_path / "other").mkdir()
    other = checkpoint("rgb32", tmp_path / "other").source
    assert cli(artifact, "--baseline", other) == 2
    assert "is not the checkpoint that" in cli.err
    if missing_runtime("tensorrt") is not None:
        assert cli(artifact, "--runtime", "tensorrt") == 3
        assert "pip install" in cli.err
