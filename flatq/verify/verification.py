"""Verifying a deployment and keeping what was found beside its manifest: what `flatq export` does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flatq.checkpoint import Checkpoint, file_digest, load_checkpoint
from flatq.deployment import AUDIT, PARITY
from flatq.progress import Progress
from flatq.quantize.artifact import Artifact, Manifest
from flatq.quantize.lowering import Lowered
from flatq.verify.audit import audit_deployment
from flatq.verify.parity import verify_parity
from flatq.verify.results import Audit, Parity

__all__ = ["Verified", "parent_beside", "verify_deployment"]


@dataclass(frozen=True)
class Verified:
    """What was found; no parity where it was not asked for."""

    parity: Parity | None
    audit: Audit


def verify_deployment(
    artifact: Artifact,
    folder: Path,
    lowered: Lowered,
    *,
    parity: bool = True,
    baseline: Checkpoint | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Verified:
    """Verify and audit a deployment and write `verify.json` and `audit.json` into its folder.

    Args:
        parity: whether to compare the layers; the audit is made in any case.
        baseline: the float checkpoint that was quantized, for ratios against it.

    Raises:
        ModelError: the deployment does not compute what the torch graph does; nothing is written.
        ArtifactError, MissingRuntimeError, UsageError: as `verify_parity` and `audit_deployment`.
    """
    found = None
    if parity:
        found = verify_parity(
            artifact, folder, lowered=lowered, baseline=baseline, threads=threads, progress=progress
        )
        found.check()
    audit = audit_deployment(artifact, folder, lowered=lowered, threads=threads)
    for name, result in ((PARITY, found), (AUDIT, audit)):
        if result is not None:
            (folder / name).write_text(result.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return Verified(found, audit)


def parent_beside(manifest: Manifest, folder: Path) -> Checkpoint | None:
    """The checkpoint that was quantized, if it still stands beside the artifact's folder."""
    path = folder.resolve().parent / str(manifest.parent.get("file"))
    if not path.is_file() or file_digest(path) != manifest.parent.get("sha256"):
        return None
    return load_checkpoint(path)
