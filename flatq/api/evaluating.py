"""`evaluate` and `gate`."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from flatq.api.exporting import export
from flatq.api.results import silent
from flatq.assessment import EvaluateSettings, GateSettings
from flatq.backends import target_of
from flatq.errors import UsageError
from flatq.export.settings import ExportSettings
from flatq.launch import Processes
from flatq.models import checkpoint_beside, deployment_folder, kind_of
from flatq.progress import Note, Progress
from flatq.report.gating import judge_report
from flatq.report.html.page_models import PageSource
from flatq.report.model import Report, read_report
from flatq.report.result import GateResult
from flatq.report.write import write_html

__all__ = ["evaluate", "gate"]


def evaluate(
    settings: EvaluateSettings,
    *,
    progress: Progress | None = None,
    note: Note = silent,
    processes: Processes | None = None,
) -> Report:
    """Sample the float and the quantized models on the same noise and write the report of the FID drift.

    An artifact that was not exported for the runtime yet is exported first, and verified.

    Args:
        processes: of a launch, which share the sampling and all call this; from
            `flatq.launch.evaluating_together`.

    Returns:
        The report, with a verdict for each model where the settings have a tolerance.

    Raises:
        InputError: paths, data, features and settings that do not fit together.
        ModelError: an export that does not compute what the PyTorch reference does.
        MissingRuntimeError: a runtime is not installed.
    """
    from flatq.assess import assess
    from flatq.quantize.artifact import read_manifest

    if settings.models and settings.baseline is None:
        baseline = checkpoint_beside(settings.models[0])
        note(f"baseline: {baseline.name}, which stands beside the artifact")
        settings = replace(settings, baseline=baseline)
    if settings.data is None and settings.reference is None:
        settings = replace(settings, data="digits")
    target = target_of(settings.runtime)
    together = processes or Processes()
    for path in settings.models:
        if kind_of(path) != "artifact":
            continue
        calibrated = read_manifest(path).calibration.update
        if calibrated != settings.sampling.update:
            note(f"{path} was calibrated with another sampler: {calibrated}, not {settings.sampling.update}")
        folder = deployment_folder(path, target)
        missing = together.agree(target in ("onnxruntime", "openvino") and not folder.exists())
        if missing:
            note(f"{path} has no export for {target} yet: writing {folder}")
            wanted = ExportSettings(target=target, threads=settings.runtime.threads)
            write = partial(export, path, wanted, progress=progress, note=note)
            together.each(write if together.main else lambda: None)
    return assess(settings, progress, note, together)


def gate(
    report: str | Path | Report,
    settings: GateSettings = GateSettings(),
    *,
    page: Path | None = None,
    note: Note = silent,
) -> GateResult:
    """Judge a report without sampling again.

    Args:
        report: what `evaluate` returned, or its `report.json` or folder. A tolerance relative to the float
            model's FID, and the growth over an earlier report, need the folder.
        page: write the report's HTML page with these verdicts.

    Raises:
        UsageError: no tolerance, or tolerances that do not go together.
        DataError: a report that cannot be read, or reports that do not compare.
    """
    folder = None
    if not isinstance(report, Report):
        path = Path(report)
        folder, report = path if path.is_dir() else path.parent, read_report(path)
    judged, result = judge_report(report, folder, settings, note)
    if page is not None:
        if folder is None:
            raise UsageError(
                "the page shows pictures that lie beside the report",
                expected="the report's folder or report.json",
                got="a report in memory",
            )
        write_html([PageSource(judged, folder, result.against, tuple(result.notes))], page)
    return result
