"""Small guided-diffusion networks as files, and the lines that an import says aloud."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from guided_oracle import State, Unet

from flatq.checkpoint import Checkpoint
from flatq.interop.guided_diffusion import import_guided_diffusion

BASE: dict[str, Any] = {"num_channels": 32, "num_res_blocks": 1}
"""Of every network here; what no flags say is guided-diffusion's default."""

SMALL: dict[str, Any] = BASE | {"image_size": 16, "channel_mult": "1,2", "attention_resolutions": "8"}
"""0.9 million parameters."""

SMALL_UNET = Unet((1, 2), attention=(2,))
"""The same in the oracle's words."""


def write(folder: Path, state: object, flags: object) -> tuple[Path, Path]:
    """`model.pt` and `flags.json` in the folder."""
    torch.save(state, folder / "model.pt")
    (folder / "flags.json").write_text(json.dumps(flags), encoding="utf-8")
    return folder / "model.pt", folder / "flags.json"


def imported(
    folder: Path, state: State, flags: dict[str, Any], ema: State | None = None
) -> tuple[Checkpoint, str]:
    """The checkpoint, and what was said."""
    said: list[str] = []
    model, flag_file = write(folder, state, flags)
    if ema is not None:
        torch.save(ema, folder / "ema.pt")
    averaged = None if ema is None else folder / "ema.pt"
    checkpoint = import_guided_diffusion(model, flag_file, averaged, note=said.append)
    assert all("\n" not in line for line in said)
    return checkpoint, "\n".join(said)
