"""A benchmark without its processes: what is compared with what, what is refused, what is kept."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from networks import checkpoint
from PIL import Image

from flatq.backends import RuntimeSettings
from flatq.bench import models_on_runtimes as module
from flatq.bench import read_result, write_result
from flatq.bench.models_on_runtimes import BenchTask, ModelOnRuntime, models_on_runtimes
from flatq.bench.result import BENCH_FILE, BenchResult, LeftOut, save_plot
from flatq.bench.run import bench, sum_up, this_machine
from flatq.bench.timing import Timing
from flatq.bench.worker import Watermark, Worker
from flatq.errors import CheckpointError, DataError, MissingRuntimeError, ModelError, UsageError


def _model(name: str, precision: str, runtime: str, family: str = "f") -> ModelOnRuntime:
    return ModelOnRuntime(name, precision, runtime, Path(name), (family, "raw"), "somewhere")


def _opened(model: ModelOnRuntime) -> dict[str, Any]:
    return {
        "identity": {"runtime": model.runtime, "version": "1"},
        "precision": model.precision,
        "weights": "raw",
        "digest": "d",
        "size_bytes": 1000,
    }


def _result() -> BenchResult:
    base = _model("net.pt", "fp32", "onnxruntime")
    other = _model("net.pt", "fp32", "openvino")
    eight = _model("net.w8a8", "w8a8", "onnxruntime")
    alone = _model("else.w8a8", "w8a8", "onnxruntime", family="g")
    walls = {base: (4.0, 8.0, 12.0), other: (1.0, 1.0, 1.0), eight: (2.0, 2.0, 2.0), alone: (3.0, 3.0, 3.0)}
    timings = {s: {8: [Timing(ms, ms / 2) for ms in times]} for s, times in walls.items()}
    timings[eight][8][0] = Timing(2.0, 0.0)  # a CPU clock with coarse ticks
    entries = sum_up(
        {s: _opened(s) for s in walls}, timings, {base: (100, 350), other: (0, 0), eight: None, alone: (5, 4)}
    )
    return BenchResult(
        machine=this_machine(),
        batches=(8,),
        threads=1,
        rounds=3,
        warmup=0,
        seed=0,
        entries=entries,
        left_out=(LeftOut(label="tensorrt", reason="not here"),),
    )


def test_a_quantized_model_is_compared_with_its_own_float_model_on_its_runtime() -> None:
    base, other, eight, alone = _result().entries
    assert [e.measured[0].speedup for e in (base, other, alone)] == [None] * 3
    measured = eight.measured[0]
    assert measured.speedup is not None
    assert measured.speedup.against == "net.pt on onnxruntime"
    assert measured.speedup.wall is not None
    # Rounds: 4/2, 8/2, 12/2.
    assert measured.speedup.wall.median == 4.0
    assert measured.speedup.cpu is None
    assert measured.per_image_ms == 2.0 / 8
    assert base.measured[0].wall.p90_ms == pytest.approx(8 + 0.8 * 4, rel=1e-12)
    assert base.measured[0].cpu.median_ms == 4.0
    assert base.memory is not None
    assert base.memory.model_bytes == 250
    assert eight.memory is None


def test_the_result_comes_back_from_its_file_and_is_drawn(tmp_path: Path) -> None:
    result = _result()
    path = write_result(result, tmp_path / "new")
    assert [p.name for p in path.parent.iterdir()] == [BENCH_FILE]
    assert read_result(tmp_path / "new") == result
    path.write_text(path.read_text().replace('"version": 1', '"version": 2', 1))
    with pytest.raises(DataError, match="not the result"):
        read_result(path)
    save_plot(result, tmp_path / "bench.png")
    with Image.open(tmp_path / "bench.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    # The bars' lengths are to each other as the medians: 8, 1, 2 and 3 ms.
    grey, blue = (pixels == (0x8A, 0x8F, 0x98)).all(2), (pixels == (0x25, 0x63, 0xA8)).all(2)
    lengths = [int(row.sum()) for mask in (grey, blue) for row in mask if row.any()]
    assert len(set(lengths)) == 4
    longest, *_ = sorted(set(lengths), reverse=True)
    assert np.allclose(np.array(sorted(set(lengths))) / longest, np.array([1, 2, 3, 8]) / 8, atol=0.01)


def test_the_memory_is_what_came_after_the_mark() -> None:
    mark = Watermark()
    first = mark.read()
    if first is None:
        pytest.skip("this system does not tell")
    held = np.ones(2**23)  # 64 MiB, written
    after = mark.read()
    assert after is not None
    assert after[0] == first[0]
    assert after[1] - first[1] > 0.9 * held.nbytes
    del held


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"runtime": RuntimeSettings(threads=0)}, "no threads"),
        ({"runtimes": ("onnxruntime", "tflite")}, "--runtime tflite"),
        ({"runtime": RuntimeSettings(precision="fp8")}, "--precision fp8"),
        ({"runtime": RuntimeSettings(hint="latency"), "runtimes": ("torch",)}, "--hint latency"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_opened(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        bench(BenchTask(paths=(Path("nowhere"),), **fields))


def test_a_runtime_that_is_not_there_is_said_or_an_error_if_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = MissingRuntimeError("it is not installed", got="nothing")
    monkeypatch.setattr(module, "missing_runtime", lambda _: missing)
    with pytest.raises(MissingRuntimeError):
        models_on_runtimes(BenchTask((), ("openvino",)), tmp_path, print)
    found, left_out = models_on_runtimes(BenchTask(()), tmp_path, print)
    assert found == []
    assert [each.label for each in left_out] == ["torch", "onnxruntime", "openvino", "tensorrt"]
    assert all("it is not installed" in each.reason for each in left_out)
    with pytest.raises(UsageError, match="nothing to measure"):
        bench(BenchTask(paths=()))


def test_an_error_in_the_process_is_raised_here_as_what_it_was(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is nothing at"):
        Worker("none", tmp_path / "none", RuntimeSettings("onnxruntime"))


def test_a_process_that_dies(tmp_path: Path) -> None:
    path = checkpoint("digits", tmp_path).source
    assert path is not None
    worker = Worker("digits", path, RuntimeSettings("torch", threads=1))
    assert worker.call(1).wall_ms > 0
    for process in multiprocessing.active_children():
        process.kill()
    with pytest.raises(ModelError, match="the process that ran digits exited"):
        worker.call(1)
    worker.close()
