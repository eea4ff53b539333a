"""`flatq export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from flatq.cli.common import Weights, note, one_artifact, progress_bar, say_weights
from flatq.errors import EXIT_GATE_FAILED, MissingRuntimeError, UsageError
from flatq.runtime.cpu import saturation_note

if TYPE_CHECKING:
    from flatq.deployment import Deployment, FloatPrecision, Target
    from flatq.export.deploy import Check
    from flatq.quantize.artifact import Artifact
    from flatq.quantize.lowering import Lowered
    from flatq.verify import Audit

__all__ = ["command"]


def command(
    path: Annotated[
        Path | None,
        typer.Argument(
            metavar="[ARTIFACT]",
            help="An artifact, or a checkpoint for its float model; with --trt also a folder exported for "
            "TensorRT, to build the engine of this machine.",
        ),
    ] = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="For ONNX Runtime on the CPU.")] = False,
    openvino: Annotated[bool, typer.Option("--openvino", help="For OpenVINO: its IR.")] = False,
    trt: Annotated[
        bool, typer.Option("--trt", help="For TensorRT: ONNX, and the engine where there is a GPU.")
    ] = False,
    generic: Annotated[bool, typer.Option("--generic", help="Plain ONNX for any other consumer.")] = False,
    floats: Annotated[
        str, typer.Option("--float", help="Of what is not an integer: fp32, fp16 or bf16.")
    ] = "fp32",
    batch: Annotated[
        str, typer.Option(help="Of a TensorRT engine: smallest:best:largest, or one number.")
    ] = "1:8:64",
    weights: Weights = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Deployment folder; with several targets, of theirs.")
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Without the rewrites that make the runtime faster.")
    ] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify/--no-verify",
            help="Compare each layer on the runtime with the torch graph.",
        ),
    ] = True,
    require_int8: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Exit 1 if less than this share of the multiply-accumulates runs in integers."
        ),
    ] = None,
) -> None:
    """Lower an artifact (or a float checkpoint) for runtimes and write their deployment folders.

    Unless told --no-verify, an artifact's deployment is verified before it is put in place. The kernels that
    its runtime runs are listed in its audit, which `flatq inspect` shows.
    """
    from flatq.deployment import FloatPrecision
    from flatq.models import deployment_folder, kind_of

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
    if floats not in get_args(FloatPrecision):
        raise UsageError(
            "--float is not valid", expected="one of " + ", ".join(get_args(FloatPrecision)), got=floats
        )
    batches = _batches(batch)
    path = one_artifact(path)
    kind = kind_of(path)
    if require_int8 is not None and kind != "artifact":
        raise UsageError(
            f"--require-int8 cannot be checked for {path}",
            expected="an artifact, whose layers are looked up in what the runtime says it runs",
            got="a deployment folder" if kind == "deployment" else "a float model",
            next_step="name the artifact; for TensorRT on the machine with the GPU",
        )
    if kind == "deployment" and targets == ["tensorrt"] and out is None:
        _build(path, batches)
        return
    if kind == "deployment" or (kind == "artifact" and weights):
        raise UsageError(
            f"{path} cannot be exported so",
            expected="an artifact, or a checkpoint with --weights if you like",
            got=kind + (" with --weights" if weights else ""),
        )
    folders = {target: deployment_folder(path, target) for target in targets}
    if out is not None:
        folders = {target: out / target if len(targets) > 1 else out for target in targets}
    audits: dict[Target, Audit] = {}
    if kind == "artifact" and not verify:
        note("not verified: --no-verify")
    for target, folder in folders.items():
        note(f"exporting {path} for {target}")
        needed = verify or require_int8 is not None
        check = None if target == "tensorrt" else _check(path, target, audits, parity=verify, needed=needed)
        deployment = _export(
            path, kind, target, folder, weights, cast("FloatPrecision", floats), plain, check
        )
        if target in ("onnxruntime", "openvino"):
            _say_saturation(deployment)
        size = sum((folder / name).stat().st_size for name in (deployment.file, *deployment.files))
        note(f"{deployment.precision}, {size:,} bytes")
        typer.echo(str(folder))
    if trt:
        if kind == "artifact" and verify:
            note("for TensorRT no layer is compared with the torch graph: that needs an engine on its GPU")
        try:
            _build(folders["tensorrt"], batches)
        except MissingRuntimeError as error:
            if require_int8 is None:
                raise
            _require(audits, require_int8)
            raise MissingRuntimeError(
                f"--require-int8 was not checked for TensorRT: {error.what}",
                expected=error.expected,
                got=error.got,
                next_step=f"copy {path} to the machine with the GPU, then there: "
                f"flatq export {path.name} --trt --require-int8 {require_int8:g}",
            ) from error
        if kind == "artifact" and (verify or require_int8 is not None):
            audits["tensorrt"] = _audit_engine(path, folders["tensorrt"])
    if require_int8 is not None:
        _require(audits, require_int8)


def _say_saturation(deployment: Deployment) -> None:
    """A note where the deployment has 8-bit weights and this CPU adds their products in too few bits."""
    problem = saturation_note()
    if problem is not None and 8 in deployment.provenance.get("weights_bits", {}).values():
        note(f"{problem} (this deployment has such weights)")


def _check(path: Path, target: Target, audits: dict[Target, Audit], *, parity: bool, needed: bool) -> Check:
    """Verifies a deployment before it is put in place, says what was found and keeps the audit.

    Args:
        parity: also compare the layers.
        needed: whether a runtime that is missing is an error; if not, there is no audit, and that is said.
    """

    def check(folder: Path, artifact: Artifact, lowered: Lowered) -> None:
        from flatq.verify.recorded import parent_beside, verify_deployment
        from flatq.verify.tables import audit_summary, parity_summary

        baseline = parent_beside(artifact.manifest, path) if parity else None
        try:
            with progress_bar() as report:
                found = verify_deployment(
                    artifact, folder, lowered, parity=parity, baseline=baseline, progress=report
                )
        except MissingRuntimeError as error:
            if needed:
                raise
            note(f"no audit: {error.what}")
            return
        if found.parity is not None:
            note(f"verified: {parity_summary(found.parity)}")
        note(f"audit: {audit_summary(found.audit)}")
        audits[target] = found.audit

    return check


def _audit_engine(path: Path, folder: Path) -> Audit:
    from flatq.quantize.artifact import read_artifact
    from flatq.quantize.lowering import lower
    from flatq.verify.recorded import verify_deployment
    from flatq.verify.tables import audit_summary

    artifact = read_artifact(path)
    found = verify_deployment(artifact, folder, lower(artifact, "tensorrt"), parity=False)
    note(f"audit: {audit_summary(found.audit)}")
    return found.audit


def _require(audits: dict[Target, Audit], share: float) -> None:
    """Exit 1 where a target's audit is below the share that was asked for; its floats are listed."""
    failed = False
    for target, audit in audits.items():
        if audit.integer_share >= share:
            continue
        failed = True
        note(f"FAIL: on {target} {audit.integer_share:.4f} of the MACs run in integers, required {share:g}")
        for entry in audit.fallbacks:
            note(f"  float: {entry.layer}, {entry.macs:,} MACs: {entry.reason}")
    if failed:
        raise typer.Exit(EXIT_GATE_FAILED)


def _export(
    path: Path,
    kind: str,
    target: Target,
    folder: Path,
    weights: str | None,
    floats: FloatPrecision,
    plain: bool,
    check: Check | None,
) -> Deployment:
    from flatq.export import export_artifact, export_checkpoint

    if kind == "artifact":
        return export_artifact(path, target, folder, float_precision=floats, plain=plain, check=check)
    from flatq.checkpoint import load_checkpoint

    loaded = load_checkpoint(path)
    chosen = say_weights(loaded, weights)
    return export_checkpoint(loaded, target, folder, average=chosen, float_precision=floats, plain=plain)


def _batches(text: str) -> tuple[int, int, int]:
    try:
        low, best, high = (int(n) for n in (text.split(":") if ":" in text else [text] * 3))
    except ValueError:
        low, best, high = 0, 0, 0
    if not 1 <= low <= best <= high:
        raise UsageError(
            "--batch is not valid",
            expected="smallest:best:largest with 1 <= smallest <= best <= largest, such as 1:8:64",
            got=text,
        )
    return low, best, high


def _build(folder: Path, batches: tuple[int, int, int]) -> None:
    from flatq.export import build_engine

    note(f"building the TensorRT engine of {folder}")
    typer.echo(str(build_engine(folder, batches)))
