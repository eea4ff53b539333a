"""The audit: which kernels a runtime really runs for a deployment, against the plan.

What runs comes from the runtime's own account (`flatq.verify.inspection`); the plan only says what was wanted
and why a candidate is float.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flatq.deployment import Deployment
from flatq.quantize.artifact import Artifact
from flatq.quantize.lowering import Lowered
from flatq.recipe import Decision
from flatq.runtime.base import default_threads
from flatq.verify.inspection import Found, Inspection
from flatq.verify.origin import read_exported
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
    deployment, path = read_exported(folder, artifact)
    threads = threads or default_threads()
    if deployment.target == "tensorrt":
        from flatq.verify.tensorrt_inspection import inspect_tensorrt

        inspection = inspect_tensorrt(path, deployment, artifact, lowered)
    elif deployment.target == "openvino":
        from flatq.verify.openvino_inspection import inspect_openvino

        inspection = inspect_openvino(path, artifact, lowered, threads)
    else:
        from flatq.verify.onnx_inspection import inspect_onnxruntime

        inspection = inspect_onnxruntime(path, artifact, lowered, threads)
    return audit_from(inspection, artifact, deployment)


def audit_from(inspection: Inspection, artifact: Artifact, deployment: Deployment) -> Audit:
    """Compare a runtime's account with the plan; every candidate of the plan gets exactly one entry."""
    decisions: dict[str, dict[str, Decision]] = {}
    for decision in artifact.manifest.decisions:
        decisions.setdefault(decision.node, {})[decision.port] = decision
    strangers = set(inspection.found) - set(decisions)
    assert not strangers, f"the inspection names what is not planned: {sorted(strangers)}"
    return Audit(
        target=deployment.target,
        model_digest=deployment.digest,
        runtime=dict(inspection.runtime),
        source=inspection.source,
        entries=tuple(
            _entry(ports, inspection.found.get(name, []), inspection.stored_bits.get(name))
            for name, ports in decisions.items()
        ),
        unmatched=inspection.unmatched,
        operators=dict(sorted(inspection.operators.items(), key=lambda item: (-item[1], item[0]))),
    )


def _entry(ports: dict[str, Decision], found: Sequence[Found], stored_bits: int | None) -> AuditEntry:
    first = next(iter(ports.values()))
    attention = first.kind == "attention"
    precision = ", ".join(dict.fromkeys(part.precision for part in found))
    missing = not found or (attention and sum(part.products for part in found) < 2)
    integer = not missing and all(part.integer for part in found)
    if integer:
        reason = None
    elif not found:
        reason = "nothing in the runtime's account of itself holds its weight or does its products"
    elif first.scheme is None:
        reason = first.reason
    elif not attention and ports["input"].scheme is None:
        reason = f"only its weight is quantized, so that it is multiplied in {precision}"
    elif missing:
        reason = "only one of its two products is in the runtime's account of itself"
    else:
        reason = next((part.remark for part in found if part.remark), "the runtime does not say why")
    return AuditEntry(
        layer=first.node,
        kind=first.kind,
        macs=first.macs,
        planned=any(decision.scheme is not None for decision in ports.values()),
        kernels=tuple(part.kernel for part in found),
        precision=precision or None,
        integer=integer,
        stored_bits=stored_bits,
        reason=reason,
    )
