"""What a cell found: plain values, one JSON file for each cell. No torch."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from flatq.errors import DataError, one_line
from flatq.evaluate.drift import Drift
from flatq.files import replacing
from flatq.flatness.exposure import Exposure
from flatq.flatness.result import Flatness
from flatq.report.model import Record

__all__ = [
    "CellResult",
    "ExposureResult",
    "FlatnessResult",
    "ImagesResult",
    "ParitySummary",
    "QuantizerResult",
    "TrainedModel",
    "digest_of",
    "read_result",
    "write_result",
]


class TrainedModel(Record):
    """One moment of a run.

    Attributes:
        digest: of the checkpoint. steps, passes: optimizer steps and gradient passes up to it; None where a
            checkpoint from elsewhere does not say.
        heldout_loss: weights -> mean squared error on the held-out images.
    """

    digest: str
    steps: int | None
    passes: int | None
    heldout_loss: dict[str, float] | None


class ParitySummary(Record):
    """Layers on the runtime against the PyTorch reference: how many, and the lowest fraction of equal
    elements.

    problem: what verification refused; None where it passed.
    """

    layers: int
    least_equal: float
    problem: str | None


class QuantizerResult(Record):
    """What a quantized model turned out to be on its runtime.

    Attributes:
        finite: False where it samples images that are not finite, which count as mid-grey.
        drift: as `flatq.evaluate.drift`, of n images.
        distance: mean over pairs of the root mean square difference to the float model's image, in [-1, 1].
        integer_share: fraction of the multiply-accumulates in integers; None where no kernel was audited.
        picture: PNG as base64, the first images in a row.
    """

    digest: str
    precision: str
    finite: bool
    drift: Drift
    distance: float
    integer_share: float | None
    parity: ParitySummary | None
    picture: str | None


class ImagesResult(Record):
    """FID of one model's weights and of its quantized forms, all on the same noise.

    Attributes:
        fid: the float model's, corrected for bias where it can be. n_over_rank: images over feature ranks.
    """

    kind: Literal["images"] = "images"
    model: str
    weights: str
    runtime: str
    identity: dict[str, Any]
    steps: int
    n: int
    features: str
    fid: float
    fid_raw: float
    n_over_rank: float
    quantized: dict[str, QuantizerResult]
    picture: str | None


class FlatnessResult(Record):
    """`damage` of `flatness` is in the order of `quantizers`."""

    kind: Literal["flatness"] = "flatness"
    model: str
    weights: str
    quantizers: tuple[str, ...]
    flatness: Flatness


class ExposureResult(Record):
    kind: Literal["exposure"] = "exposure"
    model: str
    weights: str
    runtime: str
    quantizers: dict[str, Exposure]


class CellResult(Record):
    """All of one cell.

    Attributes:
        settings: all that decides the numbers; digest: their sha256.
        commit: flatq's, None outside a git checkout; with "+" where files were changed.
        instructions: the CPU's, see `flatq.runtime.cpu.instruction_set`.
        missing: model -> why it does not exist, such as a loss that was never reached.
        seconds: wall time of each step; a step that was interrupted counts from its last start.
    """

    format: Literal["flatq-study-cell"] = "flatq-study-cell"
    version: Literal[1] = 1
    study: str
    run: str
    seed: int
    digest: str
    settings: dict[str, Any]
    commit: str | None
    environment: dict[str, Any]
    instructions: str
    models: dict[str, TrainedModel]
    missing: dict[str, str]
    images: tuple[ImagesResult, ...]
    flatness: tuple[FlatnessResult, ...]
    exposure: tuple[ExposureResult, ...]
    seconds: dict[str, float]

    @property
    def name(self) -> str:
        """RUN-SEED."""
        return f"{self.run}-{self.seed}"


_R = TypeVar("_R", bound=BaseModel)


def digest_of(settings: Any) -> str:
    """sha256 of plain values, hex."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def read_result(path: Path, kind: type[_R]) -> _R:
    """Read what `write_result` wrote.

    Raises:
        DataError: it cannot be read, or is something else.
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise DataError(
            f"{path} cannot be read",
            expected="a result that this version of `flatq study run` wrote",
            got=one_line(error),
            next_step="restore it, or move it away to measure it again",
        ) from error


def write_result(result: BaseModel, path: Path) -> None:
    """Write JSON whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_text(result.model_dump_json(indent=1) + "\n", encoding="utf-8")
