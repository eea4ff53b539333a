"""Imported guided-diffusion networks give the original's outputs, whatever their flags."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from guided_oracle import State, Unet

from flatq.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from flatq.interop.guided_diffusion import import_guided_diffusion
from flatq.process import Process, ProcessConfig

# The two networks of the vectors: 32 pixels, widths 32, 64, 64, 64, attention at 16 and 8 pixels.
VECTORS = {
    "a": Unet((1, 2, 2, 2), attention=(2, 4), head_channels=16, new_order=True, updown=True, out_channels=6),
    "d": Unet((1, 2, 2, 2), attention=(2, 4), updown=True, out_channels=6),
}

# Name -> flags, and the same network in the oracle's words. What the flags leave out is guided-diffusion's
# default: num_heads 4, attention at 16 and 8 pixels, scale-shift norm, legacy order, no learned sigma.
BASE = {"num_channels": 32, "num_res_blocks": 1}
NETWORKS: dict[str, tuple[dict[str, Any], Unet]] = {
    "64 pixels, labelled": (
        {"image_size": 64, "class_cond": True},
        Unet((1, 2, 3, 4), attention=(4, 8), classes=1000),
    ),
    "128 pixels, heads of 32": (
        {"image_size": 128, "num_head_channels": 32, "learn_sigma": True},
        Unet((1, 1, 2, 3, 4), attention=(8, 16), head_channels=32, out_channels=6),
    ),
    "ten classes, new order, up and down by blocks": (
        {
            "image_size": 32,
            "class_cond": True,
            "num_head_channels": 32,
            "use_new_attention_order": True,
            "resblock_updown": True,
            "learn_sigma": True,
        },
        Unet(
            (1, 2, 2, 2),
            attention=(2, 4),
            head_channels=32,
            new_order=True,
            updown=True,
            out_channels=6,
            classes=10,
        ),
    ),
    "uneven heads, new order": (
        {
            "image_size": 16,
            "channel_mult": "1,2,3",
            "num_heads": 2,
            "use_new_attention_order": True,
            "attention_resolutions": "16,8,4",
        },
        Unet((1, 2, 3), attention=(1, 2, 4), heads=2, new_order=True),
    ),
    "other heads on the way up, legacy order": (
        {"image_size": 16, "channel_mult": "1,2", "num_heads": 2, "num_heads_upsample": 8},
        Unet((1, 2), attention=(1, 2), heads=2, heads_up=8),
    ),
    "other heads on the way up, one width, new order": (
        {
            "image_size": 16,
            "channel_mult": "1,1",
            "num_heads": 8,
            "num_heads_upsample": 1,
            "use_new_attention_order": True,
        },
        Unet((1, 1), attention=(1, 2), heads=8, heads_up=1, new_order=True),
    ),
    "heads on the way up that no attention there has": (
        {
            "image_size": 16,
            "channel_mult": "1,3",
            "num_heads": 3,
            "num_heads_upsample": 5,
            "attention_resolutions": "4",
        },
        Unet((1, 3), heads=3, heads_up=5),
    ),
    "head width stands above the heads": (
        {
            "image_size": 16,
            "channel_mult": "1,2",
            "num_heads": 5,
            "num_heads_upsample": 7,
            "num_head_channels": 8,
        },
        Unet((1, 2), attention=(1, 2), head_channels=8),
    ),
    "no attention, no scale-shift norm": (
        {"image_size": 32, "attention_resolutions": "64", "use_scale_shift_norm": False},
        Unet((1, 2, 2, 2), scale_shift=False),
    ),
    "up and down by blocks, no scale-shift norm, one attention": (
        {
            "image_size": 32,
            "attention_resolutions": "8",
            "use_scale_shift_norm": False,
            "resblock_updown": True,
            "num_heads": 1,
        },
        Unet((1, 2, 2, 2), attention=(4,), heads=1, scale_shift=False, updown=True),
    ),
    "attention everywhere, three blocks": (
        {
            "image_size": 16,
            "num_res_blocks": 3,
            "channel_mult": "1,2",
            "attention_resolutions": "16,8",
            "resblock_updown": True,
        },
        Unet((1, 2), blocks=3, attention=(1, 2), updown=True),
    ),
    "a first level twice as wide, labelled": (
        {"image_size": 16, "channel_mult": "2,3,2", "class_cond": True, "num_head_channels": 32},
        Unet((2, 3, 2), attention=(1, 2), head_channels=32, classes=3),
    ),
    "a first level half as wide, uneven heads": (
        {"image_size": 16, "num_channels": 64, "channel_mult": "0.5,1", "use_scale_shift_norm": False},
        Unet((0.5, 1), channels=64, attention=(1, 2), scale_shift=False),
    ),
    "one level": (
        {"image_size": 8, "channel_mult": "3", "num_head_channels": 48, "use_new_attention_order": True},
        Unet((3,), attention=(1,), head_channels=48, new_order=True),
    ),
    "grey, learned sigma, five levels, two blocks": (
        {
            "image_size": 32,
            "num_res_blocks": 2,
            "channel_mult": "1,1,2,1,2",
            "learn_sigma": True,
            "attention_resolutions": "16,4",
        },
        Unet((1, 1, 2, 1, 2), blocks=2, attention=(2, 8), image_channels=1, out_channels=2),
    ),
}


def _write(folder: Path, state: State, flags: dict[str, Any]) -> tuple[Path, Path]:
    torch.save(state, folder / "model.pt")
    (folder / "flags.json").write_text(json.dumps(flags), encoding="utf-8")
    return folder / "model.pt", folder / "flags.json"


def _import(folder: Path, state: State, flags: dict[str, Any]) -> Checkpoint:
    return import_guided_diffusion(*_write(folder, state, flags), note=lambda line: None)


def _inputs(unet: Unet, size: int, n: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, unet.image_channels, size, size, generator=generator)
    label = None if unet.classes is None else torch.arange(n) * (unet.classes - 1)
    return x, torch.tensor([37, 999])[:n], label


def _off(output: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference over largest output."""
    assert output.shape == expected.shape
    return float((output.double() - expected.double()).abs().max() / expected.double().abs().max())


@torch.no_grad()
@pytest.mark.parametrize("name", VECTORS)
def test_the_oracle_is_the_original(name: str, shared_data: Path) -> None:
    vectors = np.load(shared_data / "adm" / name / "vectors.npz")
    state = torch.load(shared_data / "adm" / name / "model.pt", weights_only=True)
    x, t, expected = (torch.from_numpy(vectors[key]) for key in ("x", "t", "out"))
    assert _off(VECTORS[name](state, x.double(), t), expected) < 1e-5  # the original ran in float32


@torch.no_grad()
@pytest.mark.parametrize("name", VECTORS)
def test_the_original_s_outputs(name: str, shared_data: Path) -> None:
    folder = shared_data / "adm" / name
    checkpoint = import_guided_diffusion(folder / "model.pt", folder / "config.json", note=lambda line: None)
    vectors = np.load(folder / "vectors.npz")
    output = checkpoint.network()(torch.from_numpy(vectors["x"]), torch.from_numpy(vectors["t"]))
    assert _off(output, torch.from_numpy(vectors["out"])) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_the_oracle_s_outputs(name: str, tmp_path: Path) -> None:
    flags, unet = NETWORKS[name]
    state = unet.random_state(seed=3)
    saved = save_checkpoint(_import(tmp_path, state, BASE | flags), tmp_path / "ckpt.pt")
    network = load_checkpoint(tmp_path / "ckpt.pt").network()
    assert saved.model.num_classes == unet.classes
    assert sum(v.numel() for v in network.parameters()) == sum(v.numel() for v in state.values())
    x, t, label = _inputs(unet, flags["image_size"], n=1 if flags["image_size"] > 32 else 2)
    expected = unet(state, x.double(), t, label)
    print(_off(network(x, t, label), expected), expected.abs().max())
    assert _off(network(x, t, label), expected) < 1e-5
    d = _off(network.double()(x.double(), t, label), expected)
    print(d)
    assert _off(network.double()(x.double(), t, label), expected) < 1e-12
