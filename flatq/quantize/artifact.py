"""The artifact: a quantized model on disk, target-neutral, and its file format.

A folder with `flatq.json` (the manifest), `weights.safetensors` (integer weights packed at their real width,
scales, the float rest) and `ranges.safetensors` (activation ranges as observed). It holds no Q/DQ placement
and no zero point: those depend on the target and are `flatq.quantize.lowering`'s work.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from flatq.calib.inputs import CalibrationPlan
from flatq.checkpoint import file_digest
from flatq.deployment import MANIFEST
from flatq.errors import ArtifactError, one_line
from flatq.files import check_free_folder, replacing
from flatq.network_config import ModelConfig
from flatq.process import ProcessConfig
from flatq.quantize.grid import QuantGrid, integer_range
from flatq.quantize.methods import WeightRounding
from flatq.recipe import Decision, QuantRecipe, Scheme

__all__ = [
    "Artifact",
    "Manifest",
    "pack",
    "read_artifact",
    "read_manifest",
    "unpack",
    "write_artifact",
]

_WEIGHTS, _RANGES = "weights.safetensors", "ranges.safetensors"


class Manifest(BaseModel):
    """`flatq.json` of an artifact; no timestamps, so that equal work gives equal bytes.

    Attributes:
        model, process: of the checkpoint.
        recipe, decisions: what was asked for, and what was decided for every candidate.
        calibration, calibration_digest: how the inputs were drawn, and sha256 of them.
        rounding: how integers were chosen and biases corrected.
        rounding_notes: layer or block -> why that left it as it was, where it did.
        parent: digest, weights variant and provenance of the checkpoint.
        files: sha256 by file name.
        versions: of the packages that made it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["flatq-artifact"] = "flatq-artifact"
    version: Literal[1] = 1
    model: ModelConfig
    process: ProcessConfig
    recipe: QuantRecipe
    decisions: tuple[Decision, ...]
    calibration: CalibrationPlan
    calibration_digest: str
    rounding: WeightRounding = WeightRounding()
    rounding_notes: dict[str, str] = {}
    parent: dict[str, Any]
    files: dict[str, str] = {}
    versions: dict[str, str]

    @property
    def precision(self) -> str:
        """The recipe and the method in short, such as `w4a8-gptq`."""
        return self.recipe.name + self.rounding.suffix

    @property
    def float_weights(self) -> dict[str, str]:
        """Layer whose weight stays float -> name of that parameter, in order of execution."""
        floats = (d.node for d in self.decisions if d.port == "weight" and d.scheme is None)
        return {name: f"{name}.weight" for name in floats}

    @property
    def planned(self) -> list[str]:
        """Names of the layers whose weights are integers, in order of execution."""
        return [decision.node for decision, _ in _weights(self)]


@dataclass(frozen=True)
class Artifact:
    """A quantized model in memory.

    Attributes:
        manifest: everything but the tensors.
        integers: layer name -> int8, its quantized weight.
        grids: layer name -> the grid of its weight, whose scale is float32 [channels] or [].
        rest: the parameters left in float, by their name in the network.
        ranges: `Decision.range_name` -> float32 [groups, 2], lower and upper end of what a scale covers.
        digest: sha256 of the manifest's file, hex, which names the digests of the tensors; None before the
            artifact is written.
    """

    manifest: Manifest
    integers: Mapping[str, torch.Tensor]
    grids: Mapping[str, QuantGrid]
    rest: Mapping[str, torch.Tensor]
    ranges: Mapping[str, torch.Tensor]
    digest: str | None = None


def pack(integers: torch.Tensor, bits: int) -> torch.Tensor:
    """Integers at their real width, one after the other without a gap; 8-bit ones as they are.

    A byte fills from its low end: two 4-bit integers in a byte, the first in the low half; a 3-bit one may
    lie across two bytes. The last byte is filled up with zeros.

    Args:
        integers: int8, any shape, within the width.
    """
    if bits == 8:
        return integers.contiguous()
    rows = integers.contiguous().numpy().view(np.uint8).reshape(-1, 1)
    ones = np.unpackbits(rows, axis=1, count=bits, bitorder="little")
    return torch.from_numpy(np.packbits(ones, bitorder="little"))


def unpack(packed: torch.Tensor, bits: int, shape: tuple[int, ...]) -> torch.Tensor:
    """The inverse of `pack`: int8 of the given shape."""
    if bits == 8:
        return packed.reshape(shape)
    count = math.prod(shape)
    ones = np.unpackbits(packed.numpy(), count=count * bits, bitorder="little").reshape(count, bits)
    extended = np.pad(ones, ((0, 0), (0, 8 - bits)), mode="edge")  # the sign
    return torch.from_numpy(np.packbits(extended, axis=1, bitorder="little").view(np.int8).reshape(shape))


def _weights(manifest: Manifest) -> Iterator[tuple[Decision, Scheme]]:
    yield from ((d, d.scheme) for d in manifest.decisions if d.port == "weight" and d.scheme is not None)


def write_artifact(artifact: Artifact, folder: Path) -> Manifest:
    """Write the folder under a temporary name, then move it into place.

    Returns:
        The manifest with the digests of the files.

    Raises:
        UsageError: the folder exists and is not empty.
    """
    from safetensors.torch import save_file

    check_free_folder(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with replacing(folder) as partial:
        partial.mkdir()
        tensors = {name: value.contiguous() for name, value in artifact.rest.items()}
        for decision, scheme in _weights(artifact.manifest):
            name = decision.node
            tensors[f"{name}.weight.integers"] = pack(artifact.integers[name], scheme.bits)
            tensors[f"{name}.weight.scale"] = artifact.grids[name].scale.contiguous()
        save_file(tensors, partial / _WEIGHTS)
        save_file({k: v.contiguous() for k, v in artifact.ranges.items()}, partial / _RANGES)
        files = {name: file_digest(partial / name) for name in (_WEIGHTS, _RANGES)}
        manifest = artifact.manifest.model_copy(update={"files": files})
        (partial / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an artifact.

    Raises:
        ArtifactError: it is missing, damaged or of another version.
    """
    path = folder / MANIFEST
    try:
        return Manifest.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(
            f"{folder} is not an artifact",
            expected=f"a folder with a readable {MANIFEST}",
            got=str(error),
            next_step="write one with `flatq quantize`",
        ) from error
    except ValidationError as error:
        raise ArtifactError(
            f"{path} is not an artifact's manifest of this version",
            expected="format flatq-artifact, version 1",
            got=one_line(error),
            next_step="quantize again with this version of flatq",
        ) from error


def read_artifact(folder: Path) -> Artifact:
    """Read an artifact and check the digest of every file.

    Raises:
        ArtifactError: a file is missing, changed, or does not hold what the manifest says.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    manifest = read_manifest(folder)
    for name in (_WEIGHTS, _RANGES):
        path = folder / name
        digest = file_digest(path) if path.is_file() else "no such file"
        if digest != manifest.files.get(name):
            raise ArtifactError(
                f"the checksum of {path} does not match the manifest",
                expected=f"sha256 {manifest.files.get(name, 'unknown')[:16]}...",
                got=digest[:16],
                next_step="copy the artifact again, or quantize again",
            )
    try:
        rest, ranges = load_file(folder / _WEIGHTS), load_file(folder / _RANGES)
        integers, grids = {}, {}
        for decision, scheme in _weights(manifest):
            name = decision.node
            integers[name] = unpack(rest.pop(f"{name}.weight.integers"), scheme.bits, decision.shape)
            grids[name] = QuantGrid(rest.pop(f"{name}.weight.scale"), *integer_range(scheme))
    except (SafetensorError, KeyError, RuntimeError, ValueError) as error:
        raise ArtifactError(
            f"the tensors of {folder} are not those of its manifest",
            expected="integers and scales for every planned layer",
            got=one_line(error),
            next_step="quantize again",
        ) from error
    return Artifact(manifest, integers, grids, rest, ranges, file_digest(folder / MANIFEST))
