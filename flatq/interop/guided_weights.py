"""The tensors of a guided-diffusion UNet: read, checked against the flags, renamed for diffusers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch

from flatq.checkpoint import read_tensors
from flatq.errors import CheckpointError
from flatq.interop.guided_flags import Flags
from flatq.network import Denoiser
from flatq.progress import Note

__all__ = ["FIRST", "LABELS", "Tensor", "check_tensors", "read_state", "renamed", "tensors_of"]

State = dict[str, torch.Tensor]

FIRST = "input_blocks.0.0.weight"
"""The first convolution, [num_channels, image channels, 3, 3]."""
LABELS = "label_emb.weight"
"""The label embedding, [classes, 4 num_channels]."""

_LAYERS = {
    "": "",
    ".in_layers.0": ".norm1",
    ".in_layers.2": ".conv1",
    ".emb_layers.1": ".time_emb_proj",
    ".out_layers.0": ".norm2",
    ".out_layers.3": ".conv2",
    ".skip_connection": ".conv_shortcut",
    ".norm": ".group_norm",
    ".qkv": ".to_q",
    ".proj_out": ".to_out.0",
}
"""Layers of a residual block or an attention, in guided-diffusion's order; "" is the module itself."""


@dataclass(frozen=True)
class Tensor:
    """One tensor that the flags ask for.

    Attributes:
        key: its name in guided-diffusion.
        shape: its shape there.
        targets: its name in diffusers; the three of q, k and v for a fused one.
        heads: of a fused one.
    """

    key: str
    shape: tuple[int, ...]
    targets: tuple[str, ...]
    heads: int = 1


def read_state(path: Path, note: Note) -> State:
    """A plain state dict of a guided-diffusion UNet, in float32.

    `note` is told of converted dtypes and of a prefix that was removed.

    Raises:
        CheckpointError: a file that cannot be read, or holds something else: objects, an optimizer's state, a
            state dict inside a dict, a classifier, a super-resolution network, another code base's network.
    """
    content = read_tensors(path)
    state: State = {}
    refused = _other_content(content)
    if refused is None:
        state = {str(name): value.detach() for name, value in content.items()}
        wrapped = [name for name in state if name.startswith("module.")]
        if wrapped and len(wrapped) < len(state):
            plain = next(name for name in state if not name.startswith("module."))
            raise CheckpointError(
                f'{path} mixes tensors with and without the prefix "module."',
                expected="all of them, as DistributedDataParallel leaves it, or none",
                got=f"{len(wrapped)} of {len(state)}: {wrapped[0]}, but {plain}",
                next_step="save the state dict of the network alone",
            )
        if wrapped:
            note(f'{path.name}: removed the prefix "module." of all {len(state)} tensors')
        state = {name.removeprefix("module."): value for name, value in state.items()}
        refused = _other_network(state)
    if refused is not None:
        raise CheckpointError(
            f"{path} is not the state dict of a guided-diffusion network",
            expected="tensors by name, input_blocks.0.0.weight and so on",
            got=refused[0],
            next_step=refused[1],
        )
    for dtype in sorted({value.dtype for value in state.values()} - {torch.float32}, key=str):
        names = [name for name, value in state.items() if value.dtype == dtype]
        if not dtype.is_floating_point:
            raise CheckpointError(
                f"{path} holds a tensor that is not floating",
                expected="float16, bfloat16, float32 or float64",
                got=f"{names[0]}: {str(dtype).removeprefix('torch.')}",
                next_step="save the network before it is quantized",
            )
        note(f"{path.name}: {len(names)} tensors of {str(dtype).removeprefix('torch.')} taken as float32")
    return {name: value.float() for name, value in state.items()}


def _other_content(content: Any) -> tuple[str, str] | None:
    """What a file holds that is no state dict, and the next step; None for tensors by name."""
    if not isinstance(content, dict) or not content:
        return type(content).__name__, "save `model.state_dict()`"
    if content.get("format") == "flatq-checkpoint":
        return "a flatq checkpoint", "it needs no import: use it as it is"
    if {"state", "param_groups"} <= set(content):
        return "the state of an optimizer", "take model*.pt or ema_*.pt, which lie beside opt*.pt"
    odd = [name for name, value in content.items() if not isinstance(value, torch.Tensor)]
    if not odd:
        return None
    inner = [name for name in odd if isinstance(content[name], dict)]
    return (
        f"{odd[0]!r} with a {type(content[odd[0]]).__name__} among {len(content)} entries",
        f"save one state dict alone, such as the one under {inner[0]!r}"
        if inner
        else "save `model.state_dict()` alone",
    )


def _other_network(state: State) -> tuple[str, str] | None:
    """Which other network a state dict is of, and the next step; None for a guided-diffusion UNet."""
    if any(name.startswith(("down_blocks.", "up_blocks.")) for name in state):
        return "a diffusers UNet", "import its folder, without --flags"
    if FIRST not in state or state[FIRST].ndim != 4:
        return ", ".join(list(state)[:4]), "check the path, and which code base saved it"
    if not any(name.startswith("output_blocks.") for name in state):
        return (
            "input_blocks without output_blocks: a classifier",
            "import the diffusion network; flatq has no classifier guidance",
        )
    out = len(state.get("out.2.weight", ()))
    if state[FIRST].shape[1] == 6 and out in (3, 6):
        return (
            f"6 channels in, {out} out: a super-resolution network",
            "flatq has no sampling from a smaller image; import the base network",
        )
    return None


def tensors_of(flags: Flags, network: Denoiser) -> list[Tensor]:
    """Every tensor that the flags ask for, in guided-diffusion's order.

    Args:
        network: that of the flags in diffusers; only names and shapes of its weights are read.
    """
    shapes = {name: tuple(value.shape) for name, value in network.unet.state_dict().items()}
    found = []
    for source, target in _modules(flags):
        for theirs, ours in _LAYERS.items():
            for kind in ("weight", "bias"):
                name = f"{target}{ours}.{kind}"
                if name not in shapes:
                    continue
                shape, key = shapes[name], f"{source}{theirs}.{kind}"
                if kind == "weight" and theirs in (".qkv", ".proj_out"):  # 1x1 convolutions there
                    shape = (*shape, 1)
                if theirs != ".qkv":
                    found.append(Tensor(key, shape, (name,)))
                    continue
                heads = flags.heads(shape[0], up=source.startswith("output"))
                targets = tuple(f"{target}.to_{letter}.{kind}" for letter in "qkv")
                found.append(Tensor(key, (3 * shape[0], *shape[1:]), targets, heads))
    return found


def _modules(flags: Flags) -> Iterator[tuple[str, str]]:
    """The names of each module in guided-diffusion, as its `UNetModel` makes them, and in diffusers."""
    last = len(flags.widths) - 1
    plain = not flags.resblock_updown
    yield "time_embed.0", "time_embedding.linear_1"
    yield "time_embed.2", "time_embedding.linear_2"
    yield "label_emb", "class_embedding"
    yield "input_blocks.0.0", "conv_in"
    blocks = (f"input_blocks.{number}" for number in count(1))
    for level, attends in enumerate(flags.attention_levels):
        target = f"down_blocks.{level}"
        for layer, block in zip(range(flags.num_res_blocks), blocks, strict=False):
            yield f"{block}.0", f"{target}.resnets.{layer}"
            if attends:
                yield f"{block}.1", f"{target}.attentions.{layer}"
        if level < last:
            block = next(blocks)
            yield f"{block}.0" + ".op" * plain, f"{target}.downsamplers.0" + ".conv" * plain
    yield "middle_block.0", "mid_block.resnets.0"
    yield "middle_block.1", "mid_block.attentions.0"
    yield "middle_block.2", "mid_block.resnets.1"
    blocks = (f"output_blocks.{number}" for number in count())
    for level, attends in enumerate(reversed(flags.attention_levels)):
        target = f"up_blocks.{level}"
        for layer, block in zip(range(flags.num_res_blocks + 1), blocks, strict=False):
            yield f"{block}.0", f"{target}.resnets.{layer}"
            if attends:
                yield f"{block}.1", f"{target}.attentions.{layer}"
            if level < last and layer == flags.num_res_blocks:
                yield f"{block}.{1 + attends}" + ".conv" * plain, f"{target}.upsamplers.0" + ".conv" * plain
    yield "out.0", "conv_norm_out"
    yield "out.2", "conv_out"


def check_tensors(state: State, wanted: Sequence[Tensor], flags: Flags, path: Path) -> None:
    """Refuse tensors that are not exactly those wanted, and name the flag that is most likely wrong.

    Raises:
        CheckpointError: missing and left-over tensors, or a shape that contradicts the flags.
    """
    shapes = {tensor.key: tensor.shape for tensor in wanted}
    contradicted = [key for key, shape in shapes.items() if key in state and tuple(state[key].shape) != shape]
    missing = [key for key in shapes if key not in state]
    extra = [key for key in state if key not in shapes]
    if (missing or extra) and not any(key.startswith("time_embed.") for key in contradicted):
        raise CheckpointError(
            f"the tensors of {path} are not those that the flags ask for",
            expected=f"{len(shapes)} tensors; missing here: {_few(missing)}",
            got=f"{len(state)} tensors; left over: {_few(extra)}",
            next_step=f"check {_names_suspect(missing + extra, state, shapes, flags)} in the flags",
        )
    if contradicted:
        key = contradicted[0]
        raise CheckpointError(
            f"the tensor {key} of {path} contradicts the flags",
            expected=str(list(shapes[key])),
            got=f"{list(state[key].shape)}, and {len(contradicted) - 1} more tensors of other shapes",
            next_step=f"check {_shape_suspect(key, state[key].shape, shapes[key], flags)} in the flags",
        )


def _few(keys: Sequence[str]) -> str:
    if not keys:
        return "none"
    return f"{len(keys)} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"


def _names_suspect(
    differing: Sequence[str], state: Mapping[str, object], wanted: Mapping[str, object], flags: Flags
) -> str:
    """The flags that most likely made tensors missing or left over."""
    if differing == [LABELS]:
        return "class_cond"
    found, expected = (
        len({key.split(".")[1] for key in keys if key.startswith("input_blocks.")})
        for keys in (state, wanted)
    )
    if found != expected:
        return f"num_res_blocks and {_widths(flags)} (there are {found} input blocks, not {expected})"
    signs = {
        "label_emb.": "class_cond",
        ".op.": "resblock_updown",
        ".qkv.": "attention_resolutions",
        ".skip_connection.": _widths(flags),
    }
    named = [flag for sign, flag in signs.items() if any(sign in key for key in differing)]
    return " and ".join(named) or "that the file is whole, and every flag"


def _shape_suspect(key: str, got: Sequence[int], wanted: tuple[int, ...], flags: Flags) -> str:
    """The flag that most likely made a shape contradict."""
    if key.startswith(("time_embed.", "label_emb.")):
        return "num_channels"
    doubled = tuple(got[1:]) == wanted[1:] and wanted[0] in (2 * got[0], got[0] / 2)
    if key.startswith("out.2.") and doubled:
        return "learn_sigma"
    if ".emb_layers." in key and doubled:
        return "use_scale_shift_norm"
    return f"num_channels and {_widths(flags)}"


def _widths(flags: Flags) -> str:
    return "channel_mult" if flags.channel_mult else "image_size, which implies channel_mult,"


def renamed(state: State, wanted: Sequence[Tensor], flags: Flags) -> State:
    """The tensors under diffusers' names; q, k and v apart, 1x1 convolutions of attentions as matrices."""
    weights: State = {}
    for tensor in wanted:
        value = state[tensor.key]
        if len(tensor.shape) == 3:
            value = value.squeeze(-1)
        if len(tensor.targets) == 1:
            weights[tensor.targets[0]] = value
            continue
        if not flags.use_new_attention_order:  # rows by head, then by q, k, v; now the other way round
            by_head = value.reshape(tensor.heads, 3, -1, *value.shape[1:])
            value = by_head.transpose(0, 1).reshape(value.shape)
        for target, part in zip(tensor.targets, value.chunk(3), strict=True):
            weights[target] = part.clone()
    return weights
