"""The deployment folder: a model for one target and the manifest that says how to sample from it.

Reading needs no torch. Writing the model file is `flatq.export`'s work, running it `flatq.runtime`'s.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from flatq.errors import ArtifactError, one_line
from flatq.files import file_digest
from flatq.inputs import InputSpec
from flatq.labels import Classes
from flatq.process import ProcessConfig

__all__ = [
    "AUDIT",
    "MANIFEST",
    "PARITY",
    "Deployment",
    "FloatPrecision",
    "Target",
    "is_float",
    "read_deployment",
]

MANIFEST = "flatq.json"
AUDIT, PARITY = "audit.json", "verify.json"
"""What `flatq.verify` found, beside the manifest."""
Target = Literal["onnxruntime", "openvino", "tensorrt", "generic"]
FloatPrecision = Literal["fp32", "fp16", "bf16"]


class Deployment(BaseModel):
    """The manifest of a deployment folder (`flatq.json`).

    Attributes:
        target: the runtime whose kernels the graph was lowered for.
        file: name of the model file in the folder.
        sha256: of that file, hex.
        files: sha256 by name of further files that the model consists of.
        float_precision: type of whatever is not an integer, as the file has it; a runtime may compute in
            another, which its identity says.
        inputs: those of the model, in its order.
        classes: the labels that the network takes, None where it takes none.
        process: the diffusion process that the model was trained for.
        precision: `fp32`, or the recipe's name and the method's.
        provenance: digests and versions of what it was made from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["flatq-deployment"] = "flatq-deployment"
    version: Literal[1] = 1
    target: Target
    file: str
    sha256: str
    files: dict[str, str] = {}
    float_precision: FloatPrecision = "fp32"
    inputs: tuple[InputSpec, ...] = Field(min_length=2)
    classes: Classes | None = None
    process: ProcessConfig
    precision: str
    provenance: dict[str, Any]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """[C, H, W] of one image."""
        channels, height, width = (int(size or 0) for size in self.inputs[0].shape)
        return channels, height, width

    @property
    def digest(self) -> str:
        """sha256 over every file that the model consists of, hex; of the one file where there is one."""
        if not self.files:
            return self.sha256
        named = sorted({self.file: self.sha256, **self.files}.items())
        return hashlib.sha256("".join(f"{name}:{sha256}\n" for name, sha256 in named).encode()).hexdigest()


def is_float(precision: str) -> bool:
    """Whether the precision of a model is that of a float model, not a recipe's name."""
    return precision in get_args(FloatPrecision)


def read_deployment(folder: Path) -> tuple[Deployment, Path]:
    """The manifest and the path of the model file, the digest of every file checked.

    Raises:
        ArtifactError: no manifest, not a deployment, or a file that is missing, outside or changed.
    """
    path = folder / MANIFEST
    try:
        deployment = Deployment.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # ValidationError is a ValueError
        raise ArtifactError(
            f"{folder} is not a deployment folder of this version",
            expected=f"a readable {MANIFEST} of format flatq-deployment, version 1",
            got=one_line(error),
            next_step="write one with `flatq export`",
        ) from error
    for name, sha256 in {deployment.file: deployment.sha256, **deployment.files}.items():
        _check_file(folder, name, sha256)
    return deployment, folder / deployment.file


def _check_file(folder: Path, name: str, sha256: str) -> None:
    path = folder / name
    # A link could lead out of the folder, or to a file that changes with somebody else's work.
    if Path(name).name != name or path.is_symlink() or not path.is_file():
        raise ArtifactError(
            f"a model file of {folder} is missing",
            expected=f"the file {name} inside the folder",
            got="a link" if path.is_symlink() else "no such file there",
            next_step="export again, or copy the whole folder",
        )
    digest = file_digest(path)
    if digest != sha256:
        raise ArtifactError(
            f"{path} was changed after export",
            expected=f"sha256 {sha256[:16]}...",
            got=f"sha256 {digest[:16]}...",
            next_step="export again",
        )
