"""`flatq eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flatq.cli.common import (
    BatchSize,
    Device,
    Eta,
    Guidance,
    Hint,
    Label,
    Precision,
    Runtime,
    Sampler,
    Seed,
    Steps,
    Threads,
    Weights,
    make_plan,
    note,
    one_artifact,
    progress_bar,
)
from flatq.cli.gate_command import print_verdicts, worst_code
from flatq.errors import UsageError

__all__ = ["command"]


def command(
    models: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[ARTIFACT ...]", help="Artifacts, deployments or checkpoints."),
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option(help="The float checkpoint they are compared with.")
    ] = None,
    data: Annotated[str, typer.Option(help="Images that the distances are taken to.")] = "digits",
    fid: Annotated[
        bool, typer.Option("--fid", help="The Frechet distance (the only metric so far).")
    ] = False,
    features: Annotated[
        str | None, typer.Option(help="ONNX feature network: uint8 NCHW in, N x d out.")
    ] = None,
    n: Annotated[int, typer.Option("-n", help="Images for each model.")] = 1000,
    first: Annotated[int, typer.Option(help="Index of the first image.")] = 0,
    steps: Steps = 20,
    sampler: Sampler = "ancestral",
    eta: Eta = 0.0,
    seed: Seed = 0,
    label: Label = None,
    guidance: Guidance = 1.0,
    batch_size: BatchSize = 64,
    runtime: Runtime = None,
    device: Device = None,
    precision: Precision = None,
    hint: Hint = None,
    baseline_runtime: Annotated[str | None, typer.Option(help="Of the baseline; torch by default.")] = None,
    weights: Weights = None,
    rounding: Annotated[
        str, typer.Option(help="To uint8: round, or truncate as guided-diffusion does.")
    ] = "round",
    max_drift: Annotated[float | None, typer.Option(help="Gate: the largest drift that passes.")] = None,
    on_inconclusive: Annotated[str | None, typer.Option(help="fail or pass: instead of exit 4.")] = None,
    threads: Threads = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the report.")] = Path("flatq-eval"),
) -> None:
    """Sample float and quantized models on the same noise, and report the FID drift with its interval."""
    from flatq.assess import Assessment, assess
    from flatq.backends import target_of
    from flatq.models import deployment_folder, kind_of

    if not fid:
        raise UsageError("no metric", expected="--fid", got="none", next_step="flatq eval ARTIFACT --fid ...")
    if rounding not in ("round", "truncate"):
        raise UsageError("--rounding is not valid", expected="round or truncate", got=rounding)
    code_for = worst_code(on_inconclusive)
    paths = tuple(models) if models else (one_artifact(None),)
    baseline = baseline or _sibling_checkpoint(paths[0])
    plan = make_plan(steps, sampler, eta, seed, label, guidance)
    target = target_of(runtime or "onnxruntime", device)
    for path in paths:
        if kind_of(path) == "artifact" and target in ("onnxruntime", "openvino"):
            folder = deployment_folder(path, target)
            if not folder.exists():
                from flatq.export import export_artifact

                note(f"{path} has no export for {target} yet: writing {folder}")
                export_artifact(path, target, folder)
    task = Assessment(
        models=paths,
        baseline=baseline,
        data=data,
        out=out,
        plan=plan,
        images=n,
        first=first,
        batch_size=batch_size,
        features=features,
        runtime=runtime,
        device=device,
        precision=precision,
        hint=hint,
        baseline_runtime=baseline_runtime,
        average=weights,
        threads=threads,
        rounding="round" if rounding == "round" else "truncate",
        max_drift=max_drift,
    )
    with progress_bar() as bar:
        report = assess(task, bar)
    for entry in report.models:
        drift = entry.drift
        fids = f"FID {drift.fid_float:.3f} -> {drift.fid_quantized:.3f}" if drift else ""
        if drift is None:
            typer.echo(f"{entry.name}: samples are not finite")
        elif drift.corrected is None:
            typer.echo(f"{entry.name}: {fids}, no interval: {drift.reason}")
        else:
            typer.echo(
                f"{entry.name}: {fids}, drift {drift.corrected:+.3f} "
                f"[{drift.low:+.3f}, {drift.high:+.3f}] ({report.extractor.name}, n = {report.n})"
            )
    typer.echo(str(out / "report.md"))
    verdicts = [entry.verdict for entry in report.models if entry.verdict is not None]
    print_verdicts(report, verdicts)
    raise typer.Exit(code_for(verdicts))


def _sibling_checkpoint(path: Path) -> Path:
    """The checkpoint beside an artifact, by its digest."""
    from flatq.checkpoint import file_digest
    from flatq.models import kind_of
    from flatq.quantize.artifact import read_manifest

    if kind_of(path) == "artifact":
        parent = read_manifest(path).parent
        candidate = path.resolve().parent / str(parent["file"])
        if candidate.is_file() and file_digest(candidate) == parent["sha256"]:
            note(f"baseline: {candidate.name}, which stands beside the artifact")
            return candidate
    raise UsageError(
        "no baseline", expected="--baseline CKPT.pt", got="none", next_step="name the float checkpoint"
    )
