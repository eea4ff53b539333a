"""Artifacts with their lowered graphs and deployment folders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import cast

from flatq.deployment import Target
from flatq.export.deploy import export_artifact
from flatq.quantize.artifact import Artifact, read_artifact, write_artifact
from flatq.quantize.lowering import Lowered, lower


class Deployments:
    """Artifacts by name, with deployment folders and the graphs they are of, made when first asked for.

    Args:
        exports: name -> what makes its deployment folder for a target; others are exported here.
    """

    def __init__(
        self,
        artifacts: dict[str, Artifact],
        folder: Path,
        exports: Mapping[str, Callable[[str], Path]] = MappingProxyType({}),
    ) -> None:
        self._folder, self._exports = folder, exports
        self.artifacts: dict[str, Artifact] = {}
        for name, artifact in artifacts.items():
            write_artifact(artifact, folder / name)
            self.artifacts[name] = read_artifact(folder / name)
        self._lowered: dict[tuple[str, str], Lowered] = {}

    def artifact_folder(self, name: str) -> Path:
        return self._folder / name

    def folder(self, name: str, target: str = "onnxruntime") -> Path:
        if name in self._exports:
            return self._exports[name](target)
        out = self.artifact_folder(name) / target
        if not out.exists():
            export_artifact(self._folder / name, cast(Target, target), out)
        return out

    def lowered(self, name: str, target: str = "onnxruntime") -> Lowered:
        if (name, target) not in self._lowered:
            self._lowered[name, target] = lower(self.artifacts[name], cast(Target, target))
        return self._lowered[name, target]
