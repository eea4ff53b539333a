"""From a path to a model that runs: a checkpoint in torch, an artifact or a deployment on its runtime."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flatq.deployment import MANIFEST, read_deployment
from flatq.errors import ArtifactError, CheckpointError, UsageError
from flatq.labels import Classes
from flatq.process import ProcessConfig
from flatq.runtime.base import Runtime

__all__ = ["RUNTIMES", "Model", "deployment_folder", "kind_of", "open_model"]

RUNTIMES = ("torch", "onnxruntime")

Kind = Literal["checkpoint", "artifact", "deployment"]


@dataclass(frozen=True)
class Model:
    """A model ready to sample.

    Attributes:
        runtime: close it (or use it as a context manager) when done.
        process, image_shape, classes: what the sampler needs.
        name: of the path it was opened from.
        precision: fp32 or the recipe's name.
        weights: raw, ema or swa.
        digest: sha256 of the file that decides its numbers.
        size_bytes: of that file or, for a checkpoint, of its chosen weights.
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
    try:
        found = json.loads((path / MANIFEST).read_text(encoding="utf-8")).get("format")
    except (OSError, ValueError, AttributeError) as error:
        raise ArtifactError(
            f"{path} is neither an artifact nor a deployment folder",
            expected=f"a readable {MANIFEST} inside",
            got=str(error),
            next_step="write one with `flatq quantize` or `flatq export`",
        ) from error
    if found == "flatq-artifact":
        return "artifact"
    if found == "flatq-deployment":
        return "deployment"
    raise ArtifactError(
        f"{path / MANIFEST} is of an unknown format",
        expected="flatq-artifact or flatq-deployment",
        got=str(found),
        next_step="use the flatq that wrote it",
    )


def deployment_folder(path: Path, target: str = "onnxruntime") -> Path:
    """Where `flatq export` puts a deployment by default: inside the artifact, beside a checkpoint."""
    return path.with_name(f"{path.stem}.fp32") / target if path.is_file() else path / target


def open_model(
    path: Path, *, runtime: str | None = None, average: str | None = None, threads: int | None = None
) -> Model:
    """Open a checkpoint, an artifact or a deployment folder.

    Args:
        runtime: `torch` or `onnxruntime`. By default a checkpoint runs in torch and the others on ONNX
            Runtime; an artifact's deployment must have been exported.
        average: weights of a checkpoint.

    Raises:
        UsageError: a runtime that is not offered, or that cannot run this kind of path.
    """
    kind = kind_of(path)
    runtime = runtime or ("torch" if kind == "checkpoint" else "onnxruntime")
    if runtime not in RUNTIMES:
        raise UsageError(
            f"the runtime {runtime!r} is not offered",
            expected="one of " + ", ".join(RUNTIMES),
            got=runtime,
            next_step="choose one with --runtime",
        )
    if average is not None and kind != "checkpoint":
        raise UsageError(
            f"{path} holds one set of weights",
            expected="--weights only with a checkpoint",
            got=f"--weights {average}",
            next_step="leave --weights out",
        )
    if runtime == "onnxruntime":
        folder = path if kind == "deployment" else deployment_folder(path)
        if not (folder / MANIFEST).is_file():
            raise ArtifactError(
                f"{path} was not exported for ONNX Runtime",
                expected=f"a deployment in {folder}",
                got="none",
                next_step=f"flatq export {path} --onnx",
            )
        return _open_deployment(folder, path.name, threads)
    if kind == "deployment":
        raise UsageError(
            f"{path} is lowered for a deployment runtime",
            expected="--runtime onnxruntime",
            got="--runtime torch",
            next_step="name the artifact to run it in torch",
        )
    return _open_checkpoint(path, average, threads) if kind == "checkpoint" else _open_artifact(path, threads)


def _open_deployment(folder: Path, name: str, threads: int | None) -> Model:
    from flatq.runtime.onnxruntime import OnnxRuntime

    deployment, file = read_deployment(folder)
    parent: dict[str, Any] = deployment.provenance.get("parent", {})
    return Model(
        OnnxRuntime(file, threads=threads),
        deployment.process,
        deployment.image_shape,
        deployment.classes,
        name,
        deployment.precision,
        str(parent.get("weights", "unknown")),
        deployment.sha256,
        file.stat().st_size,
    )


def _open_checkpoint(path: Path, average: str | None, threads: int | None) -> Model:
    from flatq.checkpoint import load_checkpoint
    from flatq.runtime.torch import TorchRuntime

    checkpoint = load_checkpoint(path)
    chosen = checkpoint.choose(average)
    network = checkpoint.network(chosen)
    size = sum(value.numel() * value.element_size() for value in checkpoint.weights[chosen].values())
    shape, classes, digest = checkpoint.model.image_shape, checkpoint.model.classes, checkpoint.digest or ""
    runtime = TorchRuntime(network, labelled=classes is not None, threads=threads)
    return Model(runtime, checkpoint.process, shape, classes, path.name, "fp32", chosen, digest, size)


def _open_artifact(path: Path, threads: int | None) -> Model:
    from flatq.checkpoint import file_digest
    from flatq.quantize.artifact import read_artifact
    from flatq.quantize.lowering import lower
    from flatq.runtime.torch import TorchRuntime

    artifact = read_artifact(path)
    manifest = artifact.manifest
    labelled = manifest.model.classes is not None
    runtime = TorchRuntime(lower(artifact, "onnxruntime").graph, labelled=labelled, threads=threads)
    return Model(
        runtime,
        manifest.process,
        manifest.model.image_shape,
        manifest.model.classes,
        path.name,
        manifest.recipe.name,
        str(manifest.parent["weights"]),
        file_digest(path / MANIFEST),
        (path / "weights.safetensors").stat().st_size,
    )
