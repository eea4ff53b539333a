"""From a path to a model that runs: a checkpoint in torch, an artifact or a deployment on its runtime."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from flatq.backends import (
    EXPORT_FLAGS,
    RuntimeSettings,
    check_place,
    check_settings,
    open_runtime,
    runtime_of,
    target_of,
)
from flatq.deployment import MANIFEST, Target, read_deployment
from flatq.errors import ArtifactError, CheckpointError, UsageError, one_line
from flatq.labels import Classes
from flatq.process import ProcessConfig
from flatq.runtime.base import Runtime
from flatq.verify import Audit, read_audit

__all__ = [
    "Kind",
    "Model",
    "Opening",
    "checkpoint_beside",
    "deployment_folder",
    "kind_of",
    "open_model",
    "parent_weights",
]

Kind = Literal["checkpoint", "artifact", "deployment"]


@dataclass(frozen=True)
class Opening:
    """The arguments of `open_model`, to open the same again elsewhere."""

    path: Path
    runtime: RuntimeSettings = RuntimeSettings()
    weights: str | None = None
    lowered_for: Target = "onnxruntime"


@dataclass(frozen=True)
class Model:
    """A model ready to sample; a context manager that closes its runtime.

    Attributes:
        runtime: runs the network.
        process, image_shape, classes: what the sampler needs.
        name: of the path it was opened from.
        precision: fp32, or the recipe's name and the method's.
        weights: raw, ema or swa.
        digest: sha256 of the file that decides its numbers.
        size_bytes: of that file or, for a checkpoint, of its chosen weights.
        audit: the kernels that run it, where its deployment was audited and it runs on the CPU.
        opening: how it was opened.
    """

    runtime: Runtime
    process: ProcessConfig
    image_shape: tuple[int, int, int]
    classes: Classes | None
    name: str
    precision: str
    weights: str
    digest: str
    size_bytes: int
    audit: Audit | None = None
    opening: Opening | None = None

    def __enter__(self) -> Self:
        self.runtime.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.runtime.__exit__(kind, error, trace)


def kind_of(path: Path) -> Kind:
    """What stands at a path.

    Raises:
        ArtifactError: a folder that is neither an artifact nor a deployment.
        CheckpointError: nothing is there.
    """
    if path.is_file():
        return "checkpoint"
    if not path.exists():
        raise CheckpointError(
            f"there is nothing at {path}",
            expected="a checkpoint (.pt), an artifact folder or a deployment folder",
            got="no such file or folder",
            next_step="check the path",
        )
    kinds: dict[Any, Kind] = {"flatq-artifact": "artifact", "flatq-deployment": "deployment"}
    try:
        return kinds[json.loads((path / MANIFEST).read_text(encoding="utf-8"))["format"]]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ArtifactError(
            f"{path} is neither an artifact nor a deployment folder",
            expected=f"a readable {MANIFEST} inside, of the format flatq-artifact or flatq-deployment",
            got=one_line(error),
            next_step="write one with `flatq quantize` or `flatq export`",
        ) from error


def deployment_folder(path: Path, target: Target = "onnxruntime") -> Path:
    """Where `flatq export` puts a deployment by default: inside the artifact, beside a checkpoint."""
    return path.with_name(f"{path.stem}.fp32") / target if path.is_file() else path / target


def open_model(
    path: Path,
    runtime: RuntimeSettings = RuntimeSettings(),
    *,
    weights: str | None = None,
    lowered_for: Target = "onnxruntime",
) -> Model:
    """Open a checkpoint, an artifact or a deployment folder.

    Args:
        runtime: how it runs. An artifact must have been exported for that runtime.
        weights: raw, ema or swa of a checkpoint; ema if there, else raw, by default.
        lowered_for: whose lowered graph an artifact runs as in torch.

    Raises:
        UsageError: a runtime or an option that is not offered, or that does not go with this path.
        ArtifactError: no export for that runtime, or a damaged one.
        MissingRuntimeError: the runtime or the device is not there.
    """
    opening = Opening(path, runtime, weights, lowered_for)
    return replace(_open(opening), opening=opening)


def _open(opening: Opening) -> Model:
    path, weights, settings = opening.path, opening.weights, opening.runtime
    kind = kind_of(path)
    if settings.runtime is None:
        settings = replace(settings, runtime=_default_runtime(path, kind, settings.device))
    check_settings(settings)
    if weights is not None and kind != "checkpoint":
        raise UsageError(
            f"{path} holds one set of weights",
            expected="--weights only with a checkpoint",
            got=f"--weights {weights}",
            next_step="leave --weights out",
        )
    if settings.runtime != "torch":
        target = target_of(settings)
        folder = path if kind == "deployment" else deployment_folder(path, target)
        if not (folder / MANIFEST).is_file():
            raise ArtifactError(
                f"{path} was not exported for {target}",
                expected=f"a deployment in {folder}",
                got="none",
                next_step=f"flatq export {path} {EXPORT_FLAGS[target]}",
            )
        return _open_deployment(folder, path.name, settings)
    if kind == "deployment":
        raise UsageError(
            f"{path} is lowered for a deployment runtime",
            expected="--runtime " + runtime_of(read_deployment(path)[0].target),
            got="--runtime torch",
            next_step="name the artifact to run it in torch",
        )
    if kind == "checkpoint":
        return _open_checkpoint(path, weights, settings)
    return _open_artifact(path, settings, opening.lowered_for)


def checkpoint_beside(path: Path) -> Path:
    """The checkpoint that an artifact was made from, where it still stands beside the artifact's folder.

    Raises:
        UsageError: it does not, or the path is no artifact.
    """
    from flatq.checkpoint import file_digest
    from flatq.quantize.artifact import read_manifest

    expected = "a float checkpoint to compare with"
    if kind_of(path) == "artifact":
        parent = read_manifest(path).parent
        candidate = path.resolve().parent / str(parent["file"])
        if candidate.is_file() and file_digest(candidate) == parent["sha256"]:
            return candidate
        expected = f"the checkpoint that {path.name} was made from, as {candidate}"
    raise UsageError(
        "no baseline",
        expected=expected,
        got="none",
        next_step="name the float checkpoint: --baseline CKPT.pt, or EvaluateSettings(baseline=...)",
    )


def parent_weights(models: Sequence[Path], baseline: Path, average: str | None) -> str | None:
    """The weights of the baseline to compare the models with: those that they were made from, else `average`.

    Raises:
        ArtifactError: a model that was made from another checkpoint.
        UsageError: models of different weights, or of others than `average`.
    """
    from flatq.checkpoint import file_digest
    from flatq.quantize.artifact import read_manifest

    found: dict[str, str] = {}
    for path in models:
        kind = kind_of(path)
        if kind == "checkpoint":
            continue
        parent = (
            read_manifest(path).parent
            if kind == "artifact"
            else read_deployment(path)[0].provenance["parent"]
        )
        found[str(path)] = str(parent["weights"])
        if kind_of(baseline) == "checkpoint" and parent["sha256"] != file_digest(baseline):
            raise ArtifactError(
                f"{path} was not made from {baseline}",
                expected=f"a checkpoint with sha256 {str(parent['sha256'])[:16]}...",
                got=f"sha256 {file_digest(baseline)[:16]}...",
                next_step="name the checkpoint it was made from with --baseline",
            )
    if len(set(found.values())) > 1:
        raise UsageError(
            "the models were made from different weights of the checkpoint",
            expected="models of one kind of weights in one evaluation",
            got=", ".join(f"{path}: {weights}" for path, weights in found.items()),
            next_step="evaluate them in two runs",
        )
    inherited = next(iter(found.values()), None)
    if average is not None and inherited not in (None, average):
        raise UsageError(
            "the baseline's weights are not those that the models were made from",
            expected=f"--weights {inherited}",
            got=f"--weights {average}",
            next_step="leave --weights out",
        )
    return average or inherited


def _default_runtime(path: Path, kind: Kind, device: str | None) -> str:
    if kind == "deployment":
        return runtime_of(read_deployment(path)[0].target, device)
    return "torch" if kind == "checkpoint" and device != "tensorrt" else "onnxruntime"


def _open_deployment(folder: Path, name: str, settings: RuntimeSettings) -> Model:
    deployment, file = read_deployment(folder)
    check_place(deployment, folder, settings)
    parent: dict[str, Any] = deployment.provenance.get("parent", {})
    return Model(
        open_runtime(deployment, file, settings),
        deployment.process,
        deployment.image_shape,
        deployment.classes,
        name,
        deployment.precision,
        str(parent.get("weights", "unknown")),
        deployment.sha256,
        sum((folder / part).stat().st_size for part in (deployment.file, *deployment.files)),
        read_audit(folder, deployment) if settings.device in (None, "cpu") else None,
    )


def _open_checkpoint(path: Path, weights: str | None, settings: RuntimeSettings) -> Model:
    from flatq.checkpoint import load_checkpoint
    from flatq.runtime.torch import TorchRuntime

    checkpoint = load_checkpoint(path)
    chosen = checkpoint.choose(weights)
    network = checkpoint.network(chosen)
    size = sum(value.numel() * value.element_size() for value in checkpoint.weights[chosen].values())
    shape, classes, digest = checkpoint.model.image_shape, checkpoint.model.classes, checkpoint.digest or ""
    runtime = TorchRuntime(
        network, inputs=checkpoint.model.inputs, device=settings.device or "cpu", threads=settings.threads
    )
    return Model(runtime, checkpoint.process, shape, classes, path.name, "fp32", chosen, digest, size)


def _open_artifact(path: Path, settings: RuntimeSettings, target: Target) -> Model:
    from flatq.checkpoint import file_digest
    from flatq.quantize.artifact import read_artifact
    from flatq.quantize.lowering import lower
    from flatq.runtime.torch import TorchRuntime

    artifact = read_artifact(path)
    manifest = artifact.manifest
    runtime = TorchRuntime(
        lower(artifact, target).graph,
        inputs=manifest.model.inputs,
        device=settings.device or "cpu",
        threads=settings.threads,
    )
    return Model(
        runtime,
        manifest.process,
        manifest.model.image_shape,
        manifest.model.classes,
        path.name,
        manifest.precision,
        str(manifest.parent["weights"]),
        file_digest(path / MANIFEST),
        (path / "weights.safetensors").stat().st_size,
    )
