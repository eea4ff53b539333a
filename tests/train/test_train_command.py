"""`flatq train`: presets and options, the dry run, resuming."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from command_line import Cli

from flatq.checkpoint import load_checkpoint
from flatq.cli.train_command import _options, command
from flatq.train import TrainConfig
from flatq.train.state import read_state

TINY = ("--steps", "2", "--batch-size", "4", "--channels", "8,16", "--patch", "2", "--threads", "1")


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(monkeypatch, capsys, "train")


def test_without_a_preset_it_trains_plainly_on_the_digits(cli: Cli, tmp_path: Path) -> None:
    assert cli(tmp_path / "run", *TINY) == 0
    assert cli.out == f"{tmp_path / 'run' / 'ckpt.pt'}\n"
    checkpoint = load_checkpoint(tmp_path / "run" / "ckpt.pt")
    about = checkpoint.provenance
    assert (about["data"], about["method"], about["lr"]) == ("digits", "adm", 1e-3)
    assert set(checkpoint.weights) == {"raw", "ema"}


def test_one_run_gives_raw_ema_and_swa(cli: Cli, tmp_path: Path) -> None:
    code = cli(
        tmp_path, *TINY, "--method", "sam", "--rho", "0.2", "--gamma", "0.1", "--sam-every", "2",
        "--ema", "0.9,0.99", "--swa-start", "0.5", "--swa-period", "1", "--set", "train_steps=50",
    )  # fmt: skip
    assert code == 0
    checkpoint = load_checkpoint(tmp_path / "ckpt.pt")
    assert set(checkpoint.weights) == {"raw", "ema", "swa", "ema_0.99"}
    about = checkpoint.provenance
    assert (about["rho"], about["gamma"], about["sam_every"], about["train_steps"]) == (0.2, 0.1, 2, 50)


def test_the_dry_run_prints_a_preset(cli: Cli, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert cli(run, "--preset", "cifar10-adm", "--data", "nowhere", "--dry-run", "--set", "lr=3e-4") == 0
    assert not run.exists()
    assert "# parameters: 57,094,662\n" in cli.out
    assert "# MACs of an image (multiply-adds of one forward pass): 9,26" in cli.out
    assert "# memory" in cli.out
    values = tomllib.loads(cli.out)
    assert (values["lr"], values["dropout"], values["clip_grad"]) == (3e-4, 0.3, "none")
    (tmp_path / "own.toml").write_text(cli.out)
    first = cli.out
    assert cli(run, "--preset", tmp_path / "own.toml", "--dry-run") == 0
    assert cli.out == first


def test_resuming_takes_the_runs_own_options(cli: Cli, tmp_path: Path) -> None:
    assert cli(tmp_path, *TINY, "--preset", "digits", "--resume") == 0  # nothing there yet: it begins
    assert cli(tmp_path) == 2
    assert "--resume" in cli.err
    assert cli(tmp_path, "--resume", "--steps", "3") == 0
    state = read_state(tmp_path)
    assert (state["step"], state["config"]["channels"]) == (3, [8, 16])
    assert cli(tmp_path, "--resume", "--lr", "1") == 2
    assert "lr differ" in cli.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--preset", "digit"), "did you mean digits?"),
        (("--preset", "cifar10-small"), "--data"),
        (("--set", "batchsize=4"), "did you mean batch_size?"),
        (("--set", "steps=many"), "steps is not valid"),
        (("--set", "lr=1", "--lr", "1"), "given twice"),
        (("--ema", "a"), "--ema is not valid"),
        (("--attention", "8,x"), "--attention is not valid"),
        (("--swa-start", "soon"), "swa_start is not valid"),
        (("--gamma", "0.1"), "gamma needs"),
        (("--device", "tpu"), "--device"),
        (("--preset", "wrong.toml"), "dropout is not valid, from the preset wrong.toml"),
        (("--resume",), "nothing to resume"),
    ],
)
def test_bad_options_exit_2_and_leave_nothing(
    arguments: tuple[str, ...], message: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("wrong.toml").write_text('data = "digits"\ndropout = "0.1"\n')
    assert cli("run", *arguments) == 2
    assert message in cli.err
    assert not cli.out
    assert [path.name for path in tmp_path.iterdir()] == ["wrong.toml"]


def test_other_processes_than_the_first_say_nothing(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")  # WORLD_SIZE stays 1: it trains alone, but speaks as a second one would
    assert cli(tmp_path, *TINY) == 0
    assert not cli.out
    assert not cli.err


def test_the_choices_of_the_options_are_those_of_the_configuration() -> None:
    hints = get_type_hints(command)
    for name in (
        "method",
        "sam_on",
        "lr_schedule",
        "precision",
        "schedule",
        "variance",
        "timesteps",
        "device",
    ):
        offered = get_args(get_args(hints[name])[0])
        assert offered == get_args(TrainConfig.model_fields[name].annotation)
    widths = _options({"channels": "64,64"}, [])["channels"]
    assert widths == [64, 64]
