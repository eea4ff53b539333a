"""`flatq eval`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from flatq.assessment import EvaluateSettings, GateSettings
from flatq.cli.common import note, one_artifact, progress_bar
from flatq.cli.gate_command import print_verdicts, publish
from flatq.cli.options import (
    SAMPLING,
    BatchSize,
    Cache,
    Confidence,
    Device,
    Eta,
    Features,
    FeaturesDevice,
    First,
    Guidance,
    Hint,
    InceptionWeights,
    Junit,
    Label,
    MaxDrift,
    MaxDriftRel,
    MinSamples,
    OnInconclusive,
    Precision,
    ResizeChoice,
    Runtime,
    RuntimeName,
    Sampler,
    Seed,
    Steps,
    Threads,
    Weights,
    gate_option,
    output_option,
    runtime_option,
    sampling_settings,
)
from flatq.errors import UsageError

__all__ = ["command"]

_evaluation = partial(typer.Option, rich_help_panel="Evaluation")


def command(
    models: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="ARTIFACT",
            help="Artifacts, deployment folders or checkpoints; by default the one of the working folder.",
        ),
    ] = None,
    baseline: Annotated[
        Path | None,
        _evaluation(help="Float checkpoint to compare with; by default the one beside the first model."),
    ] = None,
    data: Annotated[
        str | None,
        _evaluation(help="Reference images: digits (the default), or a folder, .zip, .npz or .parquet."),
    ] = None,
    reference: Annotated[
        Path | None,
        _evaluation(
            help="Reference statistics of flatq, pytorch-fid or guided-diffusion, in place of --data."
        ),
    ] = None,
    resize: ResizeChoice = None,
    fid: Annotated[bool, _evaluation("--fid", help="Measure the FID, the only metric so far.")] = False,
    features: Features = None,
    inception_weights: InceptionWeights = None,
    features_device: FeaturesDevice = "cpu",
    cache: Cache = True,
    n: Annotated[int, _evaluation("-n", min=2, help="Number of images per model.")] = EvaluateSettings.images,
    first: First = EvaluateSettings.first,
    steps: Steps = str(SAMPLING.steps),
    sampler: Sampler = SAMPLING.sampler,
    eta: Eta = SAMPLING.eta,
    seed: Seed = SAMPLING.seed,
    label: Label = SAMPLING.label,
    guidance: Guidance = SAMPLING.guidance,
    batch_size: BatchSize = EvaluateSettings.batch_size,
    runtime: Runtime = None,
    device: Device = None,
    precision: Precision = None,
    hint: Hint = None,
    baseline_runtime: Annotated[
        RuntimeName | None, runtime_option(help="Runtime of the float model; torch by default.")
    ] = None,
    weights: Weights = None,
    rounding: Annotated[
        Literal["round", "truncate"],
        _evaluation(help="Conversion of samples to uint8; guided-diffusion truncates."),
    ] = EvaluateSettings.rounding,
    max_drift: MaxDrift = None,
    max_drift_rel: MaxDriftRel = None,
    min_samples: MinSamples = None,
    confidence: Confidence = EvaluateSettings.confidence,
    until_decided: Annotated[
        bool,
        gate_option(
            "--until-decided",
            help="Sample more images, up to --max-samples, until the verdict is conclusive.",
        ),
    ] = False,
    max_samples: Annotated[
        int | None, gate_option(help="Largest number of images with --until-decided; -n is the first look.")
    ] = None,
    looks: Annotated[
        int, gate_option(help="Number of interim looks with --until-decided (Bonferroni-corrected).")
    ] = EvaluateSettings.looks,
    on_inconclusive: OnInconclusive = GateSettings.on_inconclusive,
    junit: Junit = None,
    ladder: Annotated[
        bool,
        _evaluation(
            "--ladder",
            help="Split the drift into export, quantization and kernel error (two more sampling runs).",
        ),
    ] = False,
    plan_only: Annotated[
        bool,
        gate_option("--plan", help="Estimate from -n pilot images how many a verdict needs, and give none."),
    ] = False,
    threads: Threads = None,
    out: Annotated[Path, output_option("-o", "--out", help="Folder of the report.")] = EvaluateSettings.out,
) -> None:
    """Sample float and quantized models on the same noise, and report the FID drift with its interval.

    Several processes share the sampling: `accelerate launch -m flatq eval ...`, or torchrun.
    """
    import flatq
    from flatq.backends import RuntimeSettings
    from flatq.evaluate.ladder import ERRORS
    from flatq.launch import evaluating_together
    from flatq.report.result import gate_result
    from flatq.report.wording import not_finite

    with evaluating_together() as processes:
        if not fid:
            raise UsageError(
                "no metric", expected="--fid", got="none", next_step="flatq eval ARTIFACT --fid ..."
            )
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
            sampling=sampling_settings(steps, sampler, eta, seed, label, guidance),
            images=n,
            first=first,
            batch_size=batch_size,
            features=features,
            runtime=RuntimeSettings(runtime, device, precision, threads, hint),
            baseline_runtime=RuntimeSettings(baseline_runtime),
            weights=weights,
            rounding=rounding,
            confidence=EvaluateSettings.confidence if confidence is None else confidence,
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
            resize=resize,
        )
        with progress_bar() as bar:
            report = flatq.evaluate(settings, progress=bar, note=note, processes=processes)
        if not processes.main:
            return
        for entry in report.models:
            drift = entry.drift
            fids = f"FID {drift.fid_float:.3f} -> {drift.fid_quantized:.3f}"
            if entry.not_finite:
                typer.echo(f"{entry.name}: {not_finite(entry)}")
            if drift.corrected is None:
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
        if report.gate is None:
            return
        result = gate_result(report, on_inconclusive)
        print_verdicts(result)
        publish(result, junit=junit)
        raise typer.Exit(result.exit_code)
