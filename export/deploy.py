"""The deployment folder: the model for one target, and the manifest beside it.

The models are ONNX files of opset 21 but OpenVINO's, which is its IR. In them stands:

- in front of every planned layer QuantizeLinear and DequantizeLinear of its input, per tensor; behind it only
  for ONNX Runtime; a 4-bit activation is clipped to its 16 values before it, and so on;
- the weight as an initializer behind DequantizeLinear, per output channel (axis 0) or per tensor, with zero
  point 0: INT8 for TensorRT and `generic` (-8..7 at 4 bits: TensorRT's INT4 is for matrix products with float
  activations, and few other consumers read INT4 in front of a convolution), INT4 behind a Cast at 4 bits and
  less for ONNX Runtime and OpenVINO, which fold the Cast when they load the model;
- where the recipe quantizes attention, the same in front of both factors of its two products;
- bias, normalization and everything else in float;
- inputs x float32 [batch, C, H, W], t int64 [batch] and, with classes, label int64 [batch]; output `out`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

from flatq.checkpoint import Checkpoint, file_digest
from flatq.deployment import AUDIT, MANIFEST, PARITY, Deployment, FloatPrecision, Target
from flatq.errors import ModelError, UsageError
from flatq.export.floats import halve_floats
from flatq.export.onnx import ONNX_FILE, find_weights, narrow_weights, save_onnx, to_onnx
from flatq.export.openvino import write_openvino
from flatq.export.rewrites import summary, tune, without_group_norm
from flatq.files import replacing
from flatq.quantize.artifact import Artifact, Manifest, read_artifact
from flatq.quantize.lowering import Lowered, lower
from flatq.quantize.rounding import package_versions, parent_record
from flatq.quantize.trace import trace
from flatq.runtime.engines import is_engine_file
from flatq.runtime.openvino import import_openvino

__all__ = ["Check", "export_artifact", "export_checkpoint"]

Check = Callable[[Path, Artifact, Lowered], None]
"""Looks at a written folder before it is moved into place; it may add to it, or raise."""

_INTEGERS_WANT_FLOAT32 = "the kernels with integers go with float32; fp16 is for float checkpoints"
_BF16_AT_RUN_TIME = "OpenVINO takes bf16 when it runs, not in the file: --precision bf16"
_REFUSED: dict[tuple[Target, FloatPrecision, bool], str] = {
    ("onnxruntime", "fp16", True): _INTEGERS_WANT_FLOAT32,
    ("onnxruntime", "bf16", True): _INTEGERS_WANT_FLOAT32,
    ("onnxruntime", "bf16", False): "ONNX Runtime has no convolution in bf16",
    ("openvino", "bf16", True): _BF16_AT_RUN_TIME,
    ("openvino", "bf16", False): _BF16_AT_RUN_TIME,
    ("generic", "fp16", True): "the generic form is float32 outside the integers",
    ("generic", "bf16", True): "the generic form is float32 outside the integers",
    ("generic", "bf16", False): "few consumers of ONNX take bf16",
}
"""(target, type of the floats, quantized) -> why not. What is left: fp16 of float checkpoints, fp16
in OpenVINO's file (it computes in what `--precision` says), and fp16 and bf16 for TensorRT."""


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
    _check_floats(target, float_precision, quantized=True)
    converter = _converter_version(target)
    _check_free(out)
    artifact = read_artifact(folder)
    manifest = artifact.manifest
    lowered = lower(artifact, target)
    weights = [*lowered.layers.values(), *manifest.float_weights.values()]
    model = to_onnx(lowered.graph, manifest.model, weights)
    initializers = find_weights([value.name for value in model.graph.initializer], lowered.layers)
    if missing := [layer for layer in lowered.layers if layer not in initializers]:
        raise ModelError(
            f"the exported model holds no integers for {len(missing)} planned layers",
            expected=f"an initializer for {missing[0]}",
            got="none of its name",
            next_step="report it with the versions that `flatq doctor` prints",
        )
    schemes = {d.node: d.scheme for d in manifest.decisions if d.port == "weight" and d.scheme}
    bits = {layer: schemes[layer].bits for layer in initializers}
    provenance = {
        "artifact": artifact.digest,
        "recipe": manifest.recipe.name,
        "rounding": manifest.rounding.describe(),
        "weights_bits": bits,
        "parent": manifest.parent,
        "versions": package_versions() | converter,
        "rewrites": {} if plain or float_precision != "fp32" else summary(tune(model, target)),
    }
    if target in ("onnxruntime", "openvino"):
        narrow_weights(model, {initializers[layer]: width for layer, width in bits.items()})
    return _write(
        model,
        out,
        target,
        manifest,
        manifest.precision,
        float_precision,
        provenance,
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
    _check_floats(target, float_precision, quantized=False)
    converter = _converter_version(target)
    _check_free(out)
    chosen = checkpoint.choose(average)
    model = to_onnx(trace(checkpoint.network(chosen), checkpoint.model), checkpoint.model)
    provenance = {
        "parent": parent_record(checkpoint, chosen),
        "versions": package_versions() | converter,
        "rewrites": {} if plain or float_precision != "fp32" else summary(tune(model, target)),
    }
    return _write(model, out, target, checkpoint, float_precision, float_precision, provenance)


def _check_floats(target: Target, floats: FloatPrecision, *, quantized: bool) -> None:
    """Refuse a type of the float rest that the target does not take.

    Raises:
        UsageError: the combination, with the reason.
    """
    reason = _REFUSED.get((target, floats, quantized))
    if reason is not None:
        raise UsageError(
            f"--float-precision {floats} is not offered for {target}",
            expected="--float-precision fp32" if quantized else "--float-precision fp32 or fp16",
            got=reason,
            next_step="leave --float-precision out",
        )


def _converter_version(target: Target) -> dict[str, str]:
    versions = {"onnx": onnx.__version__}
    return versions | {"openvino": import_openvino().__version__} if target == "openvino" else versions


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
    out: Path,
    target: Target,
    source: Manifest | Checkpoint,
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
        if target == "openvino":
            main = write_openvino(model, partial, float_precision)
        else:
            main = ONNX_FILE
            save_onnx(model, partial / main)
        files = {path.name: file_digest(path) for path in sorted(partial.iterdir())}
        deployment = Deployment(
            target=target,
            file=main,
            sha256=files.pop(main),
            files=files,
            float_precision=float_precision,
            inputs=source.model.inputs,
            classes=source.model.classes,
            process=source.process,
            precision=precision,
            provenance=provenance,
        )
        (partial / MANIFEST).write_text(deployment.model_dump_json(indent=1) + "\n", encoding="utf-8")
        if check is not None:
            check(partial)
        if out.exists():
            shutil.rmtree(out)
    return deployment
