"""What a benchmark runs: for each path the float model and the quantized one, on each runtime that is there.

A deployment that stands in the artifact's folder (or beside the checkpoint) and was made from just that is
taken as it is; what is missing is exported into a scratch folder. Nothing is measured here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatq.backends import RUNTIMES, RuntimeSettings, runtime_of, target_of
from flatq.bench.result import LeftOut
from flatq.deployment import MANIFEST, Target, is_float, read_deployment
from flatq.errors import ArtifactError, MissingRuntimeError
from flatq.files import file_digest
from flatq.models import deployment_folder, kind_of
from flatq.packages import require
from flatq.progress import Note

if TYPE_CHECKING:
    from flatq.checkpoint import Checkpoint

__all__ = ["BenchTask", "ModelOnRuntime", "missing_runtime", "models_on_runtimes"]

EXPORTED = "exported for this run"


@dataclass(frozen=True)
class BenchTask:
    """What to measure.

    Attributes:
        paths: artifacts, checkpoints, deployment folders.
        runtimes: those to take; None for all that are installed.
        batches: sizes, each at least 1.
        baseline: float checkpoint of the artifacts; by default the one beside each.
        weights: variant of the checkpoints among the paths.
        runtime: device, precision, threads and hint of every runtime; precision and hint apply to OpenVINO.
        rounds, warmup: as `flatq.bench.timing.race`.
        seed: of the inputs, which are noise.
    """

    paths: tuple[Path, ...]
    runtimes: tuple[str, ...] | None = None
    batches: tuple[int, ...] = (1, 8)
    baseline: Path | None = None
    weights: str | None = None
    runtime: RuntimeSettings = RuntimeSettings()
    rounds: int = 30
    warmup: int = 3
    seed: int = 0


@dataclass(frozen=True)
class ModelOnRuntime:
    """A model on a runtime.

    Attributes:
        path: what `flatq.models.open_model` opens for it; `weights` goes with a checkpoint.
        family: digest of the float checkpoint and its weights variant: what is compared with what.
        source: where `path` comes from, for readers.
    """

    name: str
    precision: str
    runtime: str
    path: Path
    family: tuple[str, str]
    source: str
    weights: str | None = None

    @property
    def label(self) -> str:
        return f"{self.name} on {self.runtime}"


def missing_runtime(runtime: str) -> MissingRuntimeError | None:
    """Why a runtime cannot run here; None where it can."""
    try:
        if runtime == "torch":
            require("torch", "torch", "cpu")
        else:
            getattr(importlib.import_module(f"flatq.runtime.{runtime}"), f"import_{runtime}")()
        if runtime == "tensorrt":
            from flatq.runtime.cuda import open_device

            open_device()
    except MissingRuntimeError as error:
        return error
    return None


def models_on_runtimes(
    task: BenchTask, scratch: Path, note: Note
) -> tuple[list[ModelOnRuntime], list[LeftOut]]:
    """Everything that the paths of a task can be run as, and what is left out.

    Args:
        scratch: a folder for the exports that are missing.
        note: called with what is exported and why.

    Raises:
        MissingRuntimeError: a runtime that was asked for is not there.
        InputError: as `flatq.models.kind_of` and the exports.
    """
    search = _Search(task, scratch, note)
    for runtime in task.runtimes or RUNTIMES:
        error = missing_runtime(runtime)
        if error is None:
            search.runtimes.append(runtime)
        elif task.runtimes is not None:
            raise error
        else:
            reason = f"{error.what} ({error.got})" if runtime == "tensorrt" else error.what
            search.left_out.append(LeftOut(label=runtime, reason=reason))
    for path in task.paths:
        {"deployment": search.deployment, "checkpoint": search.checkpoint, "artifact": search.artifact}[
            kind_of(path)
        ](path)
    return search.found, search.left_out


class _Search:
    def __init__(self, task: BenchTask, scratch: Path, note: Note) -> None:
        self.runtimes: list[str] = []
        self.found: list[ModelOnRuntime] = []
        self.left_out: list[LeftOut] = []
        self._task, self._scratch, self._note = task, scratch, note
        self._exports = 0

    def deployment(self, path: Path) -> None:
        deployment, _ = read_deployment(path)
        runtime = runtime_of(deployment.target)
        parent = deployment.provenance.get("parent", {})
        family = (str(parent.get("sha256")), str(parent.get("weights")))
        name = f"{path.parent.name}/{path.name}"
        model = ModelOnRuntime(name, deployment.precision, runtime, path, family, str(path))
        if runtime in self.runtimes:
            self._add(model)
        else:
            reason = f"{runtime} is not among the runtimes of this run"
            self.left_out.append(LeftOut(label=model.label, reason=reason))

    def checkpoint(self, path: Path) -> None:
        from flatq.checkpoint import load_checkpoint

        checkpoint = load_checkpoint(path)
        self._floats(path, checkpoint, checkpoint.choose(self._task.weights))

    def artifact(self, path: Path) -> None:
        from flatq.export.deploy import export_artifact
        from flatq.quantize.artifact import read_manifest

        manifest = read_manifest(path)
        family = (str(manifest.parent["sha256"]), str(manifest.parent["weights"]))
        parent = self._parent(path)
        if parent is None:
            reason = (
                f"{manifest.parent['file']}, which was quantized, is not beside it: name it with --baseline"
            )
            self.left_out.append(LeftOut(label=f"the float model of {path.name}", reason=reason))
        else:
            assert parent.source is not None
            self._floats(parent.source, parent, family[1])
        digest = file_digest(path / MANIFEST)
        for runtime in self.runtimes:
            made, source = self._deployed(
                path,
                runtime,
                lambda provenance: provenance.get("artifact") == digest,
                lambda target, out: export_artifact(path, target, out),
            )
            self._add(ModelOnRuntime(path.name, manifest.recipe.name, runtime, made, family, source))

    def _parent(self, path: Path) -> Checkpoint | None:
        """The float checkpoint of an artifact: the one that was named, else the one beside it."""
        from flatq.checkpoint import load_checkpoint
        from flatq.quantize.artifact import read_manifest
        from flatq.verify.verification import parent_beside

        manifest, baseline = read_manifest(path), self._task.baseline
        if baseline is None:
            return parent_beside(manifest, path)
        checkpoint = load_checkpoint(baseline)
        if checkpoint.digest != manifest.parent["sha256"]:
            raise ArtifactError(
                f"{baseline} is not the checkpoint that {path} was quantized from",
                expected=f"sha256 {manifest.parent['sha256'][:16]}...",
                got=f"sha256 {str(checkpoint.digest)[:16]}...",
                next_step="name that one with --baseline",
            )
        return checkpoint

    def _floats(self, path: Path, checkpoint: Checkpoint, weights: str) -> None:
        from flatq.export.deploy import export_checkpoint

        family = (str(checkpoint.digest), weights)

        def fits(provenance: dict[str, Any]) -> bool:
            parent = provenance.get("parent", {})
            return (parent.get("sha256"), parent.get("weights")) == family

        for runtime in self.runtimes:
            if any(m.family == family and m.runtime == runtime and is_float(m.precision) for m in self.found):
                continue  # another path has the same float model
            made, source = self._deployed(
                path,
                runtime,
                fits,
                lambda target, out: export_checkpoint(checkpoint, target, out, average=weights),
            )
            chosen = weights if runtime == "torch" else None
            name = f"{path.name} ({weights})"
            self._add(ModelOnRuntime(name, "fp32", runtime, made, family, source, chosen))

    def _deployed(
        self,
        path: Path,
        runtime: str,
        fits: Callable[[dict[str, Any]], bool],
        export: Callable[[Target, Path], object],
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

            largest = max(self._task.batches)
            build_engine(out, (min(self._task.batches), largest, largest))
        return out, EXPORTED

    def _add(self, model: ModelOnRuntime) -> None:
        if all(
            (m.path, m.runtime, m.weights) != (model.path, model.runtime, model.weights) for m in self.found
        ):
            self.found.append(model)
