"""Artifacts with their lowered graphs and deployment folders."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from flatq.deployment import Target
from flatq.export.deploy import export_artifact
from flatq.quantize.artifact import Artifact, read_artifact, write_artifact
from flatq.quantize.lowering import Lowered


class Deployments:
    """Artifacts by name, with deployment folders and the graphs they are of, made when first asked for."""

    def __init__(self, artifacts: dict[str, Artifact], folder: Path) -> None:
        self._folder = folder
        self.artifacts: dict[str, Artifact] = {}
        for name, artifact in artifacts.items():
            write_artifact(artifact, folder / name)
            self.artifacts[name] = read_artifact(folder / name)
        self._lowered: dict[tuple[str, str], Lowered] = {}

    def artifact_folder(self, name: str) -> Path:
        return self._folder / name

    def folder(self, name: str, target: str = "onnxruntime") -> Path:
        out = self.artifact_folder(name) / target

        def keep(_: Path, artifact: Artifact, lowered: Lowered) -> None:
            self._lowered[name, target] = lowered

        if not out.exists():
            export_artifact(self._folder / name, cast(Target, target), out, check=keep)
        return out

    def lowered(self, name: str, target: str = "onnxruntime") -> Lowered:
        self.folder(name, target)
        return self._lowered[name, target]
