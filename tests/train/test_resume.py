"""Killed and resumed: the same weights to the last bit. And what a resumed run must not change."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from flatq.checkpoint import load_checkpoint
from flatq.errors import CheckpointError, UsageError
from flatq.train import TrainConfig, train
from flatq.train.distributed import Workers
from flatq.train.loop import Trainer
from flatq.train.state import STATE_FILE, read_state

# everything that has a state: dropout, flips, two averages and SWA, the history of losses, SAM on every
# second step, input perturbation, dropped labels, warm-up, held-out losses
EVERYTHING: dict[str, Any] = {
    "data": "digits:train", "heldout": "digits:heldout", "heldout_every": 15, "flip": True, "limit": 40,
    "labels": True, "num_classes": 10, "label_dropout": 0.2, "method": "sam", "rho": 0.2, "gamma": 0.1,
    "sam_every": 2, "steps": 30, "batch_size": 8, "warmup": 12, "channels": (8, 16), "patch_size": 2,
    "dropout": 0.2, "train_steps": 8, "variance": "learned_range", "timesteps": "loss-second-moment",
    "ema_decays": (0.9, 0.99), "switch_ema": "epoch", "swa_start": 0.5, "swa_period": 3, "threads": 1,
    "lr": 1e-3,
}  # fmt: skip


def _same(first: Path, second: Path) -> None:
    a, b = load_checkpoint(first / "ckpt.pt"), load_checkpoint(second / "ckpt.pt")
    assert list(a.weights) == list(b.weights) == ["ema", "raw", "swa", "ema_0.99"]
    for average, weights in a.weights.items():
        for name, value in weights.items():
            assert torch.equal(value, b.weights[average][name]), (average, name)
    assert a.provenance == b.provenance
    assert json.loads((first / "train.json").read_text()) == json.loads((second / "train.json").read_text())


def test_a_run_resumed_in_the_same_process_is_the_same(tmp_path: Path) -> None:
    config = TrainConfig(**EVERYTHING, save_every=7)
    train(config, tmp_path / "whole")

    class Stop(BaseException):
        """A kill that pytest can see."""

    def stop_at(last: int) -> Any:
        def progress(step: int, loss: float | None) -> None:
            if step == last:
                raise Stop

        return progress

    for last in (5, 10, 24):  # before the first checkpoint, and between others
        with pytest.raises(Stop):
            train(config, tmp_path / "cut", resume=True, progress=stop_at(last))
    steps: list[int] = []
    train(config, tmp_path / "cut", resume=True, progress=lambda step, loss: steps.append(step))
    assert steps == list(range(22, 31))
    _same(tmp_path / "whole", tmp_path / "cut")


_PROGRAM = """
import json, sys
from pathlib import Path
from flatq.train import TrainConfig, train
config = TrainConfig.model_validate_json(Path(sys.argv[1]).read_text())
print("ready", flush=True)
train(config, Path(sys.argv[2]), resume=True)
"""


@pytest.mark.slow
def test_kill_at_random_moments_changes_nothing(tmp_path: Path) -> None:
    config = TrainConfig(**EVERYTHING, save_every=1)
    train(config, tmp_path / "whole")
    (tmp_path / "config.json").write_text(config.model_dump_json())
    command = [sys.executable, "-c", _PROGRAM, str(tmp_path / "config.json"), str(tmp_path / "cut")]
    rng, killed = random.Random(0), 0
    state = tmp_path / "cut" / STATE_FILE
    while killed < 3:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            before = state.stat().st_mtime_ns if state.exists() else 0
            # not before it has made progress of its own, so that the kills fall all over the run
            while process.poll() is None and (not state.exists() or state.stat().st_mtime_ns == before):
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.3))
            process.send_signal(signal.SIGKILL)
            if process.wait() == 0:
                break
            assert process.returncode == -signal.SIGKILL
        killed += 1
        read_state(tmp_path / "cut")  # whole, whatever the moment
    assert killed >= 2
    subprocess.run(command, check=True, capture_output=True)
    _same(tmp_path / "whole", tmp_path / "cut")
    assert not list((tmp_path / "cut").glob(".*.partial"))


def test_a_finished_run_goes_on_when_the_steps_are_raised(tmp_path: Path) -> None:
    config = TrainConfig(**EVERYTHING | {"swa_start": 15})
    train(config, tmp_path / "whole")
    short = config.model_copy(update={"steps": 20, "save_minutes": None})
    train(short, tmp_path / "cut")
    steps: list[int] = []
    train(short, tmp_path / "cut", resume=True, progress=lambda step, loss: steps.append(step))
    assert steps == []
    train(config, tmp_path / "cut", resume=True)
    a, b = load_checkpoint(tmp_path / "whole" / "ckpt.pt"), load_checkpoint(tmp_path / "cut" / "ckpt.pt")
    for average, weights in a.weights.items():
        assert all(torch.equal(value, b.weights[average][name]) for name, value in weights.items())


SMALL: dict[str, Any] = {
    "data": "digits:train", "steps": 2, "batch_size": 4, "channels": (8, 16), "patch_size": 2, "threads": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 1e-4}, "lr differ"),
        ({"method": "sam"}, "method differ"),
        ({"seed": 1, "channels": (8, 8)}, "seed, channels differ"),
    ],
)
def test_another_configuration_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    train(TrainConfig(**SMALL), tmp_path)
    before = (tmp_path / STATE_FILE).read_bytes()
    with pytest.raises(UsageError, match=message):
        train(TrainConfig(**SMALL | change), tmp_path, resume=True)
    assert (tmp_path / STATE_FILE).read_bytes() == before


def test_other_images_or_processes_are_refused(tmp_path: Path) -> None:
    import numpy as np

    def images(value: int) -> None:
        np.savez(tmp_path / "images.npz", np.full((6, 8, 8, 1), value, np.uint8))

    images(3)
    config = TrainConfig(**SMALL | {"data": str(tmp_path / "images.npz")})
    train(config, tmp_path / "run")
    state = read_state(tmp_path / "run")
    trainer = Trainer(config, tmp_path / "run", Workers(torch.device("cpu")))
    with pytest.raises(UsageError, match="number of processes"):
        trainer.load_state({**state, "rng": state["rng"] * 2})
    images(4)
    with pytest.raises(UsageError, match="not those that the run began with"):
        train(config, tmp_path / "run", resume=True)


def test_the_state_is_there_before_the_first_step(tmp_path: Path) -> None:
    class Stop(BaseException):
        """A kill that pytest can see."""

    def stop(step: int, loss: float | None) -> None:
        raise Stop

    with pytest.raises(Stop):
        train(TrainConfig(**SMALL), tmp_path / "cut", progress=stop)
    assert read_state(tmp_path / "cut")["step"] == 0
    assert [path.name for path in (tmp_path / "cut").iterdir()] == [STATE_FILE]
    whole = train(TrainConfig(**SMALL), tmp_path / "whole")
    cut = train(TrainConfig(**SMALL), tmp_path / "cut", resume=True)
    assert all(torch.equal(v, cut.weights["raw"][name]) for name, v in whole.weights["raw"].items())


def test_a_run_that_was_begun_is_not_overwritten(tmp_path: Path) -> None:
    train(TrainConfig(**SMALL), tmp_path)
    (tmp_path / "ckpt.pt").unlink()
    with pytest.raises(UsageError, match="was begun") as caught:
        train(TrainConfig(**SMALL), tmp_path)
    assert "--resume" in str(caught.value)


@pytest.mark.parametrize("damage", ["half", "pickle", "other", "version"])
def test_a_damaged_state_is_refused(damage: str, tmp_path: Path) -> None:
    train(TrainConfig(**SMALL), tmp_path)
    path = tmp_path / STATE_FILE
    if damage == "half":
        path.write_bytes(path.read_bytes()[:1000])
    elif damage == "pickle":
        torch.save({"format": "flatq-train-state", "version": 1, "x": Path("a")}, path)
    elif damage == "other":
        torch.save([1], path)
    else:
        torch.save({**read_state(tmp_path), "version": 1}, path)
    with pytest.raises(CheckpointError):
        train(TrainConfig(**SMALL), tmp_path, resume=True)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write"):
        train(TrainConfig(**SMALL), tmp_path / "file")
