"""What a run says of itself: the curve, `train.json`, provenance, TensorBoard. Nothing here trains."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from flatq.errors import MissingRuntimeError
from flatq.files import replacing
from flatq.images import ImageSet
from flatq.train.config import TrainConfig
from flatq.version import __version__

__all__ = ["CURVE_EVERY", "Curve", "Scalars", "provenance", "write_json"]

CURVE_EVERY = 50


class Curve:
    """The losses of a run: means over 50 steps, and the held-out losses.

    Attributes:
        heldout: points {"step", "raw", and "ema" where there is one}.
    """

    def __init__(self) -> None:
        self._points: list[dict[str, float]] = []
        self._losses: list[float] = []
        self._sharp: list[float] = []
        self._last: list[float] = []
        self.heldout: list[dict[str, float]] = []

    def add(self, step: int, loss: float, sharp_loss: float | None) -> dict[str, float] | None:
        """Takes in a step's loss; every 50 steps gives the point that this completes."""
        self._losses.append(loss)
        self._last = [*self._last[-CURVE_EVERY + 1 :], loss]
        if sharp_loss is not None:
            self._sharp.append(sharp_loss)
        if step % CURVE_EVERY:
            return None
        point = self._point(step)
        self._points.append(point)
        self._losses, self._sharp = [], []
        return point

    def _point(self, step: int) -> dict[str, float]:
        point = {"step": step, "loss": fmean(self._losses)}
        if self._sharp:
            point["sharp_loss"] = fmean(self._sharp)
        return point

    def loss_at(self, step: int) -> float | None:
        """The mean loss of the point that this step completes, None where it completes none."""
        last = self._points[-1] if self._points else None
        return last["loss"] if last is not None and last["step"] == step else None

    def points(self, step: int) -> list[dict[str, float]]:
        """All points, the last one of the steps since the one before."""
        return [*self._points, self._point(step)] if self._losses else list(self._points)

    @property
    def final_loss(self) -> float:
        """The mean loss of the last 50 steps."""
        return fmean(self._last)

    def state_dict(self) -> dict[str, Any]:
        return {
            "points": self._points,
            "losses": self._losses,
            "sharp": self._sharp,
            "last": self._last,
            "heldout": self.heldout,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._points, self._losses = list(state["points"]), list(state["losses"])
        self._sharp, self._last = list(state["sharp"]), list(state["last"])
        self.heldout = list(state["heldout"])


class Scalars:
    """TensorBoard's scalars in `RUN/tensorboard`; nothing where they are not wanted.

    Args:
        folder: of the run.
        wanted: whether to write.

    Raises:
        MissingRuntimeError: tensorboard is not installed.
    """

    def __init__(self, folder: Path, wanted: bool) -> None:
        self._folder = folder / "tensorboard"
        self._writer: Any = None
        self._wanted = wanted
        if wanted:
            try:
                import tensorboard  # noqa: F401  (only whether it is there)
            except ImportError as error:
                raise MissingRuntimeError(
                    "the scalars need TensorBoard, which is not installed",
                    expected="the package tensorboard",
                    got=str(error),
                    next_step='pip install tensorboard, or "flatq[cpu]", or --set tensorboard=false',
                ) from error

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
        found: what the run came to, such as its final loss.
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


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file whole or not at all; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
