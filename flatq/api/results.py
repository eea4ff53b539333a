"""What the verbs return, and the path of whatever they are given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from flatq.checkpoint import Checkpoint
from flatq.deployment import Deployment
from flatq.errors import MissingRuntimeError, UsageError
from flatq.images import to_uint8
from flatq.sampling_settings import SamplingSettings
from flatq.verify import Audit, Parity

if TYPE_CHECKING:
    from flatq.quantize.artifact import Manifest

__all__ = ["Exported", "Quantized", "Samples", "Saved", "checkpoint_of", "path_of", "silent"]

Saved: TypeAlias = "str | Path | Checkpoint | Quantized | Exported"
"""A checkpoint, an artifact or a deployment folder, by its path or as a verb returned it."""


def silent(line: str) -> None:
    """A `Note` that is not passed on."""


@dataclass(frozen=True)
class Quantized:
    """An artifact on disk: its folder, and its manifest with every decision."""

    folder: Path
    manifest: Manifest


@dataclass(frozen=True)
class Exported:
    """A deployment on disk, and what its verification found.

    Attributes:
        folder, deployment: the folder and its manifest.
        parity: each layer on the runtime against the PyTorch reference; None for a float model, for TensorRT,
            and where it was not asked for.
        audit: the kernel of each layer; None for a float model, and where the runtime is not here.
        engine: the TensorRT engine, None for another target and without a GPU.
        missing: why there is no engine though the target is TensorRT.
        required: `ExportSettings.require_int8`.
    """

    folder: Path
    deployment: Deployment
    parity: Parity | None = None
    audit: Audit | None = None
    engine: Path | None = None
    missing: MissingRuntimeError | None = None
    required: float | None = None

    @property
    def passed(self) -> bool:
        """Whether the required fraction of the multiply-accumulates runs in integers."""
        return self.required is None or (self.audit is not None and self.audit.integer_share >= self.required)


@dataclass(frozen=True, eq=False)
class Samples:
    """Images that a model sampled.

    Attributes:
        images: float32 [n, C, H, W], finite, about [-1, 1].
        settings: how they were sampled.
        first: index of the first image; the noise depends on the seed and the index alone.
    """

    images: NDArray[np.float32]
    settings: SamplingSettings
    first: int

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """uint8 [n, C, H, W], rounded to the nearest."""
        return to_uint8(self.images)


def path_of(model: Saved) -> Path:
    """Where it lies.

    Raises:
        UsageError: a checkpoint that was not saved.
    """
    if isinstance(model, str | Path):
        return Path(model)
    if isinstance(model, Quantized | Exported):
        return model.folder
    if model.source is None:
        raise UsageError(
            "the checkpoint is in memory only",
            expected="a checkpoint that was saved",
            got="no path",
            next_step="save it with flatq.checkpoint.save_checkpoint and load it again",
        )
    return model.source


def checkpoint_of(model: Saved) -> Checkpoint:
    """The checkpoint itself, read where it is not in memory."""
    from flatq.checkpoint import load_checkpoint

    return model if isinstance(model, Checkpoint) else load_checkpoint(path_of(model))
