"""Small models that diffusers itself builds and writes, for the tests of import and export."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.utils import logging

from flatq.checkpoint import Checkpoint
from flatq.interop.diffusers import import_diffusers

logging.set_verbosity_error()  # type: ignore[no-untyped-call]
logging.disable_progress_bar()  # type: ignore[no-untyped-call]

WEIGHTS = "diffusion_pytorch_model.safetensors"
SHAPE = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 8,
    "norm_num_groups": 4,
}
"""8 x 8 pixels, two levels, attention on the lower one and in the middle."""


def make_unet(seed: int = 0, **changes: Any) -> Any:
    """A `UNet2DModel` with random weights, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet: Any = diffusers.UNet2DModel(**{**SHAPE, **changes})  # type: ignore[no-untyped-call]
    return unet.eval()


def make_scheduler(kind: str = "DDPMScheduler", **options: Any) -> Any:
    return getattr(diffusers, kind)(**options)


def write_pipeline(folder: Path, unet: Any, scheduler: Any, kind: str = "DDPMPipeline") -> Path:
    getattr(diffusers, kind)(unet, scheduler).save_pretrained(folder)
    return folder


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def outputs(network: Any, channels: int = 3, classes: int | None = None) -> torch.Tensor:
    """The network's output on fixed inputs; flatq's and diffusers' networks alike."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, channels, 8, 8, generator=generator)
    label = None if classes is None else torch.tensor([0, 1, classes - 1])
    with torch.no_grad():
        found = network(x, torch.tensor([0, 17, 999]), label)
    return found if isinstance(found, torch.Tensor) else found.sample


def run_import(source: Path, **options: Any) -> tuple[Checkpoint, list[str]]:
    """The checkpoint, and what was noted."""
    notes: list[str] = []
    return import_diffusers(str(source), note=notes.append, **options), notes
