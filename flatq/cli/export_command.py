"""`flatq export`."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flatq.cli.common import note, one_artifact, progress_bar
from flatq.cli.options import Weights
from flatq.errors import EXIT_GATE_FAILED, UsageError
from flatq.export.settings import ExportSettings

if TYPE_CHECKING:
    from flatq.api import Exported
    from flatq.deployment import Target

__all__ = ["command"]

_target = partial(typer.Option, rich_help_panel="Targets")


def command(
    path: Annotated[
        Path | None,
        typer.Argument(
            metavar="ARTIFACT",
            help="Artifact, or checkpoint for its float model; with --trt also a folder exported for it, to "
            "build this machine's engine. By default the artifact of the working folder.",
        ),
    ] = None,
    onnx: Annotated[bool, _target("--onnx", help="Export for ONNX Runtime on the CPU.")] = False,
    openvino: Annotated[bool, _target("--openvino", help="Export OpenVINO IR.")] = False,
    trt: Annotated[
        bool, _target("--trt", help="Export for TensorRT, and build the engine if there is a GPU.")
    ] = False,
    generic: Annotated[bool, _target("--generic", help="Export plain ONNX for any other consumer.")] = False,
    float_precision: Annotated[
        Literal["fp32", "fp16", "bf16"], typer.Option(help="Precision of the non-quantized operators.")
    ] = ExportSettings.float_precision,
    batch: Annotated[
        str, typer.Option(help="TensorRT optimization profile, min:opt:max batch size, or one number.")
    ] = ":".join(map(str, ExportSettings.batches)),
    weights: Weights = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            help="Deployment folder to write; with several targets, the folder that holds theirs.",
        ),
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Skip the graph rewrites that make the runtime faster.")
    ] = ExportSettings.plain,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify/--no-verify",
            help="Compare each layer on the runtime with the PyTorch reference.",
        ),
    ] = ExportSettings.verify,
    require_int8: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Exit 1 if a smaller fraction of the multiply-accumulates runs in integers."
        ),
    ] = None,
) -> None:
    """Export an artifact or a float checkpoint for runtimes, each into a deployment folder.

    An artifact's deployment is verified before it is put in place, unless --no-verify is given. `flatq
    inspect` lists the kernels that the runtime runs.
    """
    import flatq

    wanted: dict[Target, bool] = {
        "onnxruntime": onnx,
        "openvino": openvino,
        "generic": generic,
        "tensorrt": trt,  # last, since it is the one that may end early
    }
    targets = [target for target, is_wanted in wanted.items() if is_wanted]
    if not targets:
        raise UsageError(
            "no target",
            expected="--onnx, --openvino, --trt or --generic",
            got="none",
            next_step="flatq export ARTIFACT --onnx",
        )
    settings = ExportSettings(
        float_precision=float_precision,
        plain=plain,
        verify=verify,
        weights=weights,
        batches=_batches(batch),
        require_int8=require_int8,
    )
    path = one_artifact(path)
    if not verify:
        note("not verified: --no-verify")
    exports = []
    for target in targets:
        folder = out / target if out is not None and len(targets) > 1 else out
        with progress_bar() as bar:
            exported = flatq.export(path, replace(settings, target=target), folder, progress=bar, note=note)
        if exported.folder != path:
            typer.echo(str(exported.folder))
        if exported.engine is not None:
            typer.echo(str(exported.engine))
        exports.append(exported)
    if require_int8 is not None:
        _require(exports, require_int8)
    if exports[-1].missing is not None:
        raise exports[-1].missing


def _require(exports: list[Exported], fraction: float) -> None:
    """Exit 1 where a target's audit is below the required fraction; its floats are listed."""
    failed = False
    for exported in exports:
        audit = exported.audit
        if audit is None or exported.passed:
            continue
        failed = True
        note(
            f"FAIL: on {exported.deployment.target} {audit.integer_share:.4f} of the MACs run in integers, "
            f"required {fraction:g}"
        )
        for entry in audit.fallbacks:
            note(f"  float: {entry.layer}, {entry.macs:,} MACs: {entry.reason}")
    if failed:
        raise typer.Exit(EXIT_GATE_FAILED)


def _batches(text: str) -> tuple[int, int, int]:
    try:
        low, best, high = (int(n) for n in (text.split(":") if ":" in text else [text] * 3))
    except ValueError:
        low, best, high = 0, 0, 0
    if not 1 <= low <= best <= high:
        raise UsageError(
            "--batch is not valid",
            expected="min:opt:max with 1 <= min <= opt <= max, such as 1:8:64",
            got=text,
        )
    return low, best, high
