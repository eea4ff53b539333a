"""State dicts of guided-diffusion: what is put right aloud, and what is refused with the reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from guided_files import SMALL, SMALL_UNET, imported, write
from guided_oracle import State, Unet

from flatq.checkpoint import Checkpoint
from flatq.errors import CheckpointError, InputError, UsageError
from flatq.interop.guided_diffusion import import_guided_diffusion, model_config
from flatq.interop.guided_flags import Flags
from flatq.interop.guided_weights import check_tensors, tensors_of
from flatq.network import build_network


@pytest.fixture(scope="module")
def state() -> State:
    """Of `SMALL`; not to be changed."""
    return SMALL_UNET.random_state(seed=0)


def _refused(folder: Path, content: object, flags: dict[str, Any], *names: str) -> None:
    model, flag_file = write(folder, content, flags)
    with pytest.raises(CheckpointError) as caught:
        import_guided_diffusion(model, flag_file, note=lambda line: None)
    for name in ("model.pt", *names):
        assert name in str(caught.value)
    assert caught.value.next_step


def _same(a: Checkpoint, b: Checkpoint) -> bool:
    first, second = a.weights["raw"], b.weights["raw"]
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_half_precision_is_widened_aloud(state: State, tmp_path: Path) -> None:
    half = {name: value.half() if "blocks" in name else value for name, value in state.items()}
    count = sum(value.dtype == torch.float16 for value in half.values())
    checkpoint, said = imported(tmp_path, half, SMALL)
    assert f"{count} tensors of float16" in said
    assert {value.dtype for value in checkpoint.weights["raw"].values()} == {torch.float32}
    wide = {name: value.float() for name, value in half.items()}
    assert _same(checkpoint, imported(tmp_path, wide, SMALL)[0])
    double = {name: value.double() for name, value in state.items()}
    narrowed, said = imported(tmp_path, double, SMALL)
    assert f"{len(state)} tensors of float64" in said
    plain, said = imported(tmp_path, state, SMALL)
    assert _same(narrowed, plain)
    assert "float" not in said


def test_the_prefix_of_a_parallel_module_is_taken_off_aloud(state: State, tmp_path: Path) -> None:
    prefixed = {f"module.{name}": value for name, value in state.items()}
    checkpoint, said = imported(tmp_path, prefixed, SMALL)
    assert '"module."' in said
    assert _same(checkpoint, imported(tmp_path, state, SMALL)[0])
    prefixed["out.2.bias"] = prefixed.pop("module.out.2.bias")
    _refused(tmp_path, prefixed, SMALL, '"module."', "out.2.bias")


def test_parameters_that_ask_for_gradients_are_taken(state: State, tmp_path: Path) -> None:
    parameters = {name: torch.nn.Parameter(value) for name, value in state.items()}
    checkpoint, _ = imported(tmp_path, parameters, SMALL)
    assert not any(value.requires_grad for value in checkpoint.weights["raw"].values())


class _Stranger:
    pass


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (lambda s: {"state_dict": s, "epoch": 3}, ["'state_dict' with a dict", "the one under 'state_dict'"]),
        (lambda s: s | {"step": 3}, ["'step' with a int"]),
        (lambda s: {"state": {}, "param_groups": [{"lr": 0.1}]}, ["the state of an optimizer", "opt*.pt"]),
        (lambda s: [s], ["list"]),
        (lambda s: {}, ["dict"]),
        (lambda s: torch.zeros(3), ["Tensor"]),
        (lambda s: _Stranger(), ["plain tensors", "a pickled test_guided_weights._Stranger"]),
        (lambda s: {"format": "flatq-checkpoint"}, ["a flatq checkpoint", "needs no import"]),
        (lambda s: {"down_blocks.0.resnets.0.conv1.weight": s["out.2.weight"]}, ["a diffusers UNet"]),
        (lambda s: {"layer1.weight": s["out.2.weight"]}, ["layer1.weight", "which code base"]),
        (lambda s: {k: v for k, v in s.items() if "output_blocks" not in k}, ["a classifier"]),
        (
            lambda s: s | {"input_blocks.0.0.weight": torch.zeros(32, 6, 3, 3)},
            ["6 channels in, 3 out", "super-resolution"],
        ),
        (lambda s: s | {"out.2.bias": torch.zeros(3, dtype=torch.int8)}, ["out.2.bias: int8"]),
        (lambda s: s | {"out.2.bias": torch.full((3,), torch.nan)}, ["not finite", "conv_out.bias"]),
    ],
)  # fmt: skip
def test_files_that_hold_something_else(
    content: Callable[[State], object], names: list[str], state: State, tmp_path: Path
) -> None:
    _refused(tmp_path, content(state), SMALL, *names)


def test_files_that_cannot_be_read(state: State, tmp_path: Path) -> None:
    model, flags = write(tmp_path, state, SMALL)
    model.write_bytes(model.read_bytes()[:10000])
    with pytest.raises(CheckpointError, match=r"model\.pt is damaged"):
        import_guided_diffusion(model, flags, note=lambda line: None)
    with pytest.raises(CheckpointError, match=r"there is no checkpoint .*other\.pt"):
        import_guided_diffusion(tmp_path / "other.pt", flags, note=lambda line: None)


LABELLED = Unet((1, 2), attention=(2,), classes=5)


@pytest.mark.parametrize(
    ("unet", "flags", "names"),
    [
        (SMALL_UNET, {"class_cond": True}, ["missing here: 1 (label_emb.weight)", "check class_cond in"]),
        (LABELLED, {}, ["left over: 1 (label_emb.weight)", "check class_cond in"]),
        (SMALL_UNET, {"num_channels": 64},
         ["time_embed.0.weight", "[256, 64]", "[128, 32]", "check num_channels in"]),
        (LABELLED, {"class_cond": True, "num_channels": 64}, ["time_embed.0.weight", "check num_channels"]),
        (SMALL_UNET, {"learn_sigma": True}, ["out.2.weight", "[6, 32, 3, 3]", "[3, 32, ", "learn_sigma"]),
        (Unet((1, 2), attention=(2,), out_channels=6), {}, ["out.2.weight", "learn_sigma"]),
        (SMALL_UNET, {"use_scale_shift_norm": False},
         ["input_blocks.1.0.emb_layers.1.weight", "[32, 128]", "[64, 128]", "use_scale_shift_norm"]),
        (Unet((1, 2), attention=(2,), scale_shift=False), {}, ["emb_layers", "use_scale_shift_norm"]),
        (SMALL_UNET, {"resblock_updown": True},
         ["left over: 4 (input_blocks.2.0.op.weight", "check resblock_updown in"]),
        (Unet((1, 2), attention=(2,), updown=True), {}, ["blocks.2.0.op.weight", "check resblock_updown in"]),
        (SMALL_UNET, {"attention_resolutions": "16"},
         ["input_blocks.1.1.qkv", "check attention_resolutions in"]),
        (SMALL_UNET, {"attention_resolutions": "4"}, ["left over", "check attention_resolutions in"]),
        (SMALL_UNET, {"num_res_blocks": 2}, ["num_res_blocks", "4 input blocks, not 6"]),
        (Unet((1, 2), blocks=3, attention=(2,)), {}, ["num_res_blocks"]),
        (SMALL_UNET, {"channel_mult": "1,2,2"}, ["channel_mult", "4 input blocks, not 6"]),
        (SMALL_UNET, {"channel_mult": "1,1"}, ["skip_connection", "check channel_mult in"]),
        (SMALL_UNET, {"channel_mult": "1,3"}, ["input_blocks.3.0.in_layers.2.weight", "channel_mult"]),
        (SMALL_UNET, {"image_size": 64, "channel_mult": ""}, ["image_size, which implies channel_mult"]),
    ],
    ids=str,
)  # fmt: skip
def test_the_flag_that_is_wrong_is_named(
    unet: Unet, flags: dict[str, Any], names: list[str], tmp_path: Path
) -> None:
    _refused(tmp_path, unet.random_state(seed=1), SMALL | flags, *names)


def test_missing_and_left_over_tensors_are_counted(state: State, tmp_path: Path) -> None:
    some = dict(state)
    for name in ("time_embed.2.bias", "out.0.weight", "out.0.bias", "out.2.bias"):
        del some[name]
    some["extra.weight"] = torch.zeros(2)
    _refused(
        tmp_path, some, SMALL,
        "missing here: 4 (time_embed.2.bias, out.0.weight, out.0.bias, ...)", "left over: 1 (extra.weight)",
        "that the file is whole",
    )  # fmt: skip


def test_every_tensor_alone_is_missed_and_every_shape_checked(state: State, tmp_path: Path) -> None:
    flags = Flags(**SMALL)
    wanted = tensors_of(flags, build_network(model_config(flags, 3, None)))
    assert sorted(tensor.key for tensor in wanted) == sorted(state)
    targets = [target for tensor in wanted for target in tensor.targets]
    assert len(targets) == len(set(targets))
    check_tensors(state, wanted, flags, tmp_path)
    for name, value in state.items():
        with pytest.raises(CheckpointError, match=name):
            check_tensors({k: v for k, v in state.items() if k != name}, wanted, flags, tmp_path)
        with pytest.raises(CheckpointError, match=name):
            check_tensors(state | {name: torch.cat([value, value, value])}, wanted, flags, tmp_path)


def test_the_average_is_checked_as_well(state: State, tmp_path: Path) -> None:
    short = {name: value for name, value in state.items() if name != "out.2.bias"}
    with pytest.raises(CheckpointError, match=r"ema\.pt.*\n.*out\.2\.bias"):
        imported(tmp_path, state, SMALL, ema=short)
    with pytest.raises(CheckpointError, match=r"ema\.pt"):
        imported(tmp_path, state, SMALL, ema=Unet((1, 2), attention=(2,), updown=True).random_state(2))
    with pytest.raises(CheckpointError, match=r"ema\.pt .*not finite"):
        imported(tmp_path, state, SMALL, ema=state | {"out.2.bias": torch.full((3,), torch.inf)})
    _, said = imported(tmp_path, state, SMALL, ema=state)
    assert "ema.pt holds the same weights as model.pt" in said


def test_labels_of_the_average_must_be_as_many(tmp_path: Path) -> None:
    other = Unet((1, 2), attention=(2,), classes=6).random_state(seed=2)
    with pytest.raises(CheckpointError, match=r"ema\.pt contradicts"):
        imported(tmp_path, LABELLED.random_state(seed=1), SMALL | {"class_cond": True}, ema=other)


def test_a_schedule_that_does_not_exist_is_refused(state: State, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="20 training steps"):
        imported(tmp_path, state, SMALL | {"diffusion_steps": 20})
    assert issubclass(UsageError, InputError)
