"""Sampling in several processes: shares in one process here, whole evaluations in real ones below."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import pytest
from launching import launch
from networks import checkpoint
from numpy.typing import NDArray
from toy_runtime import Toy

from flatq.errors import DataError, FlatqError, ModelError
from flatq.evaluate import team as team_module
from flatq.evaluate.compare import Referee, open_referee
from flatq.evaluate.features import open_features
from flatq.evaluate.growing import Growing
from flatq.evaluate.samples import SampleCache
from flatq.evaluate.team import ExtractorChoice, Team, leading
from flatq.images import load_images
from flatq.launch import Processes
from flatq.models import Model, Opening
from flatq.process import ProcessConfig
from flatq.runtime.base import UNCONDITIONED, Condition
from flatq.sampler import SamplePlan


class Place(Processes):
    """One of several processes that are threads: what it says goes to the others by queues."""

    def __init__(self, rank: int, queues: list[Queue[Any]], answers: list[Queue[Any]]) -> None:
        super().__init__()
        self.rank, self.count = rank, len(queues)
        self._queues, self._answers = queues, answers

    def agree(self, value: Any) -> Any:
        if self.rank:
            return self._queues[self.rank].get(timeout=30)
        for queue in self._queues[1:]:
            queue.put(value)
        return value

    def gather_objects(self, value: Any) -> list[Any]:
        if self.rank:
            self._answers[self.rank].put(value)
            return []
        return [value, *(queue.get(timeout=30) for queue in self._answers[1:])]


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


@pytest.fixture
def referee(feature_net: Path, tmp_path: Path) -> Referee:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", pixels)
    images = load_images(tmp_path / "data.npz")
    return open_referee(images, open_features(feature_net, image_shape=(3, 16, 16)))


class Crew:
    """A leader and two helpers; `grown` is what the leader's model sampled. After it the helpers have left
    with `codes`."""

    def __init__(self, referee: Referee, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.own, self.helper = Watched(), Watched()
        self.codes: list[int] = []
        self.cache = SampleCache(tmp_path / "cache", lambda line: pytest.fail(line))
        self._referee, self._scratch = referee, tmp_path
        monkeypatch.setattr(team_module, "open_model", lambda path, *_, **__: toy_model(self.helper))

    def grown(self, n: int, features: Path, *, code: int = 0) -> Growing:
        queues: list[Queue[Any]] = [Queue() for _ in range(3)]
        answers: list[Queue[Any]] = [Queue() for _ in range(3)]
        helpers = [
            threading.Thread(
                target=lambda rank=rank: self.codes.append(team_module._help(Place(rank, queues, answers)))
            )
            for rank in (1, 2)
        ]
        for thread in helpers:
            thread.start()
        team = Team(Place(0, queues, answers), self._scratch)
        team.extractor = ExtractorChoice(str(features))
        side = self.growing(team)
        try:
            side.grow(n)
        finally:
            team.dismiss(code)
            for thread in helpers:
                thread.join(30)
        return side

    def growing(self, team: Team | None) -> Growing:
        return Growing(
            toy_model(self.own),
            self._referee,
            SamplePlan(steps=3),
            first=7,
            batch_size=4,
            rounding="round",
            cache=None if team is None else self.cache,
            team=team,
        )


@pytest.fixture
def crew(referee: Referee, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Crew:
    return Crew(referee, tmp_path, monkeypatch)


def test_shares_make_one_sample(crew: Crew, feature_net: Path) -> None:
    alone = crew.growing(None)
    alone.grow(26)
    crew.own.drawn = 0
    shared = crew.grown(26, feature_net, code=4)
    assert np.array_equal(shared.images, alone.images)
    features = shared.features(26)
    assert features is not None
    assert np.array_equal(features, alone.features(26))
    assert (crew.own.drawn, crew.helper.drawn) == (10, 16)  # batches 0, 3 and the 2 images of 6; the others
    assert crew.codes == [4, 4]


def test_only_what_is_missing_is_shared(crew: Crew, feature_net: Path) -> None:
    crew.grown(8, feature_net)
    crew.own.drawn = crew.helper.drawn = 0
    crew.grown(20, feature_net)  # three batches more, one for each
    assert (crew.own.drawn, crew.helper.drawn) == (4, 8)
    crew.grown(20, feature_net)
    assert (crew.own.drawn, crew.helper.drawn) == (4, 8)


def test_the_error_of_a_helper_is_the_leaders(crew: Crew, feature_net: Path) -> None:
    crew.helper.error = ModelError("it broke", expected="a", got="b", next_step="c")
    with pytest.raises(ModelError, match="it broke") as caught:
        crew.grown(400, feature_net, code=2)
    assert caught.value.next_step == "c"
    assert crew.codes == [2, 2]
    assert crew.own.drawn < 100  # the leader does not go on with its own 34 batches


def test_a_bug_of_a_helper_is_a_bug(crew: Crew, feature_net: Path) -> None:
    crew.helper.error = ZeroDivisionError("oh")
    with pytest.raises(RuntimeError, match=r"process 1 failed(.|\n)*ZeroDivisionError: oh"):
        crew.grown(8, feature_net, code=70)
    assert crew.codes == [70, 70]


def test_the_error_of_the_leader_ends_the_helpers(crew: Crew, feature_net: Path) -> None:
    crew.own.error = ModelError("it broke")
    with pytest.raises(ModelError, match="it broke"):
        crew.grown(400, feature_net, code=2)
    assert crew.codes == [2, 2]
    assert crew.helper.drawn < 200


def test_a_helper_that_would_draw_other_samples_is_refused(crew: Crew, feature_net: Path) -> None:
    crew.helper.version = "2"
    with pytest.raises(DataError, match="would draw other samples") as caught:
        crew.grown(8, feature_net)
    assert "runtime" in str(caught.value.got)
    assert crew.helper.drawn == 0


def test_a_folder_that_is_not_shared_is_said(
    crew: Crew, feature_net: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SampleCache, "store", lambda *_: None)
    with pytest.raises(DataError, match="not in") as caught:
        crew.grown(8, feature_net)
    assert "FLATQ_CACHE" in str(caught.value.next_step)


def test_a_folder_that_cannot_be_written_is_said(crew: Crew, feature_net: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    crew.cache = SampleCache(tmp_path / "file", lambda _: None)
    with pytest.raises(DataError, match="process 1 cannot keep samples"):
        crew.grown(8, feature_net)


def test_one_process_leads_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    with leading() as team:
        assert team is None


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
    team_module._take_a_gpu()
    assert team_module.os.environ["CUDA_VISIBLE_DEVICES"] == taken


# Real processes, over gloo.


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A checkpoint for digits and an artifact of it, exported."""
    from flatq.calib.inputs import CalibrationPlan
    from flatq.export import export_artifact
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
        env=team_module.os.environ | environment | {"OMP_NUM_THREADS": "1"},
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
from flatq.evaluate.drawing import Drawing

how = sys.argv.pop(1)

def draw(*_):
    if how == "error":
        raise DataError("the second process cannot")
    os.kill(os.getpid(), signal.SIGKILL)

if os.environ["RANK"] == "1":
    Drawing.draw = draw
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
        assert first[2].count("ended without a word") == 1
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
