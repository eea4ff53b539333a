"""Models that diffusers wrote: where the parts are found, that the network is the same, what is refused."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.training_utils import EMAModel
from diffusers_models import (
    WEIGHTS,
    edit_json,
    make_scheduler,
    make_unet,
    outputs,
    run_import,
    write_pipeline,
)
from safetensors.torch import load_file

from flatq.checkpoint import file_digest, load_checkpoint, save_checkpoint
from flatq.errors import CheckpointError, MissingRuntimeError
from flatq.interop.diffusers import import_diffusers
from flatq.process import ProcessConfig


@pytest.mark.parametrize(
    ("unet", "scheduler"),
    [
        ({}, {}),
        ({"in_channels": 1, "out_channels": 1}, {}),
        ({"out_channels": 6}, {"variance_type": "learned_range"}),
        ({"num_class_embeds": 5}, {}),
        (
            {
                "resnet_time_scale_shift": "scale_shift",
                "downsample_type": "resnet",
                "upsample_type": "resnet",
                "attn_norm_num_groups": 4,
                "attention_head_dim": None,
                "freq_shift": 1,
                "flip_sin_to_cos": False,
                "time_embedding_dim": 24,
                "center_input_sample": True,
                "downsample_padding": 0,
                "dropout": 0.5,
                "sample_size": [8, 8],
            },
            {},
        ),
    ],
    ids=["rgb", "grey", "learned", "classes", "unusual"],
)
@pytest.mark.parametrize("kind", ["DDPM", "DDIM"])
def test_the_network_is_that_of_diffusers(
    kind: str, unet: dict[str, Any], scheduler: dict[str, Any], tmp_path: Path
) -> None:
    model = make_unet(**unet)
    folder = write_pipeline(tmp_path / "model", model, make_scheduler(**scheduler), f"{kind}Pipeline")
    checkpoint, _ = run_import(folder)
    channels, classes = unet.get("in_channels", 3), unet.get("num_class_embeds")
    assert checkpoint.model.image_shape == (channels, 8, 8)
    assert checkpoint.model.num_classes == classes
    # what DDIMPipeline keeps of a DDPMScheduler names the variance too
    assert checkpoint.process.variance == scheduler.get("variance_type", "fixed_small")
    saved = load_checkpoint(save_checkpoint(checkpoint, tmp_path / "c.pt").source or tmp_path)
    assert (saved.model, saved.process) == (checkpoint.model, checkpoint.process)
    assert torch.equal(outputs(saved.network(), channels, classes), outputs(model, channels, classes))


def test_what_an_import_says_of_its_source(pipeline_folder: Path) -> None:
    checkpoint, notes = run_import(pipeline_folder)
    assert checkpoint.provenance["method"] == "imported"
    source = checkpoint.provenance["source"]
    files = source.pop("files")
    assert source == {
        "kind": "diffusers",
        "name": "model",
        "revision": None,
        "pipeline": "DDPMPipeline",
        "scheduler": "DDPMScheduler",
        "scheduler_from": "the model",
        "written_by": diffusers.__version__,
    }
    assert files == {
        "model_index.json": file_digest(pipeline_folder / "model_index.json"),
        "unet/config.json": file_digest(pipeline_folder / "unet" / "config.json"),
        f"unet/{WEIGHTS}": file_digest(pipeline_folder / "unet" / WEIGHTS),
        "scheduler/scheduler_config.json": file_digest(
            pipeline_folder / "scheduler" / "scheduler_config.json"
        ),
    }
    assert notes == []


def test_nothing_but_the_notes_is_said(
    pipeline_folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[logging.LogRecord] = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", heard.append)
    logger = logging.getLogger("diffusers")
    make_unet().save_pretrained(pipeline_folder / "unet", max_shard_size="20KB")  # shards have a progress bar
    (pipeline_folder / "unet" / WEIGHTS).unlink()
    edit_json(pipeline_folder / "unet" / "config.json", lambda c: c.update(decay=0.9))  # a warning
    logger.addHandler(handler)
    diffusers.utils.logging.set_verbosity_info()  # type: ignore[no-untyped-call]
    diffusers.utils.logging.enable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        run_import(pipeline_folder)
        assert diffusers.utils.logging.get_verbosity() == logging.INFO
        assert diffusers.utils.logging.is_progress_bar_enabled()
    finally:
        logger.removeHandler(handler)
        diffusers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        diffusers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    assert heard == []
    assert capfd.readouterr() == ("", "")


def test_the_parts_at_the_root_as_in_the_oldest_repositories(pipeline_folder: Path) -> None:
    expected, _ = run_import(pipeline_folder)
    for part in ("unet", "scheduler"):
        for file in (pipeline_folder / part).iterdir():
            file.rename(pipeline_folder / file.name)
        (pipeline_folder / part).rmdir()
    found, _ = run_import(pipeline_folder)
    assert (found.model, found.process) == (expected.model, expected.process)
    assert torch.equal(outputs(found.network()), outputs(expected.network()))


def test_a_bare_unet_takes_the_defaults_aloud_or_the_scheduler_given(
    unet_folder: Path, tmp_path: Path
) -> None:
    bare, notes = run_import(unet_folder)
    (line,) = notes
    assert "defaults of DDPMScheduler" in line
    for setting in ("num_train_timesteps 1000", "beta_schedule linear", "beta_end 0.02", "leading"):
        assert setting in line
    assert bare.process == ProcessConfig(
        schedule="linear", beta_ends=(1e-4, 0.02), variance="fixed_small", spacing="leading"
    )
    assert bare.provenance["source"]["scheduler_from"] == "defaults"
    given = write_pipeline(tmp_path / "other", make_unet(), make_scheduler(beta_schedule="squaredcos_cap_v2"))
    for path in (given, given / "scheduler", given / "scheduler" / "scheduler_config.json"):
        checkpoint, notes = run_import(unet_folder, scheduler=path)
        assert checkpoint.process.schedule == "cosine"
        assert notes == []
    assert checkpoint.provenance["source"]["scheduler_from"] == "--scheduler"
    beside = given / "scheduler" / "scheduler_config.json"
    beside.rename(unet_folder / beside.name)
    assert run_import(unet_folder)[0].process.schedule == "cosine"


def test_a_scheduler_given_replaces_the_pipelines_own_aloud(pipeline_folder: Path, tmp_path: Path) -> None:
    make_scheduler(prediction_type="sample").save_pretrained(tmp_path / "other")
    checkpoint, notes = run_import(pipeline_folder, scheduler=tmp_path / "other")
    assert checkpoint.process.prediction == "sample"
    assert "not the model's own" in notes[0]


def test_averaged_weights_beside_the_unet_or_given(pipeline_folder: Path, tmp_path: Path) -> None:
    unet = make_unet(1)
    average: Any = EMAModel(
        unet.parameters(), decay=0.9, model_cls=diffusers.UNet2DModel, model_config=unet.config
    )
    average.save_pretrained(pipeline_folder / "unet_ema")
    make_unet(2).save_pretrained(tmp_path / "given")
    checkpoint, notes = run_import(pipeline_folder)
    assert [*checkpoint.weights] == ["raw", "ema"]
    assert "unet_ema" in notes[0]
    assert torch.equal(outputs(checkpoint.network("raw")), outputs(make_unet(0)))
    assert torch.equal(outputs(checkpoint.network("ema")), outputs(unet))
    assert f"ema/{WEIGHTS}" in checkpoint.provenance["source"]["files"]
    checkpoint, notes = run_import(pipeline_folder, ema=tmp_path / "given")
    assert torch.equal(outputs(checkpoint.network()), outputs(make_unet(2)))
    assert "left aside" in notes[0]


def test_an_average_of_another_network(pipeline_folder: Path, tmp_path: Path) -> None:
    make_unet(layers_per_block=2).save_pretrained(pipeline_folder / "unet_ema")
    checkpoint, notes = run_import(pipeline_folder)
    assert [*checkpoint.weights] == ["raw"]
    assert "left aside" in notes[0]
    assert "layers_per_block" in notes[0]
    with pytest.raises(CheckpointError, match=r"another network.*\n.*\n.*layers_per_block"):
        run_import(pipeline_folder, ema=pipeline_folder / "unet_ema")
    edit_json(pipeline_folder / "unet_ema" / "config.json", lambda c: c.update(_class_name="Other"))
    checkpoint, notes = run_import(pipeline_folder)
    assert [*checkpoint.weights] == ["raw"]
    assert "left aside" in notes[0]


def test_a_hub_id_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"owner/name is neither(.*\n)*.*give its path") as caught:
        import_diffusers("owner/name", note=lambda text: None)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_a_hub_id_fetches_what_is_needed(
    ending: str, pipeline_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if ending == "bin":
        torch.save(
            load_file(pipeline_folder / "unet" / WEIGHTS),
            pipeline_folder / "unet" / "diffusion_pytorch_model.bin",
        )
        (pipeline_folder / "unet" / WEIGHTS).unlink()
    asked: list[list[str]] = []

    def snapshot(name: str, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        assert name == "owner/name"
        asked.append(allow_patterns)
        return str(pipeline_folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    checkpoint = import_diffusers("owner/name", note=lambda text: None)
    assert checkpoint.provenance["source"]["name"] == "owner/name"
    assert checkpoint.provenance["source"]["revision"] == "model"
    assert len(asked) == (1 if ending == "safetensors" else 2)
    assert all(pattern.endswith((".json", f".{ending}")) for pattern in asked[-1])
    assert torch.equal(outputs(checkpoint.network()), outputs(make_unet()))


def test_without_diffusers(unet_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        """diffusers loads its parts on first use, and says so with a RuntimeError if it cannot."""

        def __getattr__(self, name: str) -> object:
            raise RuntimeError("Failed to import")

    monkeypatch.setitem(sys.modules, "diffusers", Broken())
    with pytest.raises(MissingRuntimeError, match="cannot be loaded"):
        run_import(unet_folder)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(MissingRuntimeError, match="pip install"):
        run_import(unet_folder)


def test_an_imported_checkpoint_holds_plain_values(pipeline_folder: Path) -> None:
    checkpoint, _ = run_import(pipeline_folder)
    json.dumps(checkpoint.provenance)
    json.dumps(checkpoint.model.model_dump())
    assert all(isinstance(value, torch.Tensor) for value in checkpoint.weights["raw"].values())
    assert np.isfinite(checkpoint.process.training_betas()).all()
