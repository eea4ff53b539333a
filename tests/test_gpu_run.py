"""tools/gpu_run.sh, rehearsed on the CPU with a tiny network: results, skipping, limits, and the way back."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from flatq.checkpoint import load_checkpoint

pytestmark = pytest.mark.slow  # minutes: training, quantizing and sampling in processes of their own

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("smoke", "throughput", "sam", "adm", "adm-twice", "sample", "tests")


def gpu_run(folder: Path, *parts: str, **environment: str) -> subprocess.CompletedProcess[str]:
    known = {"GPU_FOLDER": str(folder), "PYTHON": sys.executable, "REHEARSAL": "1", "FLATQ_COMMIT": "abc"}
    known |= {"GPU_LIMIT_S": "900", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [str(ROOT / "tools" / "gpu_run.sh"), *parts],
        env=os.environ | known | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every part ran once; OUT was its `out`."""
    folder = tmp_path_factory.mktemp("gpu")
    done = gpu_run(folder, OUT=str(folder / "out"))
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture
def files() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_files", ROOT / "benchmarks" / "gpu_files.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def result(folder: Path, part: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "results" / f"{part}.json").read_text("utf-8"))
    assert content["commit"] == "abc"
    assert content["machine"]["versions"]["torch"]
    assert content["settings"]["training"]["seed"] == 0
    found: dict[str, Any] = content["result"]
    return found


def test_every_part_writes_its_result(rehearsed: Path) -> None:
    speed = result(rehearsed, "throughput")
    adm, sam = speed["training"]["adm-eager"], speed["training"]["sam-eager"]
    assert sam["gradients_per_step"] == 2 * adm["gradients_per_step"]
    flops = 2 * 3 * adm["forward_macs_per_image"] * adm["images_per_second"]
    assert adm["fraction_of_measured_peak"] == pytest.approx(flops / 1e12 / speed["bf16_matmul_tflops"])
    runs = {name: result(rehearsed, name) for name in ("sam", "adm", "adm-twice")}
    assert runs["adm"]["steps_done"] == runs["sam"]["steps_done"]
    assert runs["adm-twice"]["gradient_passes"] == runs["sam"]["gradient_passes"]
    assert runs["sam"]["gradient_passes"] == 2 * runs["adm"]["gradient_passes"]
    sampled = result(rehearsed, "sample")["runs"]
    assert sampled["float-fp32-torch"]["paired_rmse_to_float_fp32"] == 0
    assert sampled["w8a8-torch"]["paired_rmse_to_float_fp32"] > 0
    assert {name for name in sampled if name.endswith("onnxruntime-cpu")} == {
        "float-onnxruntime-cpu",
        "w8a8-onnxruntime-cpu",
    }
    assert result(rehearsed, "tests")["outcomes"]


def test_what_is_delivered_makes_checkpoints_again(
    rehearsed: Path, files: ModuleType, tmp_path: Path
) -> None:
    out = rehearsed / "out"
    delivered = {path.name for path in out.iterdir()}
    assert {"results.json", "samples.png"} <= delivered
    assert len(delivered) == files.MOST_FILES
    assert set(json.loads((out / "results.json").read_text("utf-8"))) == {*PARTS, "log"}
    files.join(sorted(out.glob("sam.*.safetensors")), tmp_path / "sam.pt")
    back, original = (load_checkpoint(p) for p in (tmp_path / "sam.pt", rehearsed / "results/sam/ckpt.pt"))
    assert set(back.weights) == {"raw", "ema"}
    for variant, weights in back.weights.items():
        for name, value in weights.items():
            assert value.equal(original.weights[variant][name].half().float())
    assert back.model == original.model


def test_weights_that_are_too_large_are_split_and_come_in_several_calls(
    rehearsed: Path, files: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "results"
    (results / "adm").mkdir(parents=True)
    for name in ("adm.json", "adm/ckpt.pt"):
        (results / name).write_bytes((rehearsed / "results" / name).read_bytes())
    monkeypatch.setattr(files, "FILE_BYTES", 120_000)
    monkeypatch.setattr(files, "MOST_FILES", 4)
    pieces: list[Path] = []
    for call in range(20):
        files.deliver(results, tmp_path / f"out{call}")
        found = sorted((tmp_path / f"out{call}").glob("*.safetensors"))
        assert all(piece.stat().st_size <= 120_000 for piece in found)
        if not found:
            break
        assert len(found) <= 2  # beside results.json, and room for samples.png
        pieces += found
    assert len(pieces) > 4
    with pytest.raises(SystemExit, match="pieces of"):
        files.join(pieces[1:], tmp_path / "adm.pt")
    files.join(pieces, tmp_path / "adm.pt")
    assert set(load_checkpoint(tmp_path / "adm.pt").weights) == {"raw", "ema"}


def test_a_part_with_a_result_is_skipped(rehearsed: Path) -> None:
    before = (rehearsed / "results" / "smoke.json").stat().st_mtime_ns
    again = gpu_run(rehearsed)
    assert again.returncode == 0
    assert again.stdout.splitlines() == [f"{part}: has a result, skipped" for part in PARTS]
    assert (rehearsed / "results" / "smoke.json").stat().st_mtime_ns == before


def test_a_part_that_runs_out_of_time_is_named_and_leaves_no_result(tmp_path: Path) -> None:
    late = gpu_run(tmp_path, "smoke", "sam", GPU_LIMIT_S="0.1")
    assert late.returncode == 1
    assert "smoke: FAILED, stopped after 0.1 s" in late.stdout
    assert "sam" not in late.stdout  # nothing runs where smoke fails
    assert not list((tmp_path / "results").glob("*.json"))


def test_an_unknown_part_is_bad_usage(tmp_path: Path) -> None:
    wrong = gpu_run(tmp_path, "smoek")
    assert wrong.returncode == 2
    assert "no part 'smoek'" in wrong.stderr
