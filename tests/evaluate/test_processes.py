"""Sampling in several processes: threads in one process here, whole evaluations in real ones below."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from launching import launch
from networks import checkpoint
from numpy.typing import NDArray
from toy_runtime import Toy

from flatq import launch as processes_module
from flatq.errors import DataError, FlatqError, ModelError
from flatq.evaluate.cache import Cache
from flatq.evaluate.features import open_features
from flatq.evaluate.samples import SampleSet, Sampling
from flatq.launch import Processes, evaluating_together
from flatq.models import Model, Opening
from flatq.process import ProcessConfig
from flatq.runtime.base import UNCONDITIONED, Condition
from flatq.sampling_settings import SamplingSettings


class Place(Processes):
    """One of several processes that are threads: what they tell each other goes by a shared list."""

    def __init__(self, rank: int, told: list[Any], barrier: threading.Barrier) -> None:
        super().__init__(accelerator=Standing(rank, len(told)))
        self._told, self._barrier = told, barrier

    def gather_objects(self, value: Any) -> list[Any]:
        self._told[self.rank] = value
        self._barrier.wait(30)
        found = list(self._told)
        self._barrier.wait(30)
        return found

    def agree(self, value: Any) -> Any:
        return self.gather_objects(value)[0]


@dataclass
class Standing:
    """As much of accelerate's object as tells one process from another."""

    process_index: int
    num_processes: int


class Watched(Toy):
    """Notes the noise of the images that it samples, and may fail."""

    def __init__(self, error: Exception | None = None, version: str = "1") -> None:
        super().__init__()
        self.error, self.version, self.drawn = error, version, 0

    @property
    def identity(self) -> dict[str, Any]:
        return {"runtime": "toy", "version": self.version}

    def __call__(
        self, x: NDArray[np.float32], t: NDArray[np.int64], cond: Condition = UNCONDITIONED
    ) -> NDArray[np.float32]:
        if self.error is not None:
            raise self.error
        self.drawn += len(x) if t[0] == 0 else 0
        return super().__call__(x, t, cond)


def toy_model(runtime: Watched) -> Model:
    process, opening = ProcessConfig(schedule="cosine"), Opening(Path("toy.pt"))
    return Model(runtime, process, (3, 16, 16), None, "toy", "fp32", "raw", "digest", 1, None, opening)


class Crew:
    """Three processes that share one model's samples; `errors` holds what each has raised."""

    def __init__(self, feature_net: Path, cache: Cache) -> None:
        self.runtimes = [Watched() for _ in range(3)]
        self.errors: list[Exception | None] = [None] * 3
        self.cache = cache
        self._net = open_features(feature_net, image_shape=(3, 16, 16))

    def grown(self, n: int) -> SampleSet:
        """The first process's samples."""
        told: list[Any] = [None] * 3
        barrier, sets = threading.Barrier(3), {}

        def run(rank: int) -> None:
            try:
                sets[rank] = self.samples(self.runtimes[rank], Place(rank, told, barrier))
                sets[rank].grow(n)
            except Exception as error:
                self.errors[rank] = error

        threads = [threading.Thread(target=run, args=(rank,)) for rank in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        if self.errors[0] is not None:
            raise self.errors[0]
        return sets[0]

    def samples(self, runtime: Watched, processes: Processes) -> SampleSet:
        sampling = Sampling(SamplingSettings(steps=3), 7, 4, "round", self._net, self.cache, processes)
        return SampleSet(toy_model(runtime), sampling)

    @property
    def drawn(self) -> list[int]:
        found = [runtime.drawn for runtime in self.runtimes]
        for runtime in self.runtimes:
            runtime.drawn = 0
        return found


@pytest.fixture
def crew(feature_net: Path, tmp_path: Path) -> Crew:
    return Crew(feature_net, Cache(tmp_path / "cache", pytest.fail))


def test_shares_make_one_sample(crew: Crew, tmp_path: Path) -> None:
    shared = crew.grown(26)
    assert crew.drawn == [10, 8, 8]  # batches 0, 3 and the 2 images of 6; the others
    own = crew.cache
    crew.cache = Cache(tmp_path / "other", pytest.fail)
    alone = crew.samples(Watched(), Processes())
    alone.grow(26)
    crew.cache = own
    rows = np.arange(26)
    assert np.array_equal(shared.images(rows)[0], alone.images(rows)[0])
    assert np.array_equal(shared._features, alone._features)
    crew.grown(26)
    assert crew.drawn == [0, 0, 0]
    crew.grown(36)  # the batch that was not full is drawn again
    assert sum(crew.drawn) == 12


@pytest.mark.parametrize("rank", [0, 1])
def test_the_error_of_one_process_is_raised_in_all(crew: Crew, rank: int) -> None:
    crew.runtimes[rank].error = ModelError("it broke", expected="a", got="b", next_step="c")
    with pytest.raises(ModelError, match="it broke") as caught:
        crew.grown(400)
    assert caught.value.next_step == "c"
    assert all(isinstance(error, ModelError) for error in crew.errors)
    assert sum(crew.drawn) <= 8  # no process goes on with its own batches


def test_a_bug_of_a_process_is_a_bug(crew: Crew) -> None:
    crew.runtimes[1].error = ZeroDivisionError("oh")
    with pytest.raises(RuntimeError, match=r"process 1 failed(.|\n)*ZeroDivisionError: oh"):
        crew.grown(8)


def test_a_process_that_would_draw_other_samples_is_refused(crew: Crew) -> None:
    crew.runtimes[1].version = "2"
    with pytest.raises(DataError, match="would draw other samples") as caught:
        crew.grown(8)
    assert "runtime" in str(caught.value.got)
    assert sum(crew.drawn) == 0


def test_one_process_is_a_launch_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    with evaluating_together() as processes:
        assert (processes.main, processes.count) == (True, 1)


@pytest.mark.parametrize(
    ("seen", "local", "taken"), [(None, "1", "1"), ("4,6", "1", "6"), ("4,6", "2", "4"), ("", "1", "")]
)
def test_each_process_takes_a_gpu(
    monkeypatch: pytest.MonkeyPatch, seen: str | None, local: str, taken: str
) -> None:
    monkeypatch.setenv("LOCAL_RANK", local)
    if seen is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # so that it is put back
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    processes_module._take_a_gpu()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == taken


# Real processes, over gloo.


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A checkpoint for digits and an artifact of it, exported."""
    from flatq.calib.inputs import CalibrationPlan
    from flatq.export.deploy import export_artifact
    from flatq.models import deployment_folder
    from flatq.quantize.artifact import write_artifact
    from flatq.quantize.rounding import quantize_checkpoint
    from flatq.recipe import PRESETS

    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("artifacts")
    parent = checkpoint("digits", folder)
    assert parent.source is not None
    plan = CalibrationPlan(images=2, steps=2)
    artifact = quantize_checkpoint(parent, PRESETS["w4a8"], calibration=plan, threads=1)
    write_artifact(artifact, folder / "w4a8")
    export_artifact(folder / "w4a8", "onnxruntime", deployment_folder(folder / "w4a8"))
    return [parent.source, folder / "w4a8"]


def _arguments(artifacts: list[Path], out: Path, *more: str) -> list[str]:
    ckpt, *models = map(str, artifacts)
    common = ["--fid", "--baseline", ckpt, "--steps", "2", "-n", "130", "--batch-size", "32"]
    return ["eval", *models, *common, "--threads", "1", "--no-cache", "-o", str(out), *more]


def _but_for_times(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "report.json").read_text())
    for part in (content["baseline"], *content["models"]):
        assert part.pop("seconds_per_image") > 0
        assert part.pop("latency_ms") > 0
    return content


@pytest.mark.slow
def test_two_processes_report_what_one_does(artifacts: list[Path], tmp_path: Path) -> None:
    gate = ["--max-drift", "1000", "--until-decided", "--max-samples", "260", "--looks", "2", "--ladder"]
    flatq = [sys.executable, "-m", "flatq"]
    ((one, out, err),) = launch(flatq + _arguments(artifacts, tmp_path / "one", *gate), count=1)
    assert one in (0, 4), err
    environment = {"TMPDIR": str(tmp_path)}
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    done = subprocess.run(
        [*accelerate, "-m", "flatq", *_arguments(artifacts, tmp_path / "two", *gate)],
        env=os.environ | environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert (done.returncode == 0) == (one == 0), done.stderr
    assert done.stdout == out.replace(str(tmp_path / "one"), str(tmp_path / "two"))  # by one process alone
    assert _but_for_times(tmp_path / "two") == _but_for_times(tmp_path / "one")
    for file in (tmp_path / "one").glob("*.npz"):
        with np.load(file) as expected, np.load(tmp_path / "two" / file.name) as found:
            assert expected.files == found.files
            assert all(np.array_equal(expected[name], found[name]) for name in found.files)
    assert not list(tmp_path.glob("flatq-eval-*"))


_FAILS = """
import os, signal, sys
from flatq.errors import DataError
from flatq.evaluate.samples import SampleSet

how = sys.argv.pop(1)

def draw(*_):
    if how == "error":
        raise DataError("the second process cannot")
    os.kill(os.getpid(), signal.SIGKILL)

if os.environ["RANK"] == "1":
    SampleSet._draw = draw
from flatq.cli import main
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["error", "killed"])
def test_a_process_that_fails_ends_all(artifacts: list[Path], tmp_path: Path, how: str) -> None:
    program = [sys.executable, "-c", _FAILS, how, *_arguments(artifacts, tmp_path / "out")]
    first, second = launch(program)
    if how == "error":
        assert (first[0], second[0]) == (2, 2)
        assert first[2].count("the second process cannot") == 1
    else:
        assert (first[0], second[0]) == (70, -9)
        assert first[2].count("exited without reporting an error") == 1
        assert "Traceback" not in first[2]
    assert "flatq:" not in second[2]
    assert not (tmp_path / "out" / "report.json").exists()


def test_a_usage_error_is_said_once(tmp_path: Path) -> None:
    results = launch([sys.executable, "-m", "flatq", "eval", "nothing.pt"])
    assert [code for code, _, _ in results] == [2, 2]
    assert [err.count("flatq: no metric") for _, _, err in results] == [1, 0]


def test_errors_travel_whole() -> None:
    import pickle

    error = ModelError("what", expected="a", got="b", next_step="c")
    same = pickle.loads(pickle.dumps(error))
    assert isinstance(same, FlatqError)
    assert str(same) == str(error)
