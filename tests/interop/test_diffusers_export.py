"""Checkpoints written for `DDPMPipeline`: what comes back, what is said and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers_models import make_scheduler, make_unet, outputs, write_pipeline

from flatq.checkpoint import Checkpoint, save_checkpoint
from flatq.cli import main
from flatq.errors import CheckpointError, UsageError
from flatq.interop.diffusers import export_diffusers, import_diffusers
from flatq.process import ProcessConfig


@pytest.mark.parametrize(
    ("unet", "scheduler"),
    [
        ({}, {}),
        ({"out_channels": 6}, {"variance_type": "learned_range", "timestep_spacing": "trailing"}),
        ({"num_class_embeds": 4, "in_channels": 1, "out_channels": 1}, {"prediction_type": "v_prediction"}),
    ],
    ids=["rgb", "learned", "classes"],
)
def test_in_and_out_and_in_again_is_the_same(
    unet: dict[str, Any], scheduler: dict[str, Any], tmp_path: Path
) -> None:
    folder = write_pipeline(tmp_path / "a", make_unet(**unet), make_scheduler(**scheduler))
    first = import_diffusers(str(folder), note=print)
    export_diffusers(first, tmp_path / "b", note=print)
    again = import_diffusers(str(tmp_path / "b"), note=print)
    assert (again.model, again.process) == (first.model, first.process)
    for name, value in first.weights["raw"].items():
        assert torch.equal(again.weights["raw"][name], value)
    for path in (p.relative_to(folder) for p in folder.rglob("*") if p.is_file()):
        assert (tmp_path / "b" / path).read_bytes() == (folder / path).read_bytes()


def test_a_checkpoint_of_flatq_comes_back(tiny: Checkpoint, tmp_path: Path) -> None:
    ema = {name: value + 1 for name, value in tiny.weights["raw"].items()}
    both = Checkpoint(tiny.model, tiny.process, {"raw": tiny.weights["raw"], "ema": ema})
    for average, chosen in ((None, "ema"), ("raw", "raw")):
        notes: list[str] = []
        export_diffusers(both, tmp_path / chosen, average=average, note=notes.append)
        assert "linspace" in notes[0]
        again = import_diffusers(str(tmp_path / chosen), note=print)
        assert again.weights["raw"].keys() == both.weights[chosen].keys()
        for name, value in both.weights[chosen].items():
            assert torch.equal(again.weights["raw"][name], value)
        assert again.process == tiny.process.model_copy(update={"spacing": "linspace"})
    # torn between: nothing else is left in the folder
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ema", "raw"]


def test_a_network_with_classes_is_written_with_a_note(tmp_path: Path) -> None:
    unet = make_unet(num_class_embeds=4)
    unet.save_pretrained(tmp_path / "unet")
    checkpoint = import_diffusers(str(tmp_path / "unet"), note=print)
    labelled = Checkpoint(
        checkpoint.model.model_copy(update={"null_label": 3}), checkpoint.process, checkpoint.weights
    )
    notes: list[str] = []
    export_diffusers(labelled, tmp_path / "out", note=notes.append)
    assert any("null label 3" in line for line in notes)
    assert any("class_labels" in line for line in notes)
    pipeline: Any = diffusers.DDPMPipeline.from_pretrained(tmp_path / "out", local_files_only=True)
    assert pipeline.unet.config.num_class_embeds == 4
    assert torch.equal(outputs(pipeline.unet, classes=4), outputs(unet, classes=4))


@pytest.mark.parametrize(
    "change",
    [{"patch_size": 2}, {"attention_heads": (2, 2)}, {"timestep_channels": 32}, {"timestep_scale": 2.0}],
    ids=lambda change: next(iter(change)),
)
def test_networks_that_unet2dmodel_cannot_be(
    change: dict[str, Any], tiny: Checkpoint, tmp_path: Path
) -> None:
    checkpoint = Checkpoint(tiny.model.model_copy(update=change), tiny.process, tiny.weights)
    with pytest.raises(UsageError, match=next(iter(change))):
        export_diffusers(checkpoint, tmp_path / "out", note=print)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten_or_left_half_done(
    tiny: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(UsageError, match="already exists"):
        export_diffusers(tiny, tmp_path / "out", note=print)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine"]
    odd = Checkpoint(tiny.model, ProcessConfig(schedule="linear", train_steps=10), tiny.weights)
    with pytest.raises(UsageError, match="outside"):
        export_diffusers(odd, tmp_path / "new", note=print)
    short = Checkpoint(tiny.model, tiny.process, {"raw": {}})
    with pytest.raises(CheckpointError, match="do not fit"):
        export_diffusers(short, tmp_path / "new", note=print)

    def fail(self: Any, folder: Path) -> None:
        folder.mkdir()
        (folder / "half").write_text("x")
        raise OSError("disk full")

    monkeypatch.setattr(diffusers.DDPMPipeline, "save_pretrained", fail)
    with pytest.raises(OSError, match="disk full"):
        export_diffusers(tiny, tmp_path / "new", note=print)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def _run(*arguments: object, patch: pytest.MonkeyPatch) -> object:
    patch.setattr(sys, "argv", ["flatq", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code


def test_the_command(
    tiny: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = save_checkpoint(tiny, tmp_path / "c.pt").source
    out = tmp_path / "out"
    assert _run("convert", source, "--to", "diffusers", "-o", out, patch=monkeypatch) == 0
    said = capsys.readouterr()
    assert said.out == f"{out}\n"
    assert "weights: raw" in said.err
    assert "linspace" in said.err
    assert (out / "model_index.json").is_file()
    for arguments in (
        ("--to", "diffusers", "-o", out),
        ("--to", "other", "-o", tmp_path / "new"),
        ("--to", "diffusers", "-o", tmp_path / "new", "--weights", "ema"),
        ("-o", tmp_path / "new"),
        ("--to", "diffusers"),
    ):
        assert _run("convert", source, *arguments, patch=monkeypatch) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.pt", "out"]
