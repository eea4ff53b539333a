"""The tensors of a guided-diffusion UNet: read, checked against the flags, renamed for diffusers.

The walk follows openai/guided-diffusion's `UNetModel`. What the tensors mean for the configuration is
`flatq.interop.guided_diffusion`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from flatq.checkpoint import read_tensors
from flatq.errors import CheckpointError
from flatq.interop.guided_flags import Flags

__all__ = ["Tensor", "check_tensors", "read_state", "renamed", "tensors_of"]

State = dict[str, torch.Tensor]

_FIRST = "input_blocks.0.0.weight"
_LABELS = "label_emb.weight"

_RESBLOCK = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}


@dataclass(frozen=True)
class Tensor:
    """One tensor that the flags ask for.

    Attributes:
        key: its name in guided-diffusion.
        shape: what the flags make it.
        targets: its name in diffusers; the three of q, k and v for a fused one.
        heads: of a fused one.
    """

    key: str
    shape: tuple[int, ...]
    targets: tuple[str, ...]
    heads: int = 1


def read_state(path: Path, note: Callable[[str], None]) -> State:
    """A plain state dict of a guided-diffusion UNet, in float32.

    Says aloud what was widened or narrowed, and a prefix that was taken off.

    Raises:
        CheckpointError: a file that cannot be read, or holds something else: objects, an optimizer's state, a
            state dict inside a dict, a classifier, a super-resolution network, another code base's network.
    """
    content = read_tensors(path)
    if not isinstance(content, dict) or not content:
        raise _not_a_state_dict(path, f"{type(content).__name__}", "save `model.state_dict()`")
    if content.get("format") == "flatq-checkpoint":
        raise _not_a_state_dict(path, "a flatq checkpoint", "it needs no import: use it as it is")
    if {"state", "param_groups"} <= set(content):
        raise _not_a_state_dict(
            path, "the state of an optimizer", "take model*.pt or ema_*.pt, which lie beside opt*.pt"
        )
    odd = [name for name, value in content.items() if not isinstance(value, torch.Tensor)]
    if odd:
        inner = [name for name in odd if isinstance(content[name], dict)]
        raise _not_a_state_dict(
            path,
            f"{odd[0]!r} with a {type(content[odd[0]]).__name__} among {len(content)} entries",
            f"save one state dict alone, such as the one under {inner[0]!r}"
            if inner
            else "save `model.state_dict()` alone",
        )
    state = {str(name): value.detach() for name, value in content.items()}
    wrapped = [name for name in state if name.startswith("module.")]
    if len(wrapped) == len(state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
        note(f'{path.name}: the prefix "module." of all {len(state)} tensors was taken off')
    elif wrapped:
        plain = next(name for name in state if not name.startswith("module."))
        raise CheckpointError(
            f'{path} mixes tensors with and without the prefix "module."',
            expected="all of them, as DistributedDataParallel leaves it, or none",
            got=f"{len(wrapped)} of {len(state)}: {wrapped[0]}, but {plain}",
            next_step="save the state dict of the network alone",
        )
    _check_kind(state, path)
    return _as_float32(state, path, note)


def _not_a_state_dict(path: Path, got: str, next_step: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is not the state dict of a guided-diffusion network",
        expected="tensors by name, input_blocks.0.0.weight and so on",
        got=got,
        next_step=next_step,
    )


def _check_kind(state: State, path: Path) -> None:
    """Refuse other networks, by what gives them away."""
    if any(name.startswith(("down_blocks.", "up_blocks.")) for name in state):
        raise _not_a_state_dict(path, "a diffusers UNet", "import its folder, without --flags")
    if _FIRST not in state or state[_FIRST].ndim != 4:
        raise _not_a_state_dict(
            path, ", ".join(list(state)[:4]), "check the path, and which code base saved it"
        )
    if not any(name.startswith("output_blocks.") for name in state):
        raise _not_a_state_dict(
            path,
            "input_blocks without output_blocks: a classifier",
            "import the diffusion network; flatq has no classifier guidance",
        )
    out = state.get("out.2.weight")
    channels = state[_FIRST].shape[1]
    if channels == 6 and out is not None and len(out) in (3, 6):
        raise _not_a_state_dict(
            path,
            f"{channels} channels in, {len(out)} out: a super-resolution network",
            "flatq has no sampling from a smaller image; import the base network",
        )


def _as_float32(state: State, path: Path, note: Callable[[str], None]) -> State:
    for name, value in state.items():
        if not value.is_floating_point():
            raise CheckpointError(
                f"{path} holds a tensor that is not floating",
                expected="float16, bfloat16, float32 or float64",
                got=f"{name}: {str(value.dtype).removeprefix('torch.')}",
                next_step="save the network before it is quantized",
            )
    for dtype in sorted({value.dtype for value in state.values()} - {torch.float32}, key=str):
        count = sum(value.dtype == dtype for value in state.values())
        verb = "narrowed" if dtype == torch.float64 else "widened"
        note(f"{path.name}: {count} tensors of {str(dtype).removeprefix('torch.')} were {verb} to float32")
    return {name: value.float() for name, value in state.items()}


def tensors_of(flags: Flags, state: State) -> list[Tensor]:
    """Every tensor that the flags ask for, in guided-diffusion's order.

    The image channels and the number of classes, which no flag gives, are those of `state`.
    """
    channels = state[_FIRST].shape[1]
    out_channels = 2 * channels if flags.learn_sigma else channels
    base, embedded, widths = flags.num_channels, 4 * flags.num_channels, flags.widths
    found = [
        *_layer("time_embed.0", "time_embedding.linear_1", embedded, base),
        *_layer("time_embed.2", "time_embedding.linear_2", embedded, embedded),
    ]
    if flags.class_cond:
        classes = len(state[_LABELS]) if _LABELS in state else 1000
        found.append(Tensor(_LABELS, (classes, embedded), ("class_embedding.weight",)))
    found += _layer("input_blocks.0.0", "conv_in", widths[0], channels, 3, 3)
    found += _way_down(flags)
    last = widths[-1]
    found += _resblock("middle_block.0", "mid_block.resnets.0", last, last, flags)
    found += _attention("middle_block.1", "mid_block.attentions.0", last, flags.heads(last))
    found += _resblock("middle_block.2", "mid_block.resnets.1", last, last, flags)
    found += _way_up(flags)
    found += _layer("out.0", "conv_norm_out", widths[0])
    found += _layer("out.2", "conv_out", out_channels, widths[0], 3, 3)
    return found


def _way_down(flags: Flags) -> Iterator[Tensor]:
    block, width = 1, flags.widths[0]
    levels = list(zip(flags.widths, flags.attention_levels, strict=True))
    for level, (wide, attends) in enumerate(levels):
        for layer in range(flags.num_res_blocks):
            source, target = f"input_blocks.{block}", f"down_blocks.{level}"
            yield from _resblock(f"{source}.0", f"{target}.resnets.{layer}", width, wide, flags)
            if attends:
                yield from _attention(f"{source}.1", f"{target}.attentions.{layer}", wide, flags.heads(wide))
            block, width = block + 1, wide
        if level + 1 < len(levels):
            source, target = f"input_blocks.{block}.0", f"down_blocks.{level}.downsamplers.0"
            yield from _resampling(source, "op", target, wide, flags)
            block += 1


def _way_up(flags: Flags) -> Iterator[Tensor]:
    skips = [flags.widths[0]]
    for level, wide in enumerate(flags.widths):
        skips += [wide] * (flags.num_res_blocks + (level + 1 < len(flags.widths)))
    block, width = 0, flags.widths[-1]
    levels = list(zip(flags.widths, flags.attention_levels, strict=True))[::-1]
    for level, (wide, attends) in enumerate(levels):
        for layer in range(flags.num_res_blocks + 1):
            source, target, part = f"output_blocks.{block}", f"up_blocks.{level}", 1
            inner = width + skips.pop()
            yield from _resblock(f"{source}.0", f"{target}.resnets.{layer}", inner, wide, flags)
            if attends:
                heads = flags.heads(wide, up=True)
                yield from _attention(f"{source}.1", f"{target}.attentions.{layer}", wide, heads)
                part = 2
            if level + 1 < len(levels) and layer == flags.num_res_blocks:
                yield from _resampling(f"{source}.{part}", "conv", f"{target}.upsamplers.0", wide, flags)
            block, width = block + 1, wide


def _layer(source: str, target: str, *shape: int) -> Iterator[Tensor]:
    """Weight and bias."""
    yield Tensor(f"{source}.weight", shape, (f"{target}.weight",))
    yield Tensor(f"{source}.bias", shape[:1], (f"{target}.bias",))


def _resblock(source: str, target: str, inner: int, wide: int, flags: Flags) -> Iterator[Tensor]:
    told = 2 * wide if flags.use_scale_shift_norm else wide
    shapes: dict[str, tuple[int, ...]] = {
        "in_layers.0": (inner,),
        "in_layers.2": (wide, inner, 3, 3),
        "emb_layers.1": (told, 4 * flags.num_channels),
        "out_layers.0": (wide,),
        "out_layers.3": (wide, wide, 3, 3),
    }
    if inner != wide:
        shapes["skip_connection"] = (wide, inner, 1, 1)
    for part, shape in shapes.items():
        yield from _layer(f"{source}.{part}", f"{target}.{_RESBLOCK[part]}", *shape)


def _resampling(source: str, name: str, target: str, wide: int, flags: Flags) -> Iterator[Tensor]:
    if flags.resblock_updown:
        yield from _resblock(source, target, wide, wide, flags)
    else:
        yield from _layer(f"{source}.{name}", f"{target}.conv", wide, wide, 3, 3)


def _attention(source: str, target: str, wide: int, heads: int) -> Iterator[Tensor]:
    yield from _layer(f"{source}.norm", f"{target}.group_norm", wide)
    for part, shape in (("weight", (3 * wide, wide, 1)), ("bias", (3 * wide,))):
        targets = tuple(f"{target}.to_{letter}.{part}" for letter in "qkv")
        yield Tensor(f"{source}.qkv.{part}", shape, targets, heads)
    yield Tensor(f"{source}.proj_out.weight", (wide, wide, 1), (f"{target}.to_out.0.weight",))
    yield Tensor(f"{source}.proj_out.bias", (wide,), (f"{target}.to_out.0.bias",))


def check_tensors(state: State, wanted: Sequence[Tensor], flags: Flags, path: Path) -> None:
    """Refuse tensors that are not exactly those wanted, and name the flag that is most likely wrong.

    Raises:
        CheckpointError: missing and left-over tensors, or a shape that contradicts the flags.
    """
    shapes = {tensor.key: tensor.shape for tensor in wanted}
    assert len(shapes) == len(wanted)
    contradicted = [key for key, shape in shapes.items() if key in state and tuple(state[key].shape) != shape]
    missing = [key for key in shapes if key not in state]
    extra = [key for key in state if key not in shapes]
    if (missing or extra) and not any(key.startswith("time_embed.") for key in contradicted):
        raise CheckpointError(
            f"the tensors of {path} are not those that the flags ask for",
            expected=f"{len(shapes)} tensors; missing here: {_few(missing)}",
            got=f"{len(state)} tensors; left over: {_few(extra)}",
            next_step=f"check {_suspects(missing + extra, state, shapes, flags)} in the flags",
        )
    if contradicted:
        key = contradicted[0]
        raise CheckpointError(
            f"the tensor {key} of {path} contradicts the flags",
            expected=str(list(shapes[key])),
            got=f"{list(state[key].shape)}, and {len(contradicted) - 1} more tensors of other shapes",
            next_step=f"check {_suspect(key, tuple(state[key].shape), shapes[key], flags)} in the flags",
        )


def _few(keys: Sequence[str]) -> str:
    if not keys:
        return "none"
    return f"{len(keys)} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"


def _suspects(
    differing: Sequence[str], state: Mapping[str, torch.Tensor], wanted: Mapping[str, object], flags: Flags
) -> str:
    """The flags that most likely made tensors missing or left over."""
    if all(key == _LABELS for key in differing):
        return "class_cond"
    found, expected = _blocks(state), _blocks(wanted)
    if found != expected:
        levels = len(flags.widths)
        fits = (found - levels) / levels  # found = 1 + levels x blocks + levels - 1
        hint = f" ({fits:.0f} would fit)" if fits >= 1 and fits.is_integer() else ""
        return f"num_res_blocks{hint} and {_levels(flags)} (there are {found} input blocks, not {expected})"
    signs = {
        "label_emb.": "class_cond",
        ".op.": "resblock_updown",
        ".qkv.": "attention_resolutions",
        ".skip_connection.": _levels(flags),
    }
    named = [flag for sign, flag in signs.items() if any(sign in key for key in differing)]
    return " and ".join(named) or "that the file is whole, and every flag"


def _levels(flags: Flags) -> str:
    return "channel_mult" if flags.channel_mult else "image_size, which implies channel_mult,"


def _blocks(keys: Mapping[str, object]) -> int:
    return len({key.split(".")[1] for key in keys if key.startswith("input_blocks.")})


def _suspect(key: str, got: tuple[int, ...], wanted: tuple[int, ...], flags: Flags) -> str:
    """The flag that most likely made a shape contradict."""
    if key.startswith(("time_embed.", "label_emb.")):
        return "num_channels"
    rows = (got[0], wanted[0]) if got else (0, wanted[0])
    doubled = max(rows) == 2 * min(rows) and got[1:] == wanted[1:]
    if key.startswith("out.2.") and doubled:
        return "learn_sigma"
    if ".emb_layers." in key and doubled:
        return "use_scale_shift_norm"
    return f"num_channels and {_levels(flags)}"


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
