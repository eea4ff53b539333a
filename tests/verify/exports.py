"""Artifacts with their lowered graphs and deployment folders."""

from __future__ import annotations

from pathlib import Path

from flatq.export import export_artifact
from flatq.quantize.artifact import Artifact, write_artifact
from flatq.quantize.lowering import Lowered, lower


class Deployments:
    """Artifacts by name, with their lowered graphs and deployment folders, made when first asked for."""

    def __init__(self, artifacts: dict[str, Artifact], folder: Path) -> None:
        self.artifacts = artifacts
        self._folder = folder
        self._lowered: dict[str, Lowered] = {}

    def folder(self, name: str) -> Path:
        out = self._folder / name / "onnxruntime"
        if not out.exists():
            write_artifact(self.artifacts[name], self._folder / name)
            export_artifact(self._folder / name, "onnxruntime", out)
        return out

    def lowered(self, name: str) -> Lowered:
        if name not in self._lowered:
            self._lowered[name] = lower(self.artifacts[name], "onnxruntime")
        return self._lowered[name]
