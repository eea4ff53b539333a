"""`flatq export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flatq.cli.common import Weights, note, one_artifact, say_weights
from flatq.errors import UsageError

__all__ = ["command"]


def command(
    path: Annotated[
        Path | None,
        typer.Argument(metavar="[ARTIFACT]", help="An artifact, or a checkpoint for its float model."),
    ] = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="For ONNX Runtime on the CPU.")] = False,
    weights: Weights = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Deployment folder.")] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Without the rewrites that make the runtime faster.")
    ] = False,
) -> None:
    """Lower an artifact (or a float checkpoint) for a runtime and write its deployment folder."""
    from flatq.models import deployment_folder, kind_of

    if not onnx:
        raise UsageError("no target", expected="--onnx", got="none", next_step="flatq export ARTIFACT --onnx")
    path = one_artifact(path)
    kind = kind_of(path)
    folder = out or deployment_folder(path)
    if kind == "deployment" or (kind == "artifact" and weights):
        raise UsageError(
            f"{path} cannot be exported so",
            expected="an artifact, or a checkpoint with --weights if you like",
            got=kind + (" with --weights" if weights else ""),
        )

    from flatq.export import export_artifact, export_checkpoint

    note(f"exporting {path} for ONNX Runtime")
    if kind == "checkpoint":
        from flatq.checkpoint import load_checkpoint

        loaded = load_checkpoint(path)
        chosen = say_weights(loaded, weights)
        deployment = export_checkpoint(loaded, "onnxruntime", folder, average=chosen, plain=plain)
    else:
        deployment = export_artifact(path, "onnxruntime", folder, plain=plain)
    note(f"{deployment.precision}, {(folder / deployment.file).stat().st_size:,} bytes")
    typer.echo(str(folder))
