"""The deployment folder: one model file for one target and the manifest that says how to sample from it.

Reading needs no torch. Writing the model file is `flatq.export`'s work, running it `flatq.runtime`'s.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from flatq.errors import ArtifactError
from flatq.labels import Classes
from flatq.process import ProcessConfig

__all__ = ["MANIFEST", "Deployment", "Target", "read_deployment"]

MANIFEST = "flatq.json"
Target = Literal["onnxruntime"]


class Deployment(BaseModel):
    """The manifest of a deployment folder (`flatq.json`).

    Attributes:
        target: the runtime whose kernels the graph was lowered for.
        file: name of the model file in the folder.
        sha256: of that file, hex.
        image_shape: [C, H, W] of one image.
        classes: the labels that the network takes, None where it takes none.
        process: the diffusion process that the model was trained for.
        precision: `fp32` or the recipe's name.
        provenance: digests and versions of what it was made from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["flatq-deployment"] = "flatq-deployment"
    version: Literal[1] = 1
    target: Target
    file: str
    sha256: str
    image_shape: tuple[int, int, int]
    classes: Classes | None = None
    process: ProcessConfig
    precision: str
    provenance: dict[str, Any]


def read_deployment(folder: Path) -> tuple[Deployment, Path]:
    """The manifest and the path of the model file, its digest checked.

    Raises:
        ArtifactError: no manifest, not a deployment, or a model file that is missing or was changed.
    """
    path = folder / MANIFEST
    try:
        deployment = Deployment.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(
            f"{folder} is not a deployment folder",
            expected=f"a readable {MANIFEST}",
            got=str(error),
            next_step="write one with `flatq export`",
        ) from error
    except ValidationError as error:
        raise ArtifactError(
            f"{path} is not a deployment manifest of this version",
            expected="format flatq-deployment, version 1",
            got=" ".join(str(error).split())[:200],
            next_step="export again with this version of flatq",
        ) from error
    model = folder / deployment.file
    if Path(deployment.file).name != deployment.file or not model.is_file():
        raise ArtifactError(
            f"the model file of {folder} is missing",
            expected=f"{deployment.file} inside the folder",
            got="no such file there",
            next_step="export again",
        )
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    if digest != deployment.sha256:
        raise ArtifactError(
            f"{model} was changed after export",
            expected=f"sha256 {deployment.sha256[:16]}...",
            got=f"sha256 {digest[:16]}...",
            next_step="export again",
        )
    return deployment, model
