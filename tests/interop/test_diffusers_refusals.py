"""What of a diffusers folder is refused, and how it is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from diffusers_models import (
    WEIGHTS,
    edit_json,
    make_scheduler,
    make_unet,
    run_import,
    write_pipeline,
)

from flatq.errors import CheckpointError


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("class_embed_type", "timestep"),
        ("class_embed_type", "identity"),
        ("sample_size", [8, 16]),
        ("sample_size", None),
        ("sample_size", "8"),
        ("time_embedding_type", "fourier"),
        ("time_embedding_type", "learned"),
        ("in_channels", 4),
        ("out_channels", 4),
        ("out_channels", 6),  # the scheduler has no learned variance
        ("num_class_embeds", 0),
        ("no_such_key", 1),
        ("quantization_config", {"load_in_8bit": True}),
    ],
)
def test_network_settings_that_are_refused_by_name(key: str, value: Any, pipeline_folder: Path) -> None:
    edit_json(pipeline_folder / "unet" / "config.json", lambda c: c.update({key: value}))
    with pytest.raises(CheckpointError) as caught:
        run_import(pipeline_folder)
    assert {"num_class_embeds": "num_classes"}.get(key, key) in str(caught.value)


@pytest.mark.parametrize(
    "change", [{"block_out_channels": [8, 18]}, {"act_fn": "none"}, {"layers_per_block": "a"}]
)
def test_a_network_that_diffusers_refuses(change: dict[str, Any], unet_folder: Path) -> None:
    edit_json(unet_folder / "config.json", lambda c: c.update(change))
    with pytest.raises(CheckpointError, match="diffusers refuses"):
        run_import(unet_folder)


def test_the_size_left_out(unet_folder: Path) -> None:
    edit_json(unet_folder / "config.json", lambda c: c.pop("sample_size"))
    with pytest.raises(CheckpointError, match="sample_size"):
        run_import(unet_folder)


def test_channels_that_contradict_the_scheduler(tmp_path: Path) -> None:
    folder = write_pipeline(tmp_path / "a", make_unet(), make_scheduler(variance_type="learned_range"))
    with pytest.raises(CheckpointError, match="contradict"):
        run_import(folder)
    make_unet(out_channels=6).save_pretrained(tmp_path / "b")
    with pytest.raises(CheckpointError, match=r"out_channels(.*\n)*.*--scheduler"):
        run_import(tmp_path / "b")
    assert run_import(tmp_path / "b", scheduler=folder)[0].process.variance == "learned_range"


def test_another_class_of_network(unet_folder: Path) -> None:
    edit_json(unet_folder / "config.json", lambda c: c.update(_class_name="UNet2DConditionModel"))
    with pytest.raises(CheckpointError, match="UNet2DConditionModel"):
        run_import(unet_folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "StableDiffusionPipeline", "vae": ["diffusers", "AutoencoderKL"]}, "latents"),
        ({"_class_name": "LDMPipeline", "vqvae": ["diffusers", "VQModel"]}, "latents"),
        ({"_class_name": "ScoreSdeVePipeline"}, "ScoreSdeVePipeline"),
        ({"_class_name": ["pipeline", "Mine"]}, "Mine"),
        ({"vae": ["diffusers", "AutoencoderKL"]}, "vae"),
        ({"unet": None}, "parts"),
        ({"unet": ["diffusers", "UNet2DConditionModel"]}, "UNet2DConditionModel"),
        ({"unet": ["mine", "UNet2DModel"]}, "runs no code"),
        ({"scheduler": ["diffusers", "DDIMScheduler"]}, "contradicts itself"),
    ],
    ids=str,
)
def test_other_pipelines_are_refused_with_the_reason(
    change: dict[str, Any], message: str, pipeline_folder: Path
) -> None:
    edit_json(pipeline_folder / "model_index.json", lambda c: c.update(change))
    with pytest.raises(CheckpointError, match=message):
        run_import(pipeline_folder)


def test_parts_of_a_pipeline_that_it_does_without(pipeline_folder: Path) -> None:
    edit_json(pipeline_folder / "model_index.json", lambda c: c.update(vae=[None, None], extra=None))
    run_import(pipeline_folder)


def test_a_pipeline_without_its_scheduler(pipeline_folder: Path) -> None:
    file = pipeline_folder / "scheduler" / "scheduler_config.json"
    other = file.rename(pipeline_folder / "other.json")
    with pytest.raises(CheckpointError, match="no scheduler"):
        run_import(pipeline_folder)
    assert run_import(pipeline_folder, scheduler=other)[0].process.schedule == "linear"


@pytest.mark.parametrize("content", ["{", "[]", "null"])
@pytest.mark.parametrize("name", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
def test_json_that_is_none(name: str, content: str, pipeline_folder: Path) -> None:
    (pipeline_folder / name).write_text(content)
    with pytest.raises(CheckpointError, match="json"):
        run_import(pipeline_folder)


def test_paths_that_hold_no_model(pipeline_folder: Path, tmp_path: Path) -> None:
    (pipeline_folder / "model_index.json").unlink()
    with pytest.raises(CheckpointError, match=r"name the UNet's folder: .*unet"):
        run_import(pipeline_folder)
    with pytest.raises(CheckpointError, match="holds no model"):
        run_import(pipeline_folder / "scheduler")
    with pytest.raises(CheckpointError, match="holds no model"):
        run_import(pipeline_folder / "unet" / WEIGHTS)
    with pytest.raises(CheckpointError, match="nothing at"):
        run_import(tmp_path / "a" / "b" / "c")
    with pytest.raises(CheckpointError, match="no scheduler"):
        run_import(pipeline_folder / "unet", scheduler=tmp_path / "none.json")
    with pytest.raises(CheckpointError, match="cannot be read"):
        run_import(pipeline_folder / "unet", ema=tmp_path / "none")
