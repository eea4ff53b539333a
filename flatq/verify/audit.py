"""The audit: which kernels a runtime really runs for a deployment, against the plan.

What runs comes from the runtime's own account (`flatq.verify.inspection`); the plan only says what was wanted
and why a candidate is float.
"""

from __future__ import annotations

from pathlib import Path

from flatq.deployment import Deployment, read_deployment
from flatq.quantize.artifact import Artifact
from flatq.quantize.lowering import Lowered
from flatq.recipe import Decision
from flatq.runtime.base import default_threads
from flatq.verify.inspection import Found, Inspection
from flatq.verify.origin import check_origin
from flatq.verify.results import Audit, AuditEntry

__all__ = ["audit_deployment", "audit_from"]


def audit_deployment(
    artifact: Artifact, folder: Path, *, lowered: Lowered, threads: int | None = None
) -> Audit:
    """Ask the runtime of a deployment what it runs.

    Args:
        artifact: as `flatq.quantize.artifact.read_artifact` returns it.
        folder: the deployment that was exported from it.
        lowered: the artifact's graph for the deployment's target.

    Raises:
        ArtifactError: the deployment is damaged.
        MissingRuntimeError: its runtime is not installed, or TensorRT has no engine for this machine.
        UsageError: the deployment was exported from another artifact.
    """
    deployment, path = read_deployment(folder)
    check_origin(deployment, folder, artifact)
    inspection = _inspect(deployment, path, artifact, lowered, threads or default_threads())
    return audit_from(inspection, artifact, deployment)


def _inspect(
    deployment: Deployment, path: Path, artifact: Artifact, lowered: Lowered, threads: int
) -> Inspection:
    if deployment.target in ("onnxruntime", "generic"):
        from flatq.verify.onnx_inspection import inspect_onnxruntime

        return inspect_onnxruntime(path, artifact, lowered, threads)
    if deployment.target == "openvino":
        from flatq.verify.openvino_inspection import inspect_openvino

        return inspect_openvino(path, artifact, lowered, threads)
    from flatq.verify.tensorrt_inspection import inspect_tensorrt

    return inspect_tensorrt(path, deployment, artifact, lowered)


def audit_from(inspection: Inspection, artifact: Artifact, deployment: Deployment) -> Audit:
    """Hold a runtime's account against the plan; every candidate of the plan gets exactly one entry."""
    decisions: dict[str, dict[str, Decision]] = {}
    for decision in artifact.manifest.decisions:
        decisions.setdefault(decision.node, {})[decision.port] = decision
    strangers = set(inspection.found) - set(decisions)
    assert not strangers, f"the inspection names what is not planned: {sorted(strangers)}"
    entries = tuple(
        _entry(ports, inspection.found.get(name), inspection.stored_bits.get(name))
        for name, ports in decisions.items()
    )
    audit = Audit(
        target=deployment.target,
        model_digest=deployment.digest,
        runtime=dict(inspection.runtime),
        source=inspection.source,
        entries=entries,
        unmatched=inspection.unmatched,
        operators=dict(sorted(inspection.operators.items(), key=lambda item: (-item[1], item[0]))),
    )
    planned = {name: next(iter(ports.values())).macs for name, ports in decisions.items()}
    assert {entry.layer: entry.macs for entry in audit.entries} == planned
    return audit


def _entry(ports: dict[str, Decision], found: Found | None, stored_bits: int | None) -> AuditEntry:
    first = next(iter(ports.values()))
    integer = found is not None and found.integer and (first.kind != "attention" or found.products > 1)
    return AuditEntry(
        layer=first.node,
        kind=first.kind,
        macs=first.macs,
        planned=any(decision.scheme is not None for decision in ports.values()),
        kernels=found.kernels if found else (),
        precision=found.precision if found else None,
        integer=integer,
        stored_bits=stored_bits,
        reason=None if integer else _reason(ports, found),
    )


def _reason(ports: dict[str, Decision], found: Found | None) -> str:
    if found is None:
        return "nothing in the runtime's account of itself holds its weight or does its products"
    first = next(iter(ports.values()))
    if first.scheme is None:
        return first.reason
    if first.kind != "attention" and ports["input"].scheme is None:
        return f"only its weight is quantized, so that it is multiplied in {found.precision}"
    if first.kind == "attention" and found.products < 2:
        return "only one of its two products is in the runtime's account of itself"
    return found.remark or "the runtime does not say why"
