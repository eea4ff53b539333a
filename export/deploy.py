"""The deployment folder: a model file for one target, and the manifest beside it."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import onnx

from flatq.checkpoint import Checkpoint, ModelConfig
from flatq.deployment import MANIFEST, Deployment, Target
from flatq.errors import UsageError
from flatq.export.onnx import store_int4, to_onnx, weight_initializers
from flatq.export.rewrites import summary, tune
from flatq.process import ProcessConfig
from flatq.quantize.artifact import read_artifact
from flatq.quantize.lowering import lower
from flatq.quantize.rounding import package_versions
from flatq.quantize.trace import trace

__all__ = ["export_artifact", "export_checkpoint"]

_FILE = "model.onnx"


def export_artifact(folder: Path, target: Target, out: Path, *, plain: bool = False) -> Deployment:
    """Lower an artifact for a target and write its deployment folder.

    Args:
        plain: leave the graph as torch's exporter writes it, without `flatq.export.rewrites`.

    Raises:
        ArtifactError, ModelError: the artifact is damaged, or the exporter refuses its graph.
        UsageError: the output folder holds something else than an earlier export.
    """
    _check_free(out)
    artifact = read_artifact(folder)
    manifest = artifact.manifest
    lowered = lower(artifact, target)
    model = to_onnx(lowered.graph, manifest.model)
    names = weight_initializers(model, lowered.layers)
    bits = {d.node: d.scheme.bits for d in manifest.decisions if d.port == "weight" and d.scheme}
    store_int4(model, {initializer: layer for layer, initializer in names.items() if bits[layer] == 4})
    provenance = {
        "artifact": hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest(),
        "recipe": manifest.recipe.name,
        "weights_bits": {layer: bits[layer] for layer in names},
        "parent": manifest.parent,
        "rewrites": {} if plain else summary(tune(model, target)),
    }
    return _write(model, out, target, manifest.model, manifest.process, manifest.recipe.name, provenance)


def export_checkpoint(
    checkpoint: Checkpoint, target: Target, out: Path, *, average: str | None = None, plain: bool = False
) -> Deployment:
    """Write the float model of a checkpoint as a deployment folder, by the same exporter.

    Args and raises: as `export_artifact`.
    """
    _check_free(out)
    chosen = checkpoint.choose(average)
    config = checkpoint.model
    model = to_onnx(trace(checkpoint.network(chosen), config), config)
    provenance = {
        "parent": {
            "sha256": checkpoint.digest,
            "file": checkpoint.source.name if checkpoint.source else None,
            "weights": chosen,
            "provenance": dict(checkpoint.provenance),
        },
        "rewrites": {} if plain else summary(tune(model, target)),
    }
    return _write(model, out, target, config, checkpoint.process, "fp32", provenance)


def _check_free(out: Path) -> None:
    if out.exists() and not (out.is_dir() and {p.name for p in out.iterdir()} <= {MANIFEST, _FILE}):
        raise UsageError(
            f"{out} holds something else than an export",
            expected="a new folder, or an earlier export to replace",
            got="other files",
            next_step="choose another folder with -o",
        )


def _write(
    model: onnx.ModelProto,
    out: Path,
    target: Target,
    config: ModelConfig,
    process: ProcessConfig,
    precision: str,
    provenance: dict[str, Any],
) -> Deployment:
    provenance = {**provenance, "versions": package_versions() | {"onnx": onnx.__version__}}
    for key, value in (("flatq.target", target), ("flatq.precision", precision)):
        model.metadata_props.add(key=key, value=value)
    model.metadata_props.add(key="flatq.provenance", value=json.dumps(provenance, sort_keys=True))
    model.producer_name = "flatq"
    onnx.checker.check_model(model, full_check=True)
    content = model.SerializeToString(deterministic=True)
    deployment = Deployment(
        target=target,
        file=_FILE,
        sha256=hashlib.sha256(content).hexdigest(),
        image_shape=config.image_shape,
        classes=config.classes,
        process=process,
        precision=precision,
        provenance=provenance,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        (partial / _FILE).write_bytes(content)
        (partial / MANIFEST).write_text(deployment.model_dump_json(indent=1) + "\n", encoding="utf-8")
        partial.chmod(0o755)
        if out.exists():
            shutil.rmtree(out)
        partial.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return deployment
