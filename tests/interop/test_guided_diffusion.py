"""Imported guided-diffusion networks give the original's outputs, whatever their flags."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from guided_files import BASE, SMALL, SMALL_UNET, imported
from guided_oracle import Unet

from flatq.backends import RuntimeSettings
from flatq.calib.inputs import CalibrationPlan
from flatq.checkpoint import load_checkpoint, save_checkpoint
from flatq.export.deploy import export_artifact
from flatq.interop.guided_diffusion import import_guided_diffusion, process_config
from flatq.interop.guided_flags import Flags
from flatq.models import open_model
from flatq.process import Prediction, Process, ProcessConfig
from flatq.quantize.artifact import write_artifact
from flatq.quantize.rounding import quantize_checkpoint
from flatq.recipe import PRESETS
from flatq.samplers import SAMPLERS

# The two networks of the vectors: 32 pixels, widths 32, 64, 64, 64, attention at 16 and 8 pixels.
VECTORS = {
    "a": Unet((1, 2, 2, 2), attention=(2, 4), head_channels=16, new_order=True, updown=True, out_channels=6),
    "d": Unet((1, 2, 2, 2), attention=(2, 4), updown=True, out_channels=6),
}

# Name -> flags, and the same network in the oracle's words. What the flags leave out is guided-diffusion's
# default: num_heads 4, attention at 16 and 8 pixels, scale-shift norm, legacy order, no learned sigma.
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
    checkpoint, _ = imported(tmp_path, state, BASE | flags)
    assert checkpoint.model.num_classes == unet.classes
    save_checkpoint(checkpoint, tmp_path / "ckpt.pt")
    network = load_checkpoint(tmp_path / "ckpt.pt").network()
    assert sum(v.numel() for v in network.parameters()) == sum(v.numel() for v in state.values())
    x, t, label = _inputs(unet, flags["image_size"], n=1 if flags["image_size"] > 32 else 2)
    expected = unet(state, x.double(), t, label)
    assert _off(network(x, t, label), expected) < 1e-5  # about ten times what float32 loses here
    assert _off(network.double()(x.double(), t, label), expected) < 1e-12


@torch.no_grad()
@pytest.mark.parametrize(
    "wrong", [{"use_new_attention_order": True}, {"num_heads": 8}, {"num_head_channels": 64}]
)
def test_flags_that_no_tensor_tells_matter(wrong: dict[str, Any], tmp_path: Path) -> None:
    # The wrong order, or heads of another width, load without a complaint; the outputs must tell.
    state = SMALL_UNET.random_state(seed=4)
    x, t, _ = _inputs(SMALL_UNET, 16)
    expected = SMALL_UNET(state, x.double(), t)
    assert _off(imported(tmp_path, state, SMALL)[0].network()(x, t), expected) < 1e-5
    assert _off(imported(tmp_path, state, SMALL | wrong)[0].network()(x, t), expected) > 0.01


@torch.no_grad()
def test_a_timestep_that_training_rescaled(tmp_path: Path) -> None:
    state = SMALL_UNET.random_state(seed=5)
    flags = SMALL | {"diffusion_steps": 400, "rescale_timesteps": True}
    network = imported(tmp_path, state, flags)[0].network()
    x = _inputs(SMALL_UNET, 16)[0]
    t = torch.tensor([3, 399])
    expected = SMALL_UNET(state, x.double(), t.float() * 2.5)
    assert _off(network.double()(x.double(), t), expected) < 1e-12
    plain = imported(tmp_path, state, flags | {"rescale_timesteps": False})[0].network()
    assert _off(plain(x, t), expected) > 1e-3


@torch.no_grad()
def test_the_average_is_kept_beside_the_raw_weights(tmp_path: Path) -> None:
    raw, ema = SMALL_UNET.random_state(seed=6), SMALL_UNET.random_state(seed=7)
    checkpoint, _ = imported(tmp_path, raw, SMALL, ema)
    x, t, _ = _inputs(SMALL_UNET, 16)
    for average, state in (("raw", raw), ("ema", ema)):
        assert _off(checkpoint.network(average)(x, t), SMALL_UNET(state, x.double(), t)) < 1e-5
    assert checkpoint.choose() == "ema"
    provenance = checkpoint.provenance
    assert provenance["source"] == "guided-diffusion"
    assert provenance["flags"]["channel_mult"] == [1, 2]
    assert provenance["flags"]["num_heads"] == 4
    assert {file["file"] for file in provenance["files"].values()} == {"model.pt", "ema.pt", "flags.json"}
    assert len({file["sha256"] for file in provenance["files"].values()}) == 3


def test_one_head_width_is_said_in_diffusers_words(tmp_path: Path) -> None:
    # Attention widths 64 (level) and 64 (middle) with four heads: nothing that diffusers lacks.
    model = imported(tmp_path, SMALL_UNET.random_state(seed=0), SMALL)[0].model
    assert model.unet["attention_head_dim"] == 16
    assert (model.attention_heads, model.timestep_channels, model.timestep_scale) == (None, None, 1.0)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, ProcessConfig(schedule="linear")),
        ({"noise_schedule": "cosine", "learn_sigma": True},
         ProcessConfig(schedule="cosine", variance="learned_range")),
        ({"predict_xstart": True, "diffusion_steps": 4000},
         ProcessConfig(schedule="linear", train_steps=4000, prediction="sample")),
        ({"timestep_respacing": "ddim25"}, ProcessConfig(schedule="linear")),
    ],
)  # fmt: skip
def test_the_process_of_the_flags(flags: dict[str, Any], expected: ProcessConfig) -> None:
    assert process_config(Flags(**flags)) == expected


@torch.no_grad()
def test_sampling_follows_the_original_s_trajectory(shared_data: Path) -> None:
    folder = shared_data / "adm" / "a"
    checkpoint = import_guided_diffusion(folder / "model.pt", folder / "config.json", note=lambda line: None)
    network = checkpoint.network()
    recorded = np.load(folder / "sample20.npz")
    process = Process.from_config(checkpoint.process, "20")
    np.testing.assert_array_equal(process.timesteps[::-1], recorded["timesteps"])
    seen: list[torch.Tensor] = []

    def denoise(x: torch.Tensor, i: int) -> Prediction:
        seen.append(x)
        return process.predict(network(x, torch.full((len(x),), int(process.timesteps[i]))), x, i)

    noise = torch.from_numpy(recorded["noise"])
    x_t = torch.from_numpy(recorded["x_T"])
    seen.append(SAMPLERS["ancestral"].sample(denoise, x_t, process, lambda draw: noise[draw - 1], 0.0))
    # 4e-6 of the output at each step, gathered over twenty; x is about 4.
    np.testing.assert_allclose(torch.stack(seen[1:]).numpy(), recorded["traj"], atol=5e-4)


@torch.no_grad()
def test_from_import_to_a_deployment_with_labels(tmp_path: Path) -> None:
    # What diffusers' arguments cannot say: uneven heads, and a first level twice as wide.
    flags = SMALL | {"class_cond": True, "channel_mult": "2,1", "attention_resolutions": "16"}
    unet = Unet((2, 1), attention=(1,), classes=4)
    checkpoint, _ = imported(tmp_path, unet.random_state(seed=8), flags)
    assert checkpoint.model.attention_heads == (4, 4)
    assert checkpoint.model.timestep_channels == 32
    saved = save_checkpoint(checkpoint, tmp_path / "ckpt.pt")
    plan = CalibrationPlan(images=2, steps=2)
    artifact = quantize_checkpoint(saved, PRESETS["w8a8"], calibration=plan, threads=1)
    write_artifact(artifact, tmp_path / "w8a8")
    export_artifact(tmp_path / "w8a8", "onnxruntime", tmp_path / "w8a8" / "onnxruntime")
    x, t, label = _inputs(unet, 16)
    assert label is not None
    with open_model(tmp_path / "w8a8", RuntimeSettings(runtime="onnxruntime", threads=1)).runtime as runtime:
        output = runtime(x.numpy(), t.numpy(), {"label": label.numpy()})
    expected = saved.network()(x, t, label).numpy()
    rms = float(np.sqrt(((output - expected) ** 2).mean() / (expected**2).mean()))
    assert 1e-3 < rms < 0.2  # eight bits of a random network: neither float nor another network
