"""What the benchmarks share: a network with random weights, what a result is marked with, and writing it."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

__all__ = ["UNET", "mark", "open_checkpoint", "write_json"]

UNET: dict[str, Any] = {
    "block_out_channels": [64, 128, 128],
    "layers_per_block": 2,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": 32,
    "norm_num_groups": 32,
    "attn_norm_num_groups": 32,
    "resnet_time_scale_shift": "scale_shift",
}
"""3 x 32 x 32, 7.3 million parameters."""


def open_checkpoint(path: Path | None, folder: Path, unet: dict[str, Any] = UNET) -> Any:
    """The checkpoint at a path, or else a network with random weights, saved in a folder."""
    import torch

    from flatq.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
    from flatq.network import build_network
    from flatq.network_config import ModelConfig
    from flatq.process import ProcessConfig

    if path is not None:
        return load_checkpoint(path)
    config = ModelConfig(image_size=32, image_channels=3, out_channels=3, unet=unet)
    torch.manual_seed(0)
    state = build_network(config).unet.state_dict()
    for name, value in state.items():
        if "norm" in name:  # else all are 1 and 0, which an optimizer might use
            value += 0.1 * torch.randn_like(value)
    checkpoint = Checkpoint(config, ProcessConfig(schedule="cosine"), {"raw": state}, {"method": "none"})
    return save_checkpoint(checkpoint, folder / "ckpt.pt")


def mark() -> dict[str, Any]:
    """The command, the commit and the machine as it is now."""
    from flatq.bench.run import this_machine
    from flatq.report.environment import source_commit

    return {
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "commit": source_commit(),
        "machine": this_machine().model_dump(mode="json"),
    }


def write_json(path: Path | None, content: dict[str, Any]) -> None:
    """Write a result into a folder that is made where it is missing; nothing without a path."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        print(f"written: {path}")
