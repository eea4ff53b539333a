"""`flatq inspect`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flatq.cli.common import one_artifact

if TYPE_CHECKING:
    from flatq.quantize.artifact import Manifest
    from flatq.recipe import Decision
    from flatq.verify import Audit, Parity

__all__ = ["command"]


def command(
    path: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="A checkpoint, artifact or deployment.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a checkpoint, an artifact or a deployment folder holds; for an artifact, each layer."""
    from flatq.models import kind_of

    path = one_artifact(path)
    kind = kind_of(path)
    if kind == "artifact":
        from flatq.quantize.artifact import read_artifact

        manifest = read_artifact(path).manifest
        content: dict[str, Any] = manifest.model_dump(mode="json")
    elif kind == "deployment":
        from flatq.deployment import is_float, read_deployment
        from flatq.verify import read_audit, read_parity

        deployment, _ = read_deployment(path)
        audit, parity = read_audit(path, deployment), read_parity(path, deployment)
        content = deployment.model_dump(mode="json")
        if as_json:
            content["audit"] = audit.model_dump(mode="json") if audit else None
            content["parity"] = parity.model_dump(mode="json") if parity else None
    else:
        from flatq.checkpoint import load_checkpoint

        checkpoint = load_checkpoint(path)
        content = {
            "format": "flatq-checkpoint",
            "sha256": checkpoint.digest,
            "weights": {
                name: {"tensors": len(w), "parameters": sum(v.numel() for v in w.values())}
                for name, w in checkpoint.weights.items()
            },
            "model": checkpoint.model.model_dump(mode="json"),
            "process": checkpoint.process.model_dump(mode="json"),
            "provenance": dict(checkpoint.provenance),
        }
    if as_json:
        typer.echo(json.dumps(content, indent=1))
    elif kind == "artifact":
        _print_artifact(manifest)
    else:
        _print_fields(content)
    if kind == "deployment" and not as_json and not is_float(deployment.precision):
        _print_verification(audit, parity)


def _print_verification(audit: Audit | None, parity: Parity | None) -> None:
    from flatq.verify.tables import audit_table, parity_summary

    typer.echo("")
    typer.echo(f"verified: {parity_summary(parity)}" if parity else "not verified: exported with --no-verify")
    for layer in parity.failed if parity else ():
        typer.echo(f"  {layer.layer}: {layer.describe()}")
    typer.echo("")
    typer.echo(audit_table(audit) if audit else "no audit")


def _print_fields(content: dict[str, Any], indent: str = "") -> None:
    for key, value in content.items():
        if isinstance(value, dict):
            typer.echo(f"{indent}{key}:")
            _print_fields(value, indent + "  ")
        else:
            typer.echo(f"{indent}{key}: {value}")


def _branches(decisions: Sequence[Decision]) -> str:
    """What float branches of low rank add, in a line; empty where there are none."""
    from math import prod

    from flatq.recipe import branch_of

    weights = [d for d in decisions if d.port == "weight"]
    parts = [d for d in weights if branch_of(d.node) is not None]
    layers = [d for d in weights if branch_of(d.node) is None]
    if not parts:
        return ""
    added, macs = sum(prod(d.shape) for d in parts), sum(d.macs for d in parts)
    fraction, slower = added / sum(prod(d.shape) for d in layers), macs / sum(d.macs for d in layers)
    return (
        f"float branches beside {len(parts) // 2} of {len(layers)} layers: {added:,} parameters and {macs:,} "
        f"MACs in float, {fraction:.1%} and {slower:.1%} of what the layers have"
    )


def _print_artifact(manifest: Manifest) -> None:
    from flatq.verify.tables import numbered, text_table

    parent, about = manifest.parent, manifest.calibration
    typer.echo(f"recipe {manifest.recipe.name}, {parent['weights']} weights of {parent['file']}")
    typer.echo(f"calibrated on {about.images} images, {about.steps} steps, {about.update}, seed {about.seed}")
    typer.echo(f"rounding: {manifest.rounding.describe()}")
    for name, why in manifest.rounding_notes.items():
        typer.echo(f"  {name}: {why}")
    if branches := _branches(manifest.decisions):
        typer.echo(branches)
    typer.echo("")
    layers: dict[str, list[Decision]] = {}
    for decision in manifest.decisions:
        layers.setdefault(decision.node, []).append(decision)
    reasons = numbered(decision.reason for decision in manifest.decisions)
    rows = []
    for name, ports in layers.items():
        schemes = {d.port: d.scheme.describe() if d.scheme else "float" for d in ports}
        weight = schemes.pop("weight", "")
        alike = {scheme: [p for p in schemes if schemes[p] == scheme] for scheme in schemes.values()}
        activations = "; ".join(f"{', '.join(names)}: {scheme}" for scheme, names in alike.items())
        notes = ", ".join(str(n) for n in sorted({reasons[d.reason] for d in ports}))
        rows.append((name, ports[0].kind, f"{ports[0].macs:,}", weight, activations, notes))
    head = ("layer", "kind", "MACs", "weight", "activations", "reason")
    typer.echo("\n".join([*text_table(head, rows), "", *(f"{n}: {why}" for why, n in reasons.items())]))
