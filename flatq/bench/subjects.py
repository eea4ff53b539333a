"""What runs: for each path the float model and the quantized one, on each runtime that is there.

A deployment that stands in the artifact's folder (or beside the checkpoint) and was made from just that is
taken as it is; what is missing is exported into a scratch folder. Nothing is measured here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatq.backends import RUNTIMES, RuntimeSettings, runtime_of, target_of
from flatq.deployment import MANIFEST, Target, read_deployment
from flatq.errors import ArtifactError, MissingRuntimeError
from flatq.models import deployment_folder, kind_of

if TYPE_CHECKING:
    from flatq.checkpoint import Checkpoint

__all__ = ["Subject", "Subjects", "find_subjects", "missing_runtime"]

EXPORTED = "exported for this run"


@dataclass(frozen=True)
class Subject:
    """A model on a runtime.

    Attributes:
        path: what `flatq.models.open_model` opens for it; `average` goes with a checkpoint.
        family: digest of the float checkpoint and name of its weights: what is compared with what.
        source: where `path` comes from, for readers.
    """

    name: str
    precision: str
    runtime: str
    path: Path
    family: tuple[str, str]
    source: str
    average: str | None = None

    @property
    def label(self) -> str:
        return f"{self.name} on {self.runtime}"

    @property
    def quantized(self) -> bool:
        return self.precision not in ("fp32", "fp16", "bf16")


@dataclass(frozen=True)
class Subjects:
    """What to measure, and what not: (label, reason)."""

    found: tuple[Subject, ...]
    left_out: tuple[tuple[str, str], ...]


def missing_runtime(runtime: str) -> MissingRuntimeError | None:
    """Why a runtime cannot run here; None where it can."""
    try:
        if runtime == "onnxruntime":
            from flatq.runtime.onnxruntime import import_onnxruntime

            import_onnxruntime()
        elif runtime == "openvino":
            from flatq.runtime.openvino import import_openvino

            import_openvino()
        elif runtime == "tensorrt":
            from flatq.runtime.cuda import open_device
            from flatq.runtime.tensorrt import import_tensorrt

            import_tensorrt()
            open_device()
        else:
            _import_torch()
    except MissingRuntimeError as error:
        return error
    return None


def _import_torch() -> None:
    try:
        import torch  # noqa: F401  (only whether it is there)
    except ImportError as error:
        raise MissingRuntimeError(
            "torch is not installed",
            expected="the package torch",
            got=str(error),
            next_step='pip install "flatq[cpu]"',
        ) from error


def find_subjects(
    paths: Iterable[Path],
    scratch: Path,
    *,
    runtimes: tuple[str, ...] | None = None,
    baseline: Path | None = None,
    average: str | None = None,
    batches: tuple[int, ...] = (1,),
    note: Callable[[str], None] = lambda _: None,
) -> Subjects:
    """Everything that the paths can be run as.

    Args:
        scratch: a folder for the exports that are missing.
        runtimes: those to take; by default all that are installed.
        baseline: the float checkpoint of the artifacts, where it does not stand beside them.
        average: weights of the checkpoints among the paths.
        batches: what a TensorRT engine that has to be built must take.
        note: told what is exported and why.

    Raises:
        MissingRuntimeError: a runtime that was asked for is not there.
        InputError: as `flatq.models.kind_of` and the exports.
    """
    search = _Search(scratch, baseline, average, batches, note)
    able = []
    for runtime in RUNTIMES if runtimes is None else runtimes:
        error = missing_runtime(runtime)
        if error is None:
            able.append(runtime)
        elif runtimes is not None:
            raise error
        else:
            reason = f"{error.what} ({error.got})" if runtime == "tensorrt" else error.what
            search.left_out.append((runtime, reason))
    for path in paths:
        kind = kind_of(path)
        if kind == "deployment":
            search.deployment(path, able)
        elif kind == "checkpoint":
            search.checkpoint(path, average, able)
        else:
            search.artifact(path, able)
    return Subjects(tuple(search.found), tuple(search.left_out))


class _Search:
    def __init__(
        self,
        scratch: Path,
        baseline: Path | None,
        average: str | None,
        batches: tuple[int, ...],
        note: Callable[[str], None],
    ) -> None:
        self.found: list[Subject] = []
        self.left_out: list[tuple[str, str]] = []
        self._scratch, self._baseline, self._average = scratch, baseline, average
        self._batches, self._note = batches, note
        self._exports = 0

    def deployment(self, path: Path, able: list[str]) -> None:
        deployment, _ = read_deployment(path)
        runtime = runtime_of(deployment.target)
        name = f"{path.parent.name}/{path.name}"
        parent = deployment.provenance.get("parent", {})
        family = (str(parent.get("sha256")), str(parent.get("weights")))
        subject = Subject(name, deployment.precision, runtime, path, family, str(path))
        if runtime in able:
            self._add(subject)
        else:
            self.left_out.append((subject.label, f"{runtime} is not among the runtimes of this run"))

    def checkpoint(self, path: Path, average: str | None, able: list[str]) -> None:
        from flatq.checkpoint import load_checkpoint

        checkpoint = load_checkpoint(path)
        self._floats(path, checkpoint, checkpoint.choose(average), able)

    def artifact(self, path: Path, able: list[str]) -> None:
        from flatq.quantize.artifact import read_manifest
        from flatq.verify.verification import parent_beside

        manifest = read_manifest(path)
        weights = str(manifest.parent["weights"])
        family = (str(manifest.parent["sha256"]), weights)
        given = self._baseline is not None
        parent = self._checked_baseline(family[0], path) if given else parent_beside(manifest, path)
        if parent is None:
            reason = (
                f"{manifest.parent['file']}, which was quantized, is not beside it: name it with --baseline"
            )
            self.left_out.append((f"the float model of {path.name}", reason))
        else:
            assert parent.source is not None
            self._floats(parent.source, parent, weights, able)
        digest = hashlib.sha256((path / MANIFEST).read_bytes()).hexdigest()

        def export(target: Target, out: Path) -> None:
            from flatq.export.deploy import export_artifact

            export_artifact(path, target, out)

        def fits(provenance: dict[str, Any]) -> bool:
            return provenance.get("artifact") == digest

        for runtime in able:
            made, source = self._deployed(path, runtime, fits, export)
            self._add(Subject(path.name, manifest.recipe.name, runtime, made, family, source))

    def _checked_baseline(self, sha256: str, path: Path) -> Checkpoint:
        from flatq.checkpoint import load_checkpoint

        assert self._baseline is not None
        checkpoint = load_checkpoint(self._baseline)
        if checkpoint.digest != sha256:
            raise ArtifactError(
                f"{self._baseline} is not the checkpoint that {path} was quantized from",
                expected=f"sha256 {sha256[:16]}...",
                got=f"sha256 {str(checkpoint.digest)[:16]}...",
                next_step="name that one with --baseline",
            )
        return checkpoint

    def _floats(self, path: Path, checkpoint: Checkpoint, weights: str, able: list[str]) -> None:
        def export(target: Target, out: Path) -> None:
            from flatq.export.deploy import export_checkpoint

            export_checkpoint(checkpoint, target, out, average=weights)

        def fits(provenance: dict[str, Any]) -> bool:
            parent = provenance.get("parent", {})
            return (parent.get("sha256"), parent.get("weights")) == (checkpoint.digest, weights)

        family = (str(checkpoint.digest), weights)
        for runtime in able:
            if any(s.family == family and s.runtime == runtime and not s.quantized for s in self.found):
                continue  # another path has the same float model
            made, source = self._deployed(path, runtime, fits, export)
            self._add(
                Subject(
                    f"{path.name} ({weights})",
                    "fp32",
                    runtime,
                    made,
                    family,
                    source,
                    weights if runtime == "torch" else None,
                )
            )

    def _deployed(
        self,
        path: Path,
        runtime: str,
        fits: Callable[[dict[str, Any]], bool],
        export: Callable[[Target, Path], None],
    ) -> tuple[Path, str]:
        """What a runtime opens for a checkpoint or an artifact, and where it comes from."""
        if runtime == "torch":
            return path, str(path)
        target = target_of(RuntimeSettings(runtime))
        folder = deployment_folder(path, target)
        if (folder / MANIFEST).is_file():
            deployment, _ = read_deployment(folder)
            if not fits(deployment.provenance):
                self._note(f"{folder} was exported from something else: not taken")
            elif deployment.float_precision != "fp32":
                self._note(f"{folder} has floats in {deployment.float_precision}: not taken")
            elif runtime == "tensorrt" and not any(folder.glob("engine.*.plan")):
                self._note(f"{folder} has no engine: not taken")
            else:
                return folder, str(folder)
        self._note(f"exporting {path} for {target}, for this run alone")
        self._exports += 1
        out = self._scratch / str(self._exports)
        export(target, out)
        if runtime == "tensorrt":
            from flatq.export.engine import build_engine

            build_engine(out, (min(self._batches), max(self._batches), max(self._batches)))
        return out, EXPORTED

    def _add(self, subject: Subject) -> None:
        if all(
            (s.path, s.runtime, s.average) != (subject.path, subject.runtime, subject.average)
            for s in self.found
        ):
            self.found.append(subject)
