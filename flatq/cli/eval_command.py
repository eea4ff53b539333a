"""`flatq eval`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flatq.assessment import EvaluateSettings, GateSettings
from flatq.cli.common import (
    PLAN,
    BatchSize,
    Device,
    Eta,
    Features,
    FeaturesDevice,
    Guidance,
    Hint,
    InceptionWeights,
    Label,
    Precision,
    ResizeChoice,
    Runtime,
    Sampler,
    Seed,
    Steps,
    Threads,
    Weights,
    make_plan,
    note,
    one_artifact,
    parse_resize,
    progress_bar,
)
from flatq.cli.gate_command import (
    IfInconclusive,
    Junit,
    MaxDrift,
    MaxDriftRel,
    MinSamples,
    checked_choice,
    print_verdicts,
    publish,
)
from flatq.errors import UsageError

if TYPE_CHECKING:
    pass

__all__ = ["command"]


def command(
    models: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[ARTIFACT ...]", help="Artifacts, deployments or checkpoints."),
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option(help="The float checkpoint they are compared with.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Images that the distances are taken to; digits by default.")
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(help="Statistics in place of --data: flatq's, pytorch-fid's or guided-diffusion's."),
    ] = None,
    resize: ResizeChoice = None,
    fid: Annotated[
        bool, typer.Option("--fid", help="The Frechet distance (the only metric so far).")
    ] = False,
    features: Features = None,
    inception_weights: InceptionWeights = None,
    features_device: FeaturesDevice = EvaluateSettings.features_device,
    cache: Annotated[
        bool,
        typer.Option(
            "--cache/--no-cache",
            help="Keep samples and features in FLATQ_CACHE (~/.cache/flatq), and take those that are there.",
        ),
    ] = True,
    n: Annotated[int, typer.Option("-n", help="Images for each model.")] = EvaluateSettings.images,
    first: Annotated[int, typer.Option(help="Index of the first image.")] = EvaluateSettings.first,
    steps: Steps = PLAN.steps,
    sampler: Sampler = PLAN.sampler,
    eta: Eta = PLAN.eta,
    seed: Seed = PLAN.seed,
    label: Label = PLAN.label,
    guidance: Guidance = PLAN.guidance,
    batch_size: BatchSize = EvaluateSettings.batch_size,
    runtime: Runtime = None,
    device: Device = None,
    precision: Precision = None,
    hint: Hint = None,
    baseline_runtime: Annotated[str | None, typer.Option(help="Of the baseline; torch by default.")] = None,
    weights: Weights = None,
    rounding: Annotated[
        str, typer.Option(help="To uint8: round, or truncate as guided-diffusion does.")
    ] = EvaluateSettings.rounding,
    max_drift: MaxDrift = None,
    max_drift_rel: MaxDriftRel = None,
    min_samples: MinSamples = None,
    confidence: Annotated[float, typer.Option(help="Of the intervals.")] = EvaluateSettings.confidence,
    until_decided: Annotated[
        bool,
        typer.Option(
            "--until-decided", help="Gate: draw more images, up to --max-samples, until it decides."
        ),
    ] = False,
    max_samples: Annotated[int | None, typer.Option(help="Of --until-decided; -n is the first look.")] = None,
    looks: Annotated[
        int, typer.Option(help="Of --until-decided: planned looks, each at its share of the error.")
    ] = EvaluateSettings.looks,
    on_inconclusive: IfInconclusive = GateSettings.on_inconclusive,
    junit: Junit = None,
    ladder: Annotated[
        bool,
        typer.Option(
            "--ladder", help="Tell export, quantization and kernel error apart (samples two rungs more)."
        ),
    ] = False,
    plan_only: Annotated[
        bool,
        typer.Option(
            "--plan", help="Take the -n images as a pilot: say what a verdict would cost, and give none."
        ),
    ] = False,
    threads: Threads = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the report.")] = EvaluateSettings.out,
) -> None:
    """Sample float and quantized models on the same noise, and report the FID drift with its interval.

    Several processes share the sampling: `accelerate launch -m flatq eval ...`, or torchrun.
    """
    import flatq
    from flatq.backends import RuntimeSettings
    from flatq.evaluate.ladder import ERRORS
    from flatq.processes import evaluating_together
    from flatq.report.result import gate_result

    with evaluating_together() as processes:
        if not fid:
            raise UsageError(
                "no metric", expected="--fid", got="none", next_step="flatq eval ARTIFACT --fid ..."
            )
        if rounding not in ("round", "truncate"):
            raise UsageError("--rounding is not valid", expected="round or truncate", got=rounding)
        choice = checked_choice(on_inconclusive)
        if until_decided != (max_samples is not None) or (until_decided and plan_only):
            raise UsageError(
                "--until-decided and --max-samples go together, and not with --plan",
                expected="--until-decided --max-samples N",
                got=f"--max-samples {max_samples}" + (", --plan" if plan_only else ""),
            )
        if plan_only and max_drift is not None and max_drift_rel is not None:
            raise UsageError(
                "--plan takes one tolerance", expected="--max-drift or --max-drift-rel", got="both"
            )
        settings = EvaluateSettings(
            models=tuple(models) if models else (one_artifact(None),),
            baseline=baseline,
            data=data,
            out=out,
            plan=make_plan(steps, sampler, eta, seed, label, guidance),
            images=n,
            first=first,
            batch_size=batch_size,
            features=features,
            runtime=RuntimeSettings(runtime, device, precision, threads, hint),
            baseline_runtime=RuntimeSettings(baseline_runtime),
            weights=weights,
            rounding="round" if rounding == "round" else "truncate",
            confidence=confidence,
            max_drift=None if plan_only else max_drift,
            max_drift_rel=None if plan_only else max_drift_rel,
            min_samples=min_samples,
            max_samples=max_samples,
            looks=looks,
            ladder=ladder,
            reference=reference,
            inception_weights=inception_weights,
            features_device=features_device,
            cache=cache,
            resize=parse_resize(resize),
        )
        with progress_bar() as bar:
            report = flatq.evaluate(settings, progress=bar, note=note, processes=processes)
        if not processes.main:
            return
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
                    f"[{drift.low:+.3f}, {drift.high:+.3f}] ({report.extractor.name}, n = {drift.n})"
                )
            if entry.ladder is not None:
                for name in ERRORS:
                    error = getattr(entry.ladder, name)
                    ends = "no interval" if error.low is None else f"[{error.low:+.3f}, {error.high:+.3f}]"
                    middle = error.raw if error.corrected is None else error.corrected
                    typer.echo(f"  {name:<13} {middle:+.3f} {ends}")
        if plan_only:
            from flatq.report.planning import plan_text

            typer.echo(plan_text(report, out, max_drift, max_drift_rel))
        for page in ("report.md", "report.html"):
            typer.echo(str(out / page))
        verdicts = [entry.verdict for entry in report.models if entry.verdict is not None]
        if report.gate is None:
            return
        result = gate_result(report, verdicts, report.gate, on_inconclusive=choice)
        print_verdicts(result)
        publish(result, junit=junit)
        raise typer.Exit(result.exit_code)
