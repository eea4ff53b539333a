"""Checkpoints of openai/guided-diffusion (ADM) and DDPM-IP: a state dict and its flags become a `Checkpoint`.

The flags are `flatq.interop.guided_flags`', the tensors `flatq.interop.guided_weights`'; here stands what
both mean for the network and the process.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatq.checkpoint import Checkpoint, check_weights, file_digest
from flatq.interop.guided_flags import GROUPS, Flags, read_flags
from flatq.network_config import ModelConfig
from flatq.process import ProcessConfig
from flatq.progress import Note
from flatq.version import __version__

if TYPE_CHECKING:
    import torch

__all__ = ["import_guided_diffusion", "model_config", "process_config"]


def import_guided_diffusion(model: Path, flags: Path, ema: Path | None = None, *, note: Note) -> Checkpoint:
    """The network of a state dict as guided-diffusion's `UNetModel` saves it.

    Args:
        model: `model*.pt`, or an `ema_*.pt` alone; becomes the `raw` weights.
        flags: JSON of the flags that it was trained with, see `read_flags`.
        ema: `ema_*.pt` of the same network; becomes the `ema` weights.
        note: told in one line each which defaults were taken, what has no effect and what was changed.

    Returns:
        A checkpoint, not saved. Head width, order of q, k and v, dropout, schedule and the meaning of the
        output are those of the flags: no tensor tells them.

    Raises:
        UsageError: flags that are unknown, not valid or make no network or process.
        CheckpointError: files that are not such state dicts, or contradict the flags.
    """
    import torch

    from flatq.interop.guided_weights import FIRST, LABELS, check_tensors, read_state, renamed, tensors_of
    from flatq.network import build_network

    given = read_flags(flags, note)
    process = process_config(given)
    process.training_betas()
    files = {"raw": model} if ema is None else {"raw": model, "ema": ema}
    states = {average: read_state(path, note) for average, path in files.items()}
    raw = states["raw"]
    classes = len(raw.get(LABELS, range(1000))) if given.class_cond else None
    config = model_config(given, raw[FIRST].shape[1], classes)
    with torch.device("meta"):
        network = build_network(config)
    wanted = tensors_of(given, network)
    weights: dict[str, dict[str, torch.Tensor]] = {}
    for average, path in files.items():
        check_tensors(states[average], wanted, given, path)
        weights[average] = renamed(states[average], wanted, given)
        check_weights(network, weights[average], f"{path} ({average} weights)")
    if ema is not None and all(torch.equal(states["ema"][key], raw[key]) for key in raw):
        note(f"{ema.name} holds the same weights as {model.name}")
    provenance = {
        "source": "guided-diffusion",
        "flags": given.resolved(),
        "files": {
            name: {"file": path.name, "sha256": file_digest(path)}
            for name, path in {**files, "flags": flags}.items()
        },
        "versions": {"flatq": __version__},
    }
    return Checkpoint(config, process, weights, provenance)


def model_config(flags: Flags, image_channels: int, num_classes: int | None) -> ModelConfig:
    """The network of the flags as a diffusers `UNet2DModel`.

    Args:
        num_classes: rows of the label embedding, None without labels.
    """
    head_dim, heads = _attention(flags)
    kind, down, up = (
        ("resnet", "ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")
        if flags.resblock_updown
        else ("conv", "DownBlock2D", "UpBlock2D")
    )
    levels = flags.attention_levels
    unet: dict[str, Any] = {
        "block_out_channels": list(flags.widths),
        "layers_per_block": flags.num_res_blocks,
        "down_block_types": ["AttnDownBlock2D" if attends else down for attends in levels],
        "up_block_types": ["AttnUpBlock2D" if attends else up for attends in reversed(levels)],
        "downsample_type": kind,
        "upsample_type": kind,
        "attention_head_dim": head_dim,
        "norm_num_groups": GROUPS,
        "attn_norm_num_groups": GROUPS,  # left out, the middle attention has no norm
        "norm_eps": 1e-5,
        "resnet_time_scale_shift": "scale_shift" if flags.use_scale_shift_norm else "default",
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "dropout": flags.dropout,
    }
    apart = flags.widths[0] != flags.num_channels
    if apart:
        unet["time_embedding_dim"] = 4 * flags.num_channels
    return ModelConfig(
        image_size=flags.image_size,
        image_channels=image_channels,
        out_channels=2 * image_channels if flags.learn_sigma else image_channels,
        num_classes=num_classes,
        attention_heads=heads,
        timestep_channels=flags.num_channels if apart else None,
        timestep_scale=1000 / flags.diffusion_steps if flags.rescale_timesteps else 1.0,
        unet=unet,
    )


def _attention(flags: Flags) -> tuple[int | None, tuple[int, int] | None]:
    """`attention_head_dim` where one width fits all heads, else None and the numbers of heads."""
    head_dims = {width // flags.heads(width, up=up) for width, up in flags.attentions}
    if len(head_dims) == 1:
        return head_dims.pop(), None
    up = flags.num_heads if flags.num_heads_upsample == -1 else flags.num_heads_upsample
    return None, (flags.num_heads, up)


def process_config(flags: Flags) -> ProcessConfig:
    """The process that the flags say the network was trained for."""
    return ProcessConfig(
        schedule=flags.noise_schedule,
        train_steps=flags.diffusion_steps,
        prediction="sample" if flags.predict_xstart else "epsilon",
        variance="learned_range" if flags.learn_sigma else "fixed_large",
    )
