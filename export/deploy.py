"""The deployment folder: the model for one target, and the manifest beside it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx

from flatq.checkpoint import Checkpoint, file_digest
from flatq.deployment import AUDIT, MANIFEST, PARITY, Deployment, FloatPrecision, Target
from flatq.errors import UsageError
from flatq.export.floats import halve_floats
from flatq.export.onnx import to_onnx, weight_initializers
from flatq.export.rewrites import summary, tune, without_group_norm
from flatq.export.targets import check_floats, converter_versions, write_model
from flatq.files import replacing
from flatq.network_config import ModelConfig
from flatq.process import ProcessConfig
from flatq.quantize.artifact import Artifact, read_artifact
from flatq.quantize.lowering import Lowered, lower
from flatq.quantize.rounding import package_versions
from flatq.quantize.trace import trace
from flatq.runtime.engines import is_engine_file

__all__ = ["Check", "export_artifact", "export_checkpoint"]

Check = Callable[[Path, Artifact, Lowered], None]
"""Looks at a written folder before it is moved into place; it may add to it, or raise."""


def export_artifact(
    folder: Path,
    target: Target,
    out: Path,
    *,
    float_precision: FloatPrecision = "fp32",
    plain: bool = False,
    check: Check | None = None,
) -> Deployment:
    """Lower an artifact for a target and write its deployment folder.

    Args:
        float_precision: of the non-quantized operators.
        plain: leave the graph as torch's exporter writes it, without `flatq.export.rewrites`; those are made
            for float32, so another float precision leaves them out too.
        check: called before the folder is moved into place; what it raises leaves `out` as it was.

    Raises:
        ArtifactError, ModelError: the artifact is damaged, or the exporter or the target refuses its graph.
        MissingRuntimeError: the target's own converter is not installed.
        UsageError: the output folder holds something else than an earlier export; the target does not take
            that float precision.
    """
    check_floats(target, float_precision, quantized=True)
    packages = converter_versions(target)
    _check_free(out)
    artifact = read_artifact(folder)
    manifest = artifact.manifest
    lowered = lower(artifact, target)
    weights = [*lowered.layers.values(), *manifest.float_weights.values()]
    model = to_onnx(lowered.graph, manifest.model, weights)
    names = weight_initializers(model, lowered.layers)
    bits = {d.node: d.scheme.bits for d in manifest.decisions if d.port == "weight" and d.scheme}
    provenance = {
        "artifact": artifact.digest,
        "recipe": manifest.recipe.name,
        "rounding": manifest.rounding.describe(),
        "weights_bits": {layer: bits[layer] for layer in names},
        "parent": manifest.parent,
        "versions": package_versions() | packages,
        "rewrites": {} if plain or float_precision != "fp32" else summary(tune(model, target)),
    }
    widths = {initializer: bits[layer] for layer, initializer in names.items()}
    return _write(
        model,
        widths,
        out,
        target=target,
        config=manifest.model,
        process=manifest.process,
        precision=manifest.precision,
        float_precision=float_precision,
        provenance=provenance,
        check=None if check is None else lambda partial: check(partial, artifact, lowered),
    )


def export_checkpoint(
    checkpoint: Checkpoint,
    target: Target,
    out: Path,
    *,
    average: str | None = None,
    float_precision: FloatPrecision = "fp32",
    plain: bool = False,
) -> Deployment:
    """Write the float model of a checkpoint as a deployment folder, by the same exporter.

    Args and raises: as `export_artifact`.
    """
    check_floats(target, float_precision, quantized=False)
    packages = converter_versions(target)
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
        "versions": package_versions() | packages,
        "rewrites": {} if plain or float_precision != "fp32" else summary(tune(model, target)),
    }
    return _write(
        model,
        {},
        out,
        target=target,
        config=config,
        process=checkpoint.process,
        precision=float_precision,
        float_precision=float_precision,
        provenance=provenance,
    )


def _check_free(out: Path) -> None:
    if not out.exists():
        return
    if not out.is_dir() or (any(out.iterdir()) and not _is_export(out)):
        raise UsageError(
            f"{out} holds something else than an export",
            expected="a new folder, or an earlier export to replace",
            got="other files",
            next_step="choose another folder with -o",
        )


def _is_export(folder: Path) -> bool:
    """Whether nothing but an earlier export and what was built from it stands there."""
    try:
        deployment = Deployment.model_validate_json((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    written = {MANIFEST, AUDIT, PARITY, deployment.file, *deployment.files}
    return all(p.name in written or is_engine_file(p.name) for p in folder.iterdir())


def _write(
    model: onnx.ModelProto,
    bits: Mapping[str, int],
    out: Path,
    *,
    target: Target,
    config: ModelConfig,
    process: ProcessConfig,
    precision: str,
    float_precision: FloatPrecision,
    provenance: dict[str, Any],
    check: Callable[[Path], None] | None = None,
) -> Deployment:
    if target != "onnxruntime":
        without_group_norm(model)
    if target != "openvino":  # whose own converter does it
        model = halve_floats(model, float_precision)
    for key, value in (("flatq.target", target), ("flatq.precision", precision)):
        model.metadata_props.add(key=key, value=value)
    model.metadata_props.add(key="flatq.provenance", value=json.dumps(provenance, sort_keys=True))
    model.producer_name = "flatq"
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as partial:
        partial.mkdir()
        main = write_model(model, bits, partial, target, float_precision)
        files = {path.name: file_digest(path) for path in sorted(partial.iterdir())}
        deployment = Deployment(
            target=target,
            file=main,
            sha256=files.pop(main),
            files=files,
            float_precision=float_precision,
            inputs=config.inputs,
            classes=config.classes,
            process=process,
            precision=precision,
            provenance=provenance,
        )
        (partial / MANIFEST).write_text(deployment.model_dump_json(indent=1) + "\n", encoding="utf-8")
        if check is not None:
            check(partial)
        if out.exists():
            shutil.rmtree(out)
    return deployment
