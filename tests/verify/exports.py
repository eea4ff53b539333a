"""Artifacts with their lowered graphs and deployment folders."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from flatq.deployment import Target
from flatq.export import export_artifact
from flatq.quantize.artifact import Artifact, write_artifact
from flatq.quantize.lowering import Lowered, lower


class Deployments:
    """Artifacts by name, with their lowered graphs and deployment folders, made when first asked for."""

    def __init__(self, artifacts: dict[str, Artifact], folder: Path) -> None:
        self.artifacts = artifacts
        self._folder = folder
        self._lowered: dict[tuple[str, str], Lowered] = {}

    def artifact_folder(self, name: str) -> Path:
        folder = self._folder / name
        if not folder.exists():
            write_artifact(self.artifacts[name], folder)
        return folder

    def folder(self, name: str, target: str = "onnxruntime") -> Path:
        out = self.artifact_folder(name) / target
        if not out.exists():
            export_artifact(self._folder / name, cast(Target, target), out)
        return out

    def lowered(self, name: str, target: str = "onnxruntime") -> Lowered:
        if (name, target) not in self._lowered:
            self._lowered[name, target] = lower(self.artifacts[name], cast(Target, target))
        return self._lowered[name, target]
