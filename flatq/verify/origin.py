"""Reading a deployment that was exported from a given artifact."""

from __future__ import annotations

from pathlib import Path

from flatq.deployment import Deployment, read_deployment
from flatq.errors import UsageError
from flatq.quantize.artifact import Artifact

__all__ = ["read_exported"]


def read_exported(folder: Path, artifact: Artifact) -> tuple[Deployment, Path]:
    """The manifest and the path of the model file of a deployment, as `read_deployment`.

    Args:
        artifact: as `read_artifact` returns it; one that was never written has no digest and is refused.

    Raises:
        ArtifactError: the deployment is damaged.
        UsageError: the deployment was exported from another artifact, or from a checkpoint.
    """
    deployment, path = read_deployment(folder)
    recorded = deployment.provenance.get("artifact")
    if recorded is None or recorded != artifact.digest:
        raise UsageError(
            f"{folder} was not exported from this artifact",
            expected=f"an artifact with sha256 {str(recorded)[:16]}..." if recorded else "a float checkpoint",
            got=f"sha256 {str(artifact.digest)[:16]}..., {artifact.manifest.precision}, "
            f"{artifact.manifest.parent['weights']} weights",
            next_step="name the artifact that it was exported from, or export again",
        )
    return deployment, path
