"""Presets, files and single settings: what wins, and what is refused with which hint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flatq.errors import UsageError
from flatq.network import build_network
from flatq.train import TrainConfig, model_config_for
from flatq.train.configure import parse_settings, preset_names, read_preset, resolve, to_toml

PRESETS = ("cifar10-adm", "cifar10-small", "digits", "ffhq64", "lsun64")


def test_the_presets_are_there_and_valid() -> None:
    assert preset_names() == PRESETS
    for name in PRESETS:
        config = resolve((name, read_preset(name)), ("options", {"data": "somewhere"}))
        assert config.data == "somewhere"
        assert config.swa_start is not None
        assert config.ema_decays


def test_the_adm_preset_has_the_public_flags() -> None:
    config = resolve(("preset", read_preset("cifar10-adm")), ("options", {"data": "x"}))
    wanted = {
        "size": 32, "channels": (128, 256, 256, 256), "head_dim": 32, "layers_per_block": 3,
        "attention": (16, 8), "resblock_updown": True, "variance": "learned_range", "dropout": 0.3,
        "train_steps": 1000, "schedule": "cosine", "timesteps": "loss-second-moment", "lr": 1e-4,
        "batch_size": 128, "weight_decay": 0.0, "ema_decays": (0.9999,), "flip": True, "clip_grad": None,
    }  # fmt: skip
    assert {key: getattr(config, key) for key in wanted} == wanted

    model = model_config_for(config, (3, 32, 32))
    assert model.out_channels == 6
    assert model.unet["norm_num_groups"] == model.unet["attn_norm_num_groups"] == 32
    assert model.unet["down_block_types"] == [
        "ResnetDownsampleBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"
    ]  # fmt: skip
    assert model.unet["up_block_types"] == [
        "ResnetUpsampleBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"
    ]  # fmt: skip
    assert model.unet["downsample_type"] == model.unet["upsample_type"] == "resnet"


def test_the_configuration_expresses_guided_diffusions_network(shared_data: Path) -> None:
    """As many parameters as the original network with these flags."""
    import json

    import torch

    flags = json.loads((shared_data / "adm" / "a" / "config.json").read_text())["flags"]
    original = torch.load(shared_data / "adm" / "a" / "model.pt", weights_only=True)
    assert (flags["image_size"], flags["channel_mult"]) == (32, "")  # which means 1, 2, 2, 2
    widths = [flags["num_channels"] * m for m in (1, 2, 2, 2)]
    config = resolve(
        ("options", {
            "data": "x", "size": flags["image_size"], "channels": widths, "zero_init": True,
            "layers_per_block": flags["num_res_blocks"], "head_dim": flags["num_head_channels"],
            "attention": [int(r) for r in flags["attention_resolutions"].split(",")],
            "resblock_updown": flags["resblock_updown"], "variance": "learned_range",
        }),
    )  # fmt: skip
    network = build_network(model_config_for(config, (3, config.size or 0, config.size or 0)))
    ours = sum(p.numel() for p in network.parameters())
    assert ours == sum(value.numel() for value in original.values())


def test_later_layers_win_and_none_is_null() -> None:
    config = resolve(
        ("preset", read_preset("digits")),
        ("options", {"steps": 7, "swa_start": "none", "clip_grad": "none", "channels": [8, 8], "lr": 1}),
    )
    assert (config.steps, config.swa_start, config.clip_grad) == (7, None, None)
    assert config.channels == (8, 8)
    assert config.lr == 1.0
    assert config.patch_size == 2


def test_toml_comes_back_as_the_same_configuration(tmp_path: Path) -> None:
    odd = 'C:\\dir "ä" \x7f\t'
    first = TrainConfig(
        data=odd, method="sam", gamma=0.2, ema_decays=(0.9, 0.99), switch_ema="epoch", swa_start=3
    )
    path = tmp_path / "run.toml"
    path.write_text(to_toml(first), encoding="utf-8")
    assert resolve(("file", read_preset(str(path)))) == first


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("lr=1e-4", 1e-4), ("steps = 5", 5), ("flip=true", True), ("method=sam", "sam"),
        ("data=a=b.zip", "a=b.zip"), ("channels=32,64", [32, 64]), ("channels=[32]", [32]),
        ("data='12'", "12"), ("clip_grad=none", "none"), ("data=a,b", "a,b"),
    ],
)  # fmt: skip
def test_settings(text: str, value: Any) -> None:
    assert list(parse_settings([text]).values()) == [value]


@pytest.mark.parametrize("settings", [["lr"], ["=3"], ["lr=1", "lr=2"], [""]])
def test_bad_settings_are_refused(settings: list[str]) -> None:
    with pytest.raises(UsageError, match="--set"):
        parse_settings(settings)


@pytest.mark.parametrize(
    ("key", "hint"),
    [("learning_rate", "known: "), ("batchsize", "batch_size"), ("ema_decay", "ema_decays"), ("rh", "rho")],
)
def test_unknown_keys_are_refused_with_a_suggestion(key: str, hint: str) -> None:
    with pytest.raises(UsageError, match=f"unknown key '{key}'") as caught:
        resolve(("the file", {"data": "digits", key: 1}))
    assert caught.value.next_step is not None
    assert hint in caught.value.next_step
    assert "the file" in caught.value.what


def test_unknown_presets_are_refused_with_a_suggestion() -> None:
    with pytest.raises(UsageError, match="no preset 'cifar-small'") as caught:
        read_preset("cifar-small")
    assert caught.value.next_step == "did you mean cifar10-small?"


@pytest.mark.parametrize(
    "change",
    [
        {"steps": "100"}, {"steps": 1.5}, {"steps": True}, {"lr": "1e-4"}, {"lr": False}, {"flip": 1},
        {"flip": "yes"}, {"channels": 32}, {"channels": ["32"]}, {"channels": []}, {"data": 3},
        {"method": ["sam"]}, {"lr": float("nan")}, {"lr": float("inf")}, {"lr": -1.0}, {"rho": {"a": 1}},
        {"ema_decays": 0.999}, {"ema_decays": [1.0]}, {"swa_start": 1.5}, {"swa_start": 0},
        {"swa_start": "late"}, {"switch_ema": "batch"}, {"image_channels": 2}, {"data": "none"},
    ],
    ids=str,
)  # fmt: skip
def test_values_of_a_wrong_type_or_range_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="is not valid, from the file") as caught:
        resolve(("the file", {"data": "digits", **change}))
    assert next(iter(change)) in caught.value.what
    assert caught.value.expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gamma": 0.1}, "gamma needs"), ({"sam_every": 2}, "sam_every needs"),
        ({"ema_decays": [0.9, 0.9]}, "twice"), ({"ema_decays": [], "switch_ema": 1}, "switch_ema needs"),
        ({"swa_start": 11, "steps": 10}, "beyond"), ({"stop_loss": 0.1}, "heldout"),
        ({"ema_decays": [], "stop_weights": "ema"}, "stop_weights"), ({"label_dropout": 0.1}, "labels"),
        ({"num_classes": 3}, "labels"),
    ],
)  # fmt: skip
def test_contradictions_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve(("the file", {"data": "digits", **change}))


def test_no_images_are_refused() -> None:
    with pytest.raises(UsageError, match="no images") as caught:
        resolve(("preset", read_preset("cifar10-small")))
    assert caught.value.next_step == "name them with --data"


@pytest.mark.parametrize("content", [b"steps = ", b"\xff\xfe", b"a = 1\na = 2\n"])
def test_files_that_are_no_toml_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="cannot be read"):
        read_preset(str(path))
    with pytest.raises(UsageError, match="cannot be read"):
        read_preset(f"{tmp_path}/.toml")
    with pytest.raises(UsageError, match="cannot be read"):
        read_preset(str(tmp_path / "missing.toml"))


@pytest.mark.parametrize("text", ["[train]\nsteps = 3\n", "when = 2026-01-01\n", "steps = 2026-01-01\n"])
def test_tables_and_dates_in_a_file_are_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.toml"
    path.write_text('data = "digits"\n' + text)
    with pytest.raises(UsageError):
        resolve(("file", read_preset(str(path))))
