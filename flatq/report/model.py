"""What report.json holds, and reading it. The numbers come from `flatq.evaluate`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flatq.errors import DataError
from flatq.evaluate.drift import Drift
from flatq.evaluate.extractor import Kind
from flatq.evaluate.gate import Tolerances, Verdict
from flatq.evaluate.kid import KidDrift
from flatq.evaluate.ladder import Ladder
from flatq.evaluate.looks import Looks
from flatq.evaluate.precision_recall import PrecisionRecall
from flatq.verify import Audit
from flatq.version import __version__

__all__ = [
    "Baseline",
    "Environment",
    "ExtractorEntry",
    "ModelEntry",
    "Options",
    "Record",
    "ReferenceEntry",
    "Report",
    "read_report",
]


class Record(BaseModel):
    """A part of a file of results: frozen; unknown keys are refused, infinity and NaN are strings in JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class ExtractorEntry(Record):
    """The feature extractor: its name, sha256 and number of features.

    kind, preprocessing, published: as in `flatq.evaluate.extractor.Extractor`.
    """

    name: str
    digest: str
    dim: int = Field(gt=0)
    kind: Kind = "onnx"
    preprocessing: str | None = None
    published: bool | None = None


class ReferenceEntry(Record):
    """The reference: as in `flatq.evaluate.statistics_file.ReferenceSource`.

    n: None where the number of images is unknown.
    """

    name: str
    digest: str
    n: int | None = Field(gt=0)
    kind: Literal["images", "statistics", "foreign-statistics"] = "images"
    preprocessing: str | None = None


class Baseline(Record):
    """The float model. weights: raw, ema or swa; they stand in the name, too. runtime: its identity.
    latency_ms, seconds_per_image, prc: as in `ModelEntry`."""

    name: str
    digest: str
    precision: str
    runtime: dict[str, Any]
    size_bytes: int = Field(ge=0)
    latency_ms: float | None = None
    seconds_per_image: float | None = None
    prc: PrecisionRecall | None = None
    weights: str | None = None


class ModelEntry(Record):
    """A quantized model beside the baseline.

    name: of the file or folder. label: for tables. latency_ms: median of one network evaluation at the
    sampling batch. seconds_per_image: wall time of sampling and of extracting features. drift, kid: as in
    `flatq.evaluate.compare.Comparison`. not_finite: number of images with a value that is not finite, which
    count as mid-grey. prc: precision and recall. rms_distance_mean and rms_distance_max: of the root mean
    square difference between the two images of a pair, as uint8, in units of [-1, 1]. grid, sidecar:
    paths relative to the report's folder. grid_sha256, sidecar_sha256: of those files; None in reports that
    are older than these fields, whose files are not checked. audit: the kernels that ran it. looks: where
    the gate looked at a growing sample, which also sets the interval's confidence. ladder: where it was asked
    for.
    """

    name: str
    label: str
    precision: str
    digest: str
    runtime: dict[str, Any]
    size_bytes: int = Field(ge=0)
    latency_ms: float | None = None
    seconds_per_image: float | None = None
    drift: Drift
    kid: KidDrift
    not_finite: int = Field(ge=0)
    rms_distance_mean: float
    rms_distance_max: float
    prc: PrecisionRecall | None = None
    verdict: Verdict | None = None
    grid: str
    grid_sha256: str | None = None
    sidecar: str | None = None
    sidecar_sha256: str | None = None
    audit: Audit | None = None
    looks: Looks | None = None
    ladder: Ladder | None = None


class Environment(Record):
    """versions: of the packages that move the numbers, by name."""

    python: str
    platform: str
    versions: dict[str, str]
    cpu: str


class Options(Record):
    """Options of `flatq eval` that stand nowhere else in the report, as they were given; None where one was
    left out. Of a file only its name is kept."""

    batch_size: int | None = None
    data: str | None = None
    reference: str | None = None
    features: str | None = None
    runtime: str | None = None
    device: str | None = None
    precision: str | None = None
    hint: str | None = None
    baseline_runtime: str | None = None
    resize: str | None = None
    confidence: float | None = None


class Report(Record):
    """All of report.json. plan: fields of `SamplingSettings`. noise_version: `flatq.noise.NOISE_VERSION` of
    the samples; reports that are older than the field have 1. labels: which label an image got, in words;
    None for a network without classes. n: the number of pairs; a model that was decided on earlier has fewer.
    gate: what the verdicts rest on, if there are any. options: None in reports that are older than they."""

    format: Literal["flatq-report"] = "flatq-report"
    version: Literal[2] = 2
    created_with: str = __version__
    plan: dict[str, Any]
    noise_version: int = Field(default=1, gt=0)
    labels: str | None = None
    n: int = Field(gt=0)
    first_index: int = Field(ge=0)
    last_index: int = Field(ge=0)
    extractor: ExtractorEntry
    reference: ReferenceEntry
    rounding: Literal["round", "truncate"]
    baseline: Baseline
    models: list[ModelEntry]
    gate: Tolerances | None = None
    environment: Environment
    options: Options | None = None


def read_report(path: str | os.PathLike[str]) -> Report:
    """Reads a report.json, or the one in a folder.

    Raises:
        DataError: no such file, no JSON, another format or version, or fields that are missing or wrong.
    """
    file = Path(path)
    if file.is_dir():
        file = file / "report.json"
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"the report {file} cannot be read",
            expected="a report.json, or the folder that holds it",
            got=error.strerror or str(error),
            next_step="check the path",
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is no JSON", expected="a report.json of flatq", got=str(error)) from error
    wanted = {"format": "flatq-report", "version": 2}
    found = {key: raw.get(key) for key in wanted} if isinstance(raw, dict) else type(raw).__name__
    if found != wanted:
        raise DataError(
            f"{file} is no flatq report of this version",
            expected=f"a JSON object with {wanted}",
            got=str(found),
            next_step="read it with the flatq that made it, or evaluate again",
        )
    try:
        return Report.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise DataError(
            f"the report {file} is damaged: {error.error_count()} fields are missing or wrong",
            got=f"{where}: {first['msg']}",
            next_step="run the evaluation again",
        ) from error
