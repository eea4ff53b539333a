"""Two processes on one machine (gloo) against one with the joint batch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import launch

from flatq.checkpoint import load_checkpoint
from flatq.errors import UsageError
from flatq.train import TrainConfig, train
from flatq.train.distributed import Workers
from flatq.train.gradients import sam_gradients
from flatq.train.loop import Trainer
from flatq.train.state import read_state

# no dropout: its masks differ between the processes
CONFIG: dict[str, Any] = {
    "data": "digits:train", "heldout": "digits:heldout", "steps": 12, "batch_size": 8, "channels": (8, 16),
    "patch_size": 2, "train_steps": 2, "timesteps": "loss-second-moment", "variance": "learned_range",
    "swa_start": 4, "swa_period": 4, "threads": 1, "save_every": 5, "device": "cpu",
}  # fmt: skip

_PROGRAM = """
import sys
from pathlib import Path
from flatq.train import TrainConfig, train
config = TrainConfig.model_validate_json(Path(sys.argv[1]).read_text())
checkpoint = train(config, Path(sys.argv[2]), resume=len(sys.argv) > 3)
print(checkpoint.source)
"""


def _launch(program: list[str]) -> list[str]:
    """What each of two processes printed."""
    printed = []
    for code, out, err in launch(program):
        assert code == 0, err
        printed.append(out)
    return printed


def _train_in_two(config: TrainConfig, tmp_path: Path, folder: str, *more: str) -> list[str]:
    (tmp_path / "config.json").write_text(config.model_dump_json())
    files = [str(tmp_path / "config.json"), str(tmp_path / folder), *more]
    return _launch([sys.executable, "-c", _PROGRAM, *files])


@pytest.mark.slow
def test_two_processes_are_one_with_the_joint_batch(tmp_path: Path) -> None:
    config = TrainConfig(**CONFIG)
    train(config, tmp_path / "one")
    printed = _train_in_two(config, tmp_path, "two")
    assert printed == [f"{tmp_path / 'two' / 'ckpt.pt'}\n", "None\n"]  # written by the first alone

    one, two = (load_checkpoint(tmp_path / folder / "ckpt.pt") for folder in ("one", "two"))
    assert list(one.weights) == list(two.weights) == ["ema", "raw", "swa"]
    for average, weights in one.weights.items():
        for name, value in weights.items():
            # 12 AdamW steps of 1e-3: sums in another order move a step by far less than its size, but
            # where a gradient is near zero AdamW divides it by itself
            torch.testing.assert_close(two.weights[average][name], value, rtol=0, atol=2e-5)
    assert two.provenance["processes"] == 2
    assert two.provenance["final_loss"] == pytest.approx(one.provenance["final_loss"], rel=1e-5)
    assert two.provenance["heldout_loss"]["raw"] == pytest.approx(
        one.provenance["heldout_loss"]["raw"], rel=1e-5
    )
    history = [read_state(tmp_path / folder)["timesteps"] for folder in ("one", "two")]
    torch.testing.assert_close(history[0], history[1], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_two_processes_resume(tmp_path: Path) -> None:
    sam: dict[str, Any] = {"method": "sam", "rho": 0.5, "dropout": 0.2, "steps": 6}
    config = TrainConfig(**CONFIG | sam)
    _train_in_two(config, tmp_path, "whole")
    _train_in_two(config.model_copy(update={"steps": 5}), tmp_path, "cut")
    _train_in_two(config, tmp_path, "cut", "--resume")
    whole, cut = (load_checkpoint(tmp_path / folder / "ckpt.pt") for folder in ("whole", "cut"))
    for name, value in whole.weights["raw"].items():
        assert torch.equal(cut.weights["raw"][name], value)


_SAM_PROGRAM = """
import sys, torch
from torch import nn
from flatq.train.distributed import open_workers
from flatq.train.gradients import sam_gradients
with open_workers("cpu") as workers:
    model = nn.Linear(3, 1, bias=False).double()
    nn.init.constant_(model.weight, 1.0)
    wrapped = workers.wrap(model)
    x = torch.tensor([[1.0, 2.0, 3.0], [0.5, -1.0, 4.0]], dtype=torch.float64)[workers.rank]
    loss, sharp = sam_gradients(
        model.parameters(), lambda: wrapped(x).square().sum(), 0.3,
        unsynchronised=workers.unsynchronised(wrapped),
    )
    print(float(loss), float(sharp), *model.weight.grad.flatten().tolist(), workers.agree(workers.rank))
"""


@pytest.mark.slow
def test_sam_perturbs_by_local_gradients_and_shares_the_second(tmp_path: Path) -> None:
    printed = [[float(n) for n in line.split()] for line in _launch([sys.executable, "-c", _SAM_PROGRAM])]
    w = torch.ones(3, dtype=torch.float64)
    second = []
    for rank, x in enumerate(([1.0, 2.0, 3.0], [0.5, -1.0, 4.0])):
        value = torch.tensor(x, dtype=torch.float64)
        g = 2 * (w @ value) * value
        moved = w + 0.3 * g / g.norm()
        second.append(2 * (moved @ value) * value)
        assert printed[rank][0] == pytest.approx(float((w @ value) ** 2), rel=1e-12)
        assert printed[rank][1] == pytest.approx(float((moved @ value) ** 2), rel=1e-12)
    shared = (second[0] + second[1]) / 2
    for line in printed:
        assert line[2:5] == pytest.approx(shared.tolist(), rel=1e-12)
        assert line[5] == 0


def test_a_batch_that_does_not_divide_is_refused(tmp_path: Path) -> None:
    class Three:
        process_index, num_processes = 0, 3

    with pytest.raises(UsageError, match="do not divide"):
        Trainer(TrainConfig(**CONFIG), tmp_path, Workers(torch.device("cpu"), Three()))


def test_cuda_that_is_not_there_is_refused(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(UsageError, match="no CUDA device"):
        train(TrainConfig(**CONFIG | {"device": "cuda"}), tmp_path)


def test_sam_without_processes_needs_no_context() -> None:
    w = torch.nn.Parameter(torch.ones(2))
    entered: list[str] = []

    class Context:
        def __enter__(self) -> None:
            entered.append("in")

        def __exit__(self, *error: object) -> None:
            entered.append("out")

    def closure() -> torch.Tensor:
        entered.append("pass")
        return (w**2).sum()

    sam_gradients([w], closure, 0.1, unsynchronised=Context)
    assert entered == ["in", "pass", "out", "pass"]
