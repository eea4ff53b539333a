"""The record of a run: its losses, TensorBoard, provenance. Nothing here trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from flatq.images import ImageSet
from flatq.packages import require
from flatq.train.config import TrainConfig
from flatq.version import __version__

__all__ = ["CURVE_EVERY", "Curve", "Scalars", "provenance"]

CURVE_EVERY = 50


@dataclass
class Curve:
    """The losses of a run: means over 50 steps, and the held-out losses.

    Attributes:
        points: {"step", "loss", and "sharp_loss" with SAM}, each complete.
        losses, sharp: of the steps since the last point; sharp at SAM's perturbed weights.
        last: the losses of the last 50 steps.
        heldout: points {"step", "raw", and "ema" where there is one}.
    """

    points: list[dict[str, float]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    sharp: list[float] = field(default_factory=list)
    last: list[float] = field(default_factory=list)
    heldout: list[dict[str, float]] = field(default_factory=list)

    def add(self, step: int, loss: float, sharp_loss: float | None) -> dict[str, float] | None:
        """Takes in a step's loss; every 50 steps gives the point that this completes."""
        self.losses.append(loss)
        self.last = [*self.last[-CURVE_EVERY + 1 :], loss]
        if sharp_loss is not None:
            self.sharp.append(sharp_loss)
        if step % CURVE_EVERY:
            return None
        self.points = self.points_until(step)
        self.losses, self.sharp = [], []
        return self.points[-1]

    def loss_at(self, step: int) -> float | None:
        """The mean loss of the point that this step completes, None where it completes none."""
        return next((point["loss"] for point in self.points[-1:] if point["step"] == step), None)

    def points_until(self, step: int) -> list[dict[str, float]]:
        """All points, the last one of the steps since the one before."""
        if not self.losses:
            return self.points
        sharp = {"sharp_loss": fmean(self.sharp)} if self.sharp else {}
        return [*self.points, {"step": step, "loss": fmean(self.losses), **sharp}]


class Scalars:
    """TensorBoard's scalars in `RUN/tensorboard`; nothing where they are not wanted.

    Args:
        folder: of the run.
        wanted: whether to write.

    Raises:
        MissingRuntimeError: tensorboard is not installed.
    """

    def __init__(self, folder: Path, wanted: bool) -> None:
        self._folder, self._wanted = folder / "tensorboard", wanted
        self._writer: Any = None
        if wanted:
            require("tensorboard", "TensorBoard", "cpu")

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Writes values by name at a step. The first call drops what a killed run wrote from there on."""
        if not self._wanted:
            return
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder), purge_step=step)
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def provenance(
    config: TrainConfig, images: ImageSet, processes: int, found: Mapping[str, Any]
) -> dict[str, Any]:
    """Plain values. No times in here: the same run gives the same file.

    Args:
        found: results of the run, such as its final loss.
    """
    import diffusers

    return {
        **config.model_dump(mode="json"),
        "rho": config.rho if config.method == "sam" else None,
        "sigma": config.sigma if config.method == "noise" else None,
        "gamma": config.perturbation or None,
        "data_name": images.name,
        "data_digest": images.digest,
        "data_count": len(images.pixels),
        "processes": processes,
        **found,
        "versions": {
            "flatq": __version__,
            "torch": str(torch.__version__),
            "diffusers": str(diffusers.__version__),
        },
    }
