"""TensorRT engines in a deployment folder: their names, and the record beside each. No TensorRT, no torch.

An engine runs on one GPU architecture and one version of TensorRT only, so one folder may hold several:
`engine.sm89.trt10.9.0.34.plan` and `engine.sm89.trt10.9.0.34.json`, made from the `model.onnx` beside them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flatq.errors import ArtifactError, MissingRuntimeError, one_line
from flatq.files import file_digest

__all__ = ["TIMING_CACHE", "EngineRecord", "engine_stem", "find_engine", "is_engine_file"]

TIMING_CACHE = "timing.{stem}.cache"
"""Beside the engine, read and written by every build with its name."""


class EngineRecord(BaseModel):
    """What an engine was built from and for.

    Attributes:
        file, sha256: of the engine.
        onnx_sha256: of the model file that it was built from.
        architecture: of the GPU, such as `sm89`.
        gpu: its name.
        tensorrt: the version that built it, and the only one that loads it.
        batch: smallest, best and largest batch of its profile.
        build: settings of the builder.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["flatq-engine"] = "flatq-engine"
    version: Literal[1] = 1
    file: str
    sha256: str
    onnx_sha256: str
    architecture: str
    gpu: str
    tensorrt: str
    batch: tuple[int, int, int] = Field(min_length=3)
    build: dict[str, Any] = {}


def engine_stem(architecture: str, tensorrt: str) -> str:
    """The name of an engine's files without their ending."""
    return f"engine.{architecture}.trt{tensorrt}"


def is_engine_file(name: str) -> bool:
    """Whether `flatq export --trt` leaves a file of this name beside a model."""
    return re.fullmatch(r"(timing\.)?engine\.sm\d+\.trt[\w.]+\.(plan|json|cache)", name) is not None


def find_engine(
    folder: Path, onnx_sha256: str, architecture: str, tensorrt: str
) -> tuple[EngineRecord, Path]:
    """The engine for this GPU and this TensorRT, checked against its record and its model.

    Raises:
        MissingRuntimeError: none was built for them.
        ArtifactError: it was changed, or built from another model.
    """
    stem = engine_stem(architecture, tensorrt)
    path = folder / f"{stem}.json"
    if not path.is_file():
        others = sorted(p.stem for p in folder.glob("engine.*.json"))
        raise MissingRuntimeError(
            f"{folder} has no engine for this GPU and this TensorRT",
            expected=f"{stem}.plan",
            got=", ".join(others) or "no engine",
            next_step=f"flatq export {folder} --trt",
        )
    try:
        record = EngineRecord.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise ArtifactError(
            f"{path} is not the record of an engine",
            expected="format flatq-engine, version 1",
            got=one_line(error),
            next_step=f"flatq export {folder} --trt",
        ) from error
    engine = folder / f"{stem}.plan"
    digest = file_digest(engine) if engine.is_file() else "no such file"
    if digest != record.sha256 or record.onnx_sha256 != onnx_sha256:
        raise ArtifactError(
            f"{engine} is not the engine of this folder's model",
            expected=f"sha256 {record.sha256[:16]}..., built from {onnx_sha256[:16]}...",
            got=f"{digest[:16]}, built from {record.onnx_sha256[:16]}...",
            next_step=f"flatq export {folder} --trt",
        )
    return record, engine
