"""Flags of guided-diffusion: how they are read, what is said of them, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flatq.errors import UsageError
from flatq.interop.guided_flags import Flags, read_flags


def _read(tmp_path: Path, flags: object) -> tuple[Flags, str]:
    text = flags if isinstance(flags, str) else json.dumps(flags)
    (tmp_path / "flags.json").write_text(text, encoding="utf-8")
    said: list[str] = []
    return read_flags(tmp_path / "flags.json", said.append), "\n".join(said)


def test_what_is_left_out_is_guided_diffusion_s_default_and_said_aloud(tmp_path: Path) -> None:
    flags, said = _read(tmp_path, {})
    assert flags == Flags(
        image_size=64,
        num_channels=128,
        num_res_blocks=2,
        num_heads=4,
        num_heads_upsample=-1,
        num_head_channels=-1,
        attention_resolutions=(16, 8),
        dropout=0.0,
        use_scale_shift_norm=True,
        resblock_updown=False,
        use_new_attention_order=False,
        learn_sigma=False,
        class_cond=False,
        diffusion_steps=1000,
        noise_schedule="linear",
        rescale_timesteps=False,
        predict_xstart=False,
    )
    assert said.count("\n") == 0
    for part in (
        "num_heads=4",
        "attention_resolutions=16,8",
        "channel_mult=1,2,3,4",
        "noise_schedule=linear",
    ):
        assert part in said
    flags, said = _read(tmp_path, flags.resolved())
    assert not said
    assert flags.multipliers == (1, 2, 3, 4)


def test_values_of_a_command_line(tmp_path: Path) -> None:
    typed = {
        "image_size": 32,
        "num_channels": 64,
        "dropout": 0.3,
        "learn_sigma": True,
        "class_cond": False,
        "channel_mult": [1, 2, 2.5],
        "attention_resolutions": [16, 8],
        "num_head_channels": -1,
    }
    words = {
        "image_size": "32",
        "num_channels": " 64",
        "dropout": "0.3",
        "learn_sigma": "True",
        "class_cond": "f",
        "channel_mult": "1,2,2.5",
        "attention_resolutions": "16, 8",
        "num_head_channels": "-1",
    }
    assert _read(tmp_path, typed)[0] == _read(tmp_path, words)[0]
    assert _read(tmp_path, typed | {"attention_resolutions": 16})[0].attention_resolutions == (16,)
    assert _read(tmp_path, typed | {"attention_resolutions": ""})[0].attention_levels == (False,) * 3


@pytest.mark.parametrize(
    ("size", "multipliers"),
    [
        (512, (0.5, 1, 1, 2, 2, 4, 4)),
        (256, (1, 1, 2, 2, 4, 4)),
        (128, (1, 1, 2, 3, 4)),
        (64, (1, 2, 3, 4)),
        (32, (1, 2, 2, 2)),
    ],
)
def test_the_image_size_implies_the_multipliers(size: int, multipliers: tuple[float, ...]) -> None:
    assert Flags(image_size=size).multipliers == multipliers
    assert Flags(image_size=size).widths == tuple(int(m * 128) for m in multipliers)


def test_attention_lies_where_the_original_s_rates_fall() -> None:
    # Rates are image_size // side, also where the side divides nothing: 64 // 24 = 2, 64 // 100 = 0.
    assert Flags(attention_resolutions="24,100").attention_levels == (False, True, False, False)
    assert Flags(attention_resolutions="64,8").attention_levels == (True, False, False, True)


def test_flags_without_effect_are_said_aloud(tmp_path: Path) -> None:
    idle = {"lr": 1e-4, "batch_size": "128", "ema_rate": "0.9999", "schedule_sampler": "uniform"}
    inert = {"timestep_respacing": "250", "use_fp16": True, "use_kl": False, "input_pertub": 0.1}
    flags, said = _read(tmp_path, idle | inert | {"attention_resolutions": "48,16"})
    line = next(line for line in said.splitlines() if "without effect" in line)
    for name in (*idle, "timestep_respacing", "use_fp16", "input_pertub"):
        assert name in line
    assert "use_kl" not in line
    assert flags.timestep_respacing == "250"
    assert "no level" not in said
    _, said = _read(tmp_path, {"attention_resolutions": "200"})
    assert "no level of the network has 200 pixels" in said


def test_flags_may_stand_under_a_key(tmp_path: Path) -> None:
    flags, said = _read(tmp_path, {"flags": {"image_size": 128}, "torch": "2"})
    assert flags.image_size == 128
    assert 'under the key "flags"' in said


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ({"num_chanels": 64}, ["'num_chanels'", "did you mean 'num_channels'"]),
        ({"learn_sigmas": True}, ["'learn_sigmas'", "did you mean 'learn_sigma'"]),
        ({"zzz": 1}, ["'zzz'", "remove it"]),
        ({"large_size": 256, "small_size": 64}, ["super-resolution", "large_size, small_size"]),
        ({"image_size": True}, ["image_size", "integer", "True"]),
        ({"image_size": "big"}, ["image_size", "integer", "'big'"]),
        ({"num_channels": 0}, ["num_channels", "greater than 0"]),
        ({"num_channels": None}, ["num_channels", "integer", "None"]),
        ({"learn_sigma": "maybe"}, ["learn_sigma", "boolean", "'maybe'"]),
        ({"dropout": 1.5}, ["dropout", "1.5"]),
        ({"noise_schedule": "sqrt"}, ["noise_schedule", "'linear' or 'cosine'"]),
        ({"channel_mult": "1,two"}, ["channel_mult"]),
        ({"channel_mult": {"a": 1}}, ["channel_mult"]),
        ({"channel_mult": "1,0"}, ["channel_mult", "greater than 0"]),
        ({"channel_mult": "1,nan"}, ["channel_mult"]),
        ({"attention_resolutions": "16,0"}, ["attention_resolutions", "greater than 0"]),
        ({"attention_resolutions": "16.5"}, ["attention_resolutions", "integer"]),
        ({"image_size": 48}, ["channel_mult", "image_size 48", "32, 64, 128, 256, 512"]),
        ({"image_size": 20, "channel_mult": "1,1,1,1"}, ["image_size divisible by 8", "not 20"]),
        ({"num_channels": 48}, ["divisible by 32", "not 48"]),
        ({"num_head_channels": 96}, ["num_head_channels", "512", "not 96"]),
        ({"num_heads": 3}, ["num_heads", "not 3"]),
        ({"num_heads_upsample": 3}, ["num_heads_upsample", "not 3"]),
        ({"num_heads_upsample": 0}, ["num_heads_upsample", "-1 or positive"]),
        ({"num_head_channels": -2}, ["num_head_channels", "-1 or positive"]),
        ('{"image_size": 64, "image_size": 32}', ["'image_size'", "twice"]),
        ("{'image_size': 64}", ["cannot be read", "flags.json"]),
        ("[64]", ["cannot be read", "list"]),
    ],
    ids=str,
)
def test_flags_that_are_refused(flags: object, names: list[str], tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        _read(tmp_path, flags)
    for name in names:
        assert name in str(caught.value)
    assert caught.value.next_step


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"flags\.json"):
        read_flags(tmp_path / "flags.json", print)


def test_a_misspelt_training_flag_is_not_taken_for_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'batch_size'"):
        _read(tmp_path, {"batchsize": 3})
