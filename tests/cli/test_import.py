"""`flatq import`: what it writes, says and refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Cli

from flatq.checkpoint import load_checkpoint
from flatq.interop.guided_diffusion import model_config
from flatq.interop.guided_flags import Flags
from flatq.interop.guided_weights import tensors_of
from flatq.network import build_network

FLAGS: dict[str, Any] = {
    "image_size": 8,
    "num_channels": 32,
    "num_res_blocks": 1,
    "channel_mult": "1",
    "class_cond": True,
}


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(monkeypatch, capsys, "import")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder: `model.pt`, `ema.pt` (four classes) and `flags.json`; unlabelled `plain.pt`, `plain.json`."""
    folder = tmp_path / "source"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for name, flags in (("model", FLAGS), ("ema", FLAGS), ("plain", FLAGS | {"class_cond": False})):
        read = Flags(**flags)
        network = build_network(model_config(read, 3, 4 if read.class_cond else None))
        wanted = tensors_of(read, network)
        state = {tensor.key: torch.randn(tensor.shape, generator=generator) for tensor in wanted}
        torch.save(state, folder / f"{name}.pt")
        flag_file = "flags.json" if name == "model" else f"{name}.json"
        (folder / flag_file).write_text(json.dumps(flags), encoding="utf-8")
    return folder


def test_a_network_with_its_average_and_null_label(cli: Cli, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "ckpt.pt"
    flags = ("--flags", source / "flags.json")
    assert cli(source / "model.pt", *flags, "--ema", source / "ema.pt", "--null-label", 3, "-o", out) == 0
    assert cli.out == f"{out}\n"
    checkpoint = load_checkpoint(out)
    assert list(checkpoint.weights) == ["ema", "raw"]
    assert (checkpoint.model.num_classes, checkpoint.model.null_label) == (4, 3)
    last = cli.err.splitlines()[-1]
    count = sum(v.numel() for v in torch.load(source / "model.pt", weights_only=True).values())
    for part in (
        f"{count:,} parameters",
        "3 x 8 x 8",
        "4 classes",
        "linear, 1000 steps",
        "weights: raw, ema",
    ):
        assert part in last
    assert "num_heads=4" in cli.err
    before = out.read_bytes()
    assert cli(source / "model.pt", *flags, "-o", out) == 2
    assert "exists already" in cli.err
    assert out.read_bytes() == before


def test_a_network_without_labels(cli: Cli, source: Path, tmp_path: Path) -> None:
    assert cli(source / "plain.pt", "--flags", source / "plain.json", "-o", tmp_path / "ckpt.pt") == 0
    assert "classes" not in cli.err.splitlines()[-1]
    assert load_checkpoint(tmp_path / "ckpt.pt").model.classes is None


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ("model.pt", ["--flags", "stand in no tensor", "training command"]),
        ("other.pt", ["--flags"]),
        ("other.pt --flags flags.json", ["there is no checkpoint", "other.pt"]),
        ("model.pt --flags other.json", ["other.json"]),
        ("model.pt --flags plain.json", ["label_emb.weight", "class_cond"]),
        ("model.pt --flags flags.json --ema plain.pt", ["plain.pt", "label_emb.weight"]),
        ("model.pt --flags flags.json --scheduler s.json", ["--scheduler s.json"]),
        (". --flags flags.json", ["the folder", "leave --flags out"]),
        ("model.pt --flags flags.json --null-label 4", ["0 to 3", "--null-label 4"]),
        ("model.pt --flags flags.json --null-label -1", ["0 to 3", "--null-label -1"]),
        ("plain.pt --flags plain.json --null-label 0", ["takes no labels", "--null-label 0"]),
    ],
)
def test_what_is_refused_leaves_nothing(
    arguments: str,
    names: list[str],
    cli: Cli,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(source)
    assert cli(*arguments.split(), "-o", tmp_path / "ckpt.pt") == 2
    for name in names:
        assert name in cli.err
    assert not cli.out
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_what_is_not_a_file_goes_to_diffusers(
    cli: Cli, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import ModuleType

    from flatq.interop.guided_diffusion import import_guided_diffusion

    asked: list[tuple[Any, ...]] = []

    def import_diffusers(name: str, *, ema: Path | None, scheduler: Path | None, note: Any) -> Any:
        asked.append((name, ema, scheduler))
        return import_guided_diffusion(source / "model.pt", source / "flags.json", note=note)

    module = ModuleType("flatq.interop.diffusers")
    module.import_diffusers = import_diffusers  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flatq.interop.diffusers", module)
    assert cli(source, "-o", tmp_path / "a.pt", "--ema", "ema", "--scheduler", "s") == 0
    assert cli("name/network", "-o", tmp_path / "b.pt", "--null-label", 0) == 0
    assert asked == [(str(source), Path("ema"), Path("s")), ("name/network", None, None)]
    assert load_checkpoint(tmp_path / "b.pt").model.null_label == 0
