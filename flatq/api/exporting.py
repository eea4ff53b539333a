"""`export` and `verify`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from flatq.api.results import Exported, Quantized, Saved, checkpoint_of, path_of, silent
from flatq.checkpoint import choose_weights
from flatq.deployment import FloatPrecision, read_deployment
from flatq.errors import MissingRuntimeError, ModelError, UsageError
from flatq.export.settings import ExportSettings
from flatq.models import Kind, deployment_folder, kind_of
from flatq.progress import Note, Progress
from flatq.runtime.cpu import saturation_note

if TYPE_CHECKING:
    from flatq.quantize.artifact import Artifact
    from flatq.quantize.lowering import Lowered
    from flatq.verify.verification import Verified

__all__ = ["export", "verify"]


def export(
    model: Saved,
    settings: ExportSettings = ExportSettings(),
    out: str | Path | None = None,
    *,
    progress: Progress | None = None,
    note: Note = silent,
) -> Exported:
    """Lower an artifact (or the float model of a checkpoint) for a target and write its deployment folder.

    An artifact's deployment is verified and audited before it is put in place. For TensorRT the engine of
    this machine's GPU is built too. A folder that was exported for TensorRT gets its engine only.

    Args:
        out: by default inside the artifact, or beside the checkpoint; an earlier export there is replaced.

    Raises:
        ModelError: the deployment does not compute what the PyTorch reference does; nothing is put in place.
        UsageError: settings that the model or the target does not take.
        ArtifactError: the artifact is damaged.
        MissingRuntimeError: the target's converter is not installed, or the runtime that verifies.
    """
    path, target = path_of(model), settings.target
    kind = kind_of(path)
    _check_export(path, kind, settings, out)
    if kind == "deployment":
        return _with_engine(Exported(path, read_deployment(path)[0]), settings, note)
    folder = deployment_folder(path, target) if out is None else Path(out)
    note(f"exporting {path} for {target}")
    if kind == "checkpoint":
        from flatq.export.deploy import export_checkpoint

        loaded = checkpoint_of(model)
        deployment = export_checkpoint(
            loaded,
            target,
            folder,
            average=choose_weights(loaded, settings.weights, note),
            float_precision=settings.float_precision,
            plain=settings.plain,
        )
        exported = Exported(folder, deployment)
    else:
        exported = _export_artifact(path, folder, settings, progress, note)
    size = sum(
        (folder / name).stat().st_size for name in (exported.deployment.file, *exported.deployment.files)
    )
    note(f"{exported.deployment.precision}, {size:,} bytes")
    if target != "tensorrt":
        return exported
    return _with_engine(exported, settings, note, path if kind == "artifact" else None)


def verify(
    artifact: str | Path | Quantized,
    deployment: str | Path | Exported | None = None,
    *,
    parity: bool = True,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Verified:
    """Compare each layer of a deployment with the artifact that it was exported from, and audit its kernels.

    The results are written into the deployment's folder: `verify.json` and `audit.json`.

    Args:
        deployment: by default that for ONNX Runtime, inside the artifact.
        parity: compare the layers; without it there is the audit alone.
        threads: number of CPU threads, all cores by default.

    Raises:
        ModelError: the deployment does not compute what the PyTorch reference does; nothing is written.
        ArtifactError, UsageError: a folder that is damaged, or was not exported from this artifact.
        MissingRuntimeError: the runtime is not installed.
    """
    from flatq.quantize.artifact import read_artifact
    from flatq.quantize.lowering import lower
    from flatq.verify.verification import parent_beside, verify_deployment

    path = path_of(artifact)
    folder = deployment_folder(path) if deployment is None else path_of(deployment)
    loaded = read_artifact(path)
    return verify_deployment(
        loaded,
        folder,
        lower(loaded, read_deployment(folder)[0].target),
        parity=parity,
        baseline=parent_beside(loaded.manifest, path) if parity else None,
        threads=threads,
        progress=progress,
    )


def _check_export(path: Path, kind: Kind, settings: ExportSettings, out: str | Path | None) -> None:
    """Refuse settings that do not go with what stands at the path, before anything is written."""
    offered = get_args(FloatPrecision)
    if settings.float_precision not in offered:
        raise UsageError(
            "--float-precision is not valid",
            expected="one of " + ", ".join(offered),
            got=settings.float_precision,
        )
    engine_alone = kind == "deployment" and settings.target == "tensorrt" and out is None
    if (kind == "deployment" and not engine_alone) or (kind == "artifact" and settings.weights):
        raise UsageError(
            f"{path} cannot be exported so",
            expected="an artifact, or a checkpoint with --weights if you like",
            got=kind + (" with --weights" if settings.weights else ""),
        )
    if settings.require_int8 is not None and kind != "artifact":
        raise UsageError(
            f"--require-int8 cannot be checked for {path}",
            expected="an artifact, whose layers are looked up in what the runtime says it runs",
            got="a deployment folder" if kind == "deployment" else "a float model",
            next_step="name the artifact; for TensorRT on the machine with the GPU",
        )


def _export_artifact(
    path: Path, folder: Path, settings: ExportSettings, progress: Progress | None, note: Note
) -> Exported:
    """Lower, verify, put in place; for TensorRT what needs no engine."""
    from flatq.export.deploy import export_artifact
    from flatq.verify.tables import audit_summary, parity_summary
    from flatq.verify.verification import parent_beside, verify_deployment

    found: list[Verified] = []

    def check(folder: Path, artifact: Artifact, lowered: Lowered) -> None:
        problem = saturation_note()
        bits = {d.scheme.bits for d in artifact.manifest.decisions if d.port == "weight" and d.scheme}
        saturates = problem is not None and settings.target == "openvino" and 8 in bits
        if saturates:
            note(f"{problem} (this artifact has such weights)")
        try:
            verified = verify_deployment(
                artifact,
                folder,
                lowered,
                parity=settings.verify,
                baseline=parent_beside(artifact.manifest, path) if settings.verify else None,
                threads=settings.threads,
                progress=progress,
            )
        except ModelError as error:
            if saturates:
                error.next_step = problem
            raise
        except MissingRuntimeError as error:
            if settings.verify or settings.require_int8 is not None:
                raise
            note(f"no audit: {error.what}")
            return
        if verified.parity is not None:
            note(f"verified: {parity_summary(verified.parity)}")
        note(f"audit: {audit_summary(verified.audit)}")
        found.append(verified)

    deployment = export_artifact(
        path,
        settings.target,
        folder,
        float_precision=settings.float_precision,
        plain=settings.plain,
        check=None if settings.target == "tensorrt" else check,
    )
    parity, audit = (found[0].parity, found[0].audit) if found else (None, None)
    return Exported(folder, deployment, parity=parity, audit=audit, required=settings.require_int8)


def _with_engine(
    exported: Exported, settings: ExportSettings, note: Note, artifact: Path | None = None
) -> Exported:
    """With the TensorRT engine of this machine and, for an artifact, its audit."""
    from flatq.export.engine import build_engine
    from flatq.verify.tables import audit_summary

    if artifact is not None and settings.verify:
        note("for TensorRT no layer is compared with the torch graph: that needs an engine on its GPU")
    note(f"building the TensorRT engine of {exported.folder}")
    try:
        engine = build_engine(exported.folder, settings.batches)
    except MissingRuntimeError as error:
        if artifact is not None and settings.require_int8 is not None:
            error = MissingRuntimeError(
                f"--require-int8 was not checked for TensorRT: {error.what}",
                expected=error.expected,
                got=error.got,
                next_step=f"copy {artifact} to the machine with the GPU, then there: "
                f"flatq export {artifact.name} --trt --require-int8 {settings.require_int8:g}",
            )
        return replace(exported, missing=error)
    audit = None
    if artifact is not None and (settings.verify or settings.require_int8 is not None):
        audit = verify(artifact, exported, parity=False).audit
        note(f"audit: {audit_summary(audit)}")
    return replace(exported, engine=engine, audit=audit)
