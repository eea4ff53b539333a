"""Models that diffusers wrote: where the parts are found, that the network is the same, what is refused."""

from __future__ import annotations

import json
import logging
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.training_utils import EMAModel
from diffusers_models import edit_json, make_scheduler, make_unet, outputs, write_pipeline
from safetensors.torch import load_file, save_file

from flatq.checkpoint import Checkpoint, file_digest, load_checkpoint, save_checkpoint
from flatq.errors import CheckpointError, MissingRuntimeError
from flatq.interop.diffusers import import_diffusers
from flatq.process import ProcessConfig

WEIGHTS = "diffusion_pytorch_model.safetensors"


class _Stranger:
    pass


def _import(source: Path, **options: Any) -> tuple[Checkpoint, list[str]]:
    notes: list[str] = []
    return import_diffusers(str(source), note=notes.append, **options), notes


@pytest.fixture
def unet_folder(tmp_path: Path) -> Path:
    make_unet().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def pipeline_folder(tmp_path: Path) -> Path:
    return write_pipeline(tmp_path / "model", make_unet(), make_scheduler())


def _change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS)


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
    checkpoint, _ = _import(folder)
    channels, classes = unet.get("in_channels", 3), unet.get("num_class_embeds")
    assert checkpoint.model.image_shape == (channels, 8, 8)
    assert checkpoint.model.num_classes == classes
    # what DDIMPipeline keeps of a DDPMScheduler names the variance too
    assert checkpoint.process.variance == scheduler.get("variance_type", "fixed_small")
    saved = load_checkpoint(save_checkpoint(checkpoint, tmp_path / "c.pt").source or tmp_path)
    assert (saved.model, saved.process) == (checkpoint.model, checkpoint.process)
    assert torch.equal(outputs(saved.network(), channels, classes), outputs(model, channels, classes))


def test_what_an_import_says_of_its_source(pipeline_folder: Path) -> None:
    checkpoint, notes = _import(pipeline_folder)
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
        _import(pipeline_folder)
        assert diffusers.utils.logging.get_verbosity() == logging.INFO
        assert diffusers.utils.logging.is_progress_bar_enabled()
    finally:
        logger.removeHandler(handler)
        diffusers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        diffusers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    assert heard == []
    assert capfd.readouterr() == ("", "")


def test_the_parts_at_the_root_as_in_the_oldest_repositories(pipeline_folder: Path) -> None:
    expected, _ = _import(pipeline_folder)
    for part in ("unet", "scheduler"):
        for file in (pipeline_folder / part).iterdir():
            file.rename(pipeline_folder / file.name)
        (pipeline_folder / part).rmdir()
    found, _ = _import(pipeline_folder)
    assert (found.model, found.process) == (expected.model, expected.process)
    assert torch.equal(outputs(found.network()), outputs(expected.network()))


def test_a_bare_unet_takes_the_defaults_aloud_or_the_scheduler_given(
    unet_folder: Path, tmp_path: Path
) -> None:
    bare, notes = _import(unet_folder)
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
        checkpoint, notes = _import(unet_folder, scheduler=path)
        assert checkpoint.process.schedule == "cosine"
        assert notes == []
    assert checkpoint.provenance["source"]["scheduler_from"] == "--scheduler"
    beside = given / "scheduler" / "scheduler_config.json"
    beside.rename(unet_folder / beside.name)
    assert _import(unet_folder)[0].process.schedule == "cosine"


def test_a_scheduler_given_replaces_the_pipelines_own_aloud(pipeline_folder: Path, tmp_path: Path) -> None:
    make_scheduler(prediction_type="sample").save_pretrained(tmp_path / "other")
    checkpoint, notes = _import(pipeline_folder, scheduler=tmp_path / "other")
    assert checkpoint.process.prediction == "sample"
    assert "not the model's own" in notes[0]


def test_averaged_weights_beside_the_unet_or_given(pipeline_folder: Path, tmp_path: Path) -> None:
    unet = make_unet(1)
    average: Any = EMAModel(
        unet.parameters(), decay=0.9, model_cls=diffusers.UNet2DModel, model_config=unet.config
    )
    average.save_pretrained(pipeline_folder / "unet_ema")
    make_unet(2).save_pretrained(tmp_path / "given")
    checkpoint, notes = _import(pipeline_folder)
    assert [*checkpoint.weights] == ["raw", "ema"]
    assert "unet_ema" in notes[0]
    assert torch.equal(outputs(checkpoint.network("raw")), outputs(make_unet(0)))
    assert torch.equal(outputs(checkpoint.network("ema")), outputs(unet))
    assert f"ema/{WEIGHTS}" in checkpoint.provenance["source"]["files"]
    checkpoint, notes = _import(pipeline_folder, ema=tmp_path / "given")
    assert torch.equal(outputs(checkpoint.network()), outputs(make_unet(2)))
    assert "left aside" in notes[0]


def test_an_average_of_another_network(pipeline_folder: Path, tmp_path: Path) -> None:
    make_unet(layers_per_block=2).save_pretrained(pipeline_folder / "unet_ema")
    checkpoint, notes = _import(pipeline_folder)
    assert [*checkpoint.weights] == ["raw"]
    assert "left aside" in notes[0]
    assert "layers_per_block" in notes[0]
    with pytest.raises(CheckpointError, match=r"another network.*\n.*\n.*layers_per_block"):
        _import(pipeline_folder, ema=pipeline_folder / "unet_ema")
    edit_json(pipeline_folder / "unet_ema" / "config.json", lambda c: c.update(_class_name="Other"))
    checkpoint, notes = _import(pipeline_folder)
    assert [*checkpoint.weights] == ["raw"]
    assert "left aside" in notes[0]


@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
@pytest.mark.parametrize("ending", ["safetensors", "bin"])
@pytest.mark.parametrize("variant", [None, "fp16"])
def test_weights_in_every_form(variant: str | None, ending: str, sharded: bool, tmp_path: Path) -> None:
    unet = make_unet()
    if variant == "fp16":
        unet.half()
    options = {"max_shard_size": "20KB"} if sharded else {}
    unet.save_pretrained(tmp_path, variant=variant, safe_serialization=ending == "safetensors", **options)
    assert len(list(tmp_path.glob(f"*.{ending}"))) > (3 if sharded else 0)
    checkpoint, notes = _import(tmp_path)
    assert any("float16" in line for line in notes) == (variant == "fp16")
    for name, value in unet.state_dict().items():
        assert checkpoint.weights["raw"][name].dtype == torch.float32
        assert torch.equal(checkpoint.weights["raw"][name], value.float())
    assert torch.equal(outputs(checkpoint.network()), outputs(unet.float()))


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_attention_under_its_old_names(ending: str, unet_folder: Path) -> None:
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = load_file(unet_folder / WEIGHTS)
    for new, old in names.items():
        for name in [n for n in weights if f".{new}." in n]:
            weights[name.replace(f".{new}.", f".{old}.")] = weights.pop(name)
    assert sum(".proj_attn." in name for name in weights) == 8  # 4 attentions: 1 down, 1 middle, 2 up
    (unet_folder / WEIGHTS).unlink()
    if ending == "safetensors":
        save_file(weights, unet_folder / WEIGHTS)
    else:
        torch.save(weights, unet_folder / "diffusion_pytorch_model.bin")
    checkpoint, _ = _import(unet_folder)
    assert torch.equal(outputs(checkpoint.network()), outputs(make_unet()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("mid_block.attentions.0.to_q.weight"), r"missing: mid_block\.attentions\.0\.to_q"),
        (lambda w: w.update({"conv_in.other": torch.zeros(1)}), r"left over: conv_in\.other"),
        (lambda w: w.update({"conv_in.weight": torch.zeros(8, 4, 3, 3)}), r"conv_in\.weight"),
        (lambda w: w["conv_in.weight"].fill_(torch.nan), "not finite"),
    ],
    ids=["missing", "left over", "shape", "nan"],
)
@pytest.mark.parametrize("place", ["unet", "ema"])
def test_weights_that_do_not_fit(
    place: str, change: Any, message: str, unet_folder: Path, tmp_path: Path
) -> None:
    make_unet(1).save_pretrained(tmp_path / "ema")
    _change_weights(unet_folder if place == "unet" else tmp_path / "ema", change)
    with pytest.raises(CheckpointError, match=message):
        _import(unet_folder, ema=tmp_path / "ema")


def _sharded(folder: Path) -> tuple[Path, Path]:
    """The index and the first shard."""
    make_unet().save_pretrained(folder, max_shard_size="20KB")
    (folder / WEIGHTS).unlink(missing_ok=True)
    return folder / f"{WEIGHTS}.index.json", min(folder.glob("*-of-*.safetensors"))


def test_an_index_that_promises_what_its_shards_do_not_hold(unet_folder: Path) -> None:
    _, shard = _sharded(unet_folder)
    weights = load_file(shard)
    weights.pop(min(weights))
    save_file(weights | {"new": torch.zeros(1)}, shard)
    with pytest.raises(CheckpointError, match=r"missing: conv_in.*left over: new"):
        _import(unet_folder)


@pytest.mark.parametrize("how", ["gone", "elsewhere", "empty"])
def test_shards_that_are_not_beside_their_index(how: str, unet_folder: Path, tmp_path: Path) -> None:
    index, shard = _sharded(unet_folder)
    if how == "gone":
        shard.unlink()
    elif how == "elsewhere":
        shard.rename(tmp_path / shard.name)
        edit_json(
            index,
            lambda c: c["weight_map"].update(
                {k: f"../{v}" for k, v in c["weight_map"].items() if v == shard.name}
            ),
        )
    else:
        edit_json(index, lambda c: c.pop("weight_map"))
    with pytest.raises(CheckpointError, match="not beside it"):
        _import(unet_folder)


@pytest.mark.parametrize("what", ["none", "pickle", "object", "list", "value", "truncated", "text"])
@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_files_that_hold_no_weights(what: str, ending: str, unet_folder: Path) -> None:
    good = load_file(unet_folder / WEIGHTS)
    path = unet_folder / f"diffusion_pytorch_model.{ending}"
    (unet_folder / WEIGHTS).unlink()
    if what == "pickle":
        path.write_bytes(pickle.dumps({"conv_in.weight": _Stranger()}))
    elif what == "object":
        torch.save({**good, "a": _Stranger()}, path)
    elif what == "list":
        torch.save([1], path)
    elif what == "value":
        torch.save({**good, "step": 3}, path)
    elif what == "truncated":
        if ending == "bin":
            torch.save(good, path)
        else:
            save_file(good, path)
        path.write_bytes(path.read_bytes()[:5000])
    elif what == "text":
        path.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(CheckpointError, match="model"):
        _import(unet_folder)


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
        _import(pipeline_folder)
    assert {"num_class_embeds": "num_classes"}.get(key, key) in str(caught.value)


@pytest.mark.parametrize(
    "change", [{"block_out_channels": [8, 18]}, {"act_fn": "none"}, {"layers_per_block": "a"}]
)
def test_a_network_that_diffusers_refuses(change: dict[str, Any], unet_folder: Path) -> None:
    edit_json(unet_folder / "config.json", lambda c: c.update(change))
    with pytest.raises(CheckpointError, match="cannot load"):
        _import(unet_folder)


def test_the_size_left_out(unet_folder: Path) -> None:
    edit_json(unet_folder / "config.json", lambda c: c.pop("sample_size"))
    with pytest.raises(CheckpointError, match="sample_size"):
        _import(unet_folder)


def test_channels_that_contradict_the_scheduler(tmp_path: Path) -> None:
    folder = write_pipeline(tmp_path / "a", make_unet(), make_scheduler(variance_type="learned_range"))
    with pytest.raises(CheckpointError, match="contradict"):
        _import(folder)
    make_unet(out_channels=6).save_pretrained(tmp_path / "b")
    with pytest.raises(CheckpointError, match=r"out_channels(.*\n)*.*--scheduler"):
        _import(tmp_path / "b")
    assert _import(tmp_path / "b", scheduler=folder)[0].process.variance == "learned_range"


def test_another_class_of_network(unet_folder: Path) -> None:
    edit_json(unet_folder / "config.json", lambda c: c.update(_class_name="UNet2DConditionModel"))
    with pytest.raises(CheckpointError, match="UNet2DConditionModel"):
        _import(unet_folder)


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
        _import(pipeline_folder)


def test_parts_of_a_pipeline_that_it_does_without(pipeline_folder: Path) -> None:
    edit_json(pipeline_folder / "model_index.json", lambda c: c.update(vae=[None, None], extra=None))
    _import(pipeline_folder)


def test_a_pipeline_without_its_scheduler(pipeline_folder: Path) -> None:
    file = pipeline_folder / "scheduler" / "scheduler_config.json"
    other = file.rename(pipeline_folder / "other.json")
    with pytest.raises(CheckpointError, match="no scheduler"):
        _import(pipeline_folder)
    assert _import(pipeline_folder, scheduler=other)[0].process.schedule == "linear"


@pytest.mark.parametrize("content", ["{", "[]", "null"])
@pytest.mark.parametrize("name", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
def test_json_that_is_none(name: str, content: str, pipeline_folder: Path) -> None:
    (pipeline_folder / name).write_text(content)
    with pytest.raises(CheckpointError, match="json"):
        _import(pipeline_folder)


def test_paths_that_hold_no_model(pipeline_folder: Path, tmp_path: Path) -> None:
    (pipeline_folder / "model_index.json").unlink()
    with pytest.raises(CheckpointError, match=r"name the UNet's folder: .*unet"):
        _import(pipeline_folder)
    with pytest.raises(CheckpointError, match="holds no model"):
        _import(pipeline_folder / "scheduler")
    with pytest.raises(CheckpointError, match="holds no model"):
        _import(pipeline_folder / "unet" / WEIGHTS)
    with pytest.raises(CheckpointError, match="nothing at"):
        _import(tmp_path / "a" / "b" / "c")
    with pytest.raises(CheckpointError, match="no scheduler"):
        _import(pipeline_folder / "unet", scheduler=tmp_path / "none.json")
    with pytest.raises(CheckpointError, match="cannot be read"):
        _import(pipeline_folder / "unet", ema=tmp_path / "none")


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
        _import(unet_folder)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(MissingRuntimeError, match="pip install"):
        _import(unet_folder)


def test_an_imported_checkpoint_holds_plain_values(pipeline_folder: Path) -> None:
    checkpoint, _ = _import(pipeline_folder)
    json.dumps(checkpoint.provenance)
    json.dumps(checkpoint.model.model_dump())
    assert all(isinstance(value, torch.Tensor) for value in checkpoint.weights["raw"].values())
    assert np.isfinite(checkpoint.process.training_betas()).all()
