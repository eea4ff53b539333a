"""What a study is: training runs over seeds, what is measured on them, and the claims to judge.

A study is a TOML file of `StudyConfig`'s keys. A cell is one run at one seed: `Run.seeds` times the runs.
No torch here.
"""

from __future__ import annotations

import fnmatch
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from flatq.calib import CalibrationPlan
from flatq.errors import UsageError, one_line
from flatq.flatness.settings import FlatnessSettings
from flatq.images import Resize
from flatq.quantize.methods import Method, WeightRounding
from flatq.quantize.settings import QuantizeSettings
from flatq.recipe import ActivationRange, Edges, Granularity, WeightRange, recipe_for_bits
from flatq.study.claims import ClaimConfig, PilotConfig, QuestionConfig
from flatq.study.expressions import FLOAT
from flatq.train.config import TrainConfig

__all__ = [
    "FLOAT",
    "Cell",
    "Cost",
    "ExposureConfig",
    "FlatnessConfig",
    "ImagesConfig",
    "QuantizerConfig",
    "Run",
    "StudyConfig",
    "read_config",
]

Variant = Literal["raw", "ema", "swa"]
StudyRuntime = Literal["onnxruntime", "openvino", "tensorrt", "torch"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Run(_Frozen):
    """One training run for each seed, or checkpoints from elsewhere.

    Attributes:
        train: `TrainConfig` options on top of the study's.
        checkpoint: path of a checkpoint that is measured only; "{seed}" stands for the seed.
        seeds: training seeds; a number N stands for 0 to N - 1.
        models: name -> the moment of the run: "end", "step N", or "loss", the first time that the held-out
            loss is at most `snapshot_loss`. By default one model of the run's name, at the end.
    """

    train: dict[str, Any] = {}
    checkpoint: str | None = None
    seeds: tuple[int, ...]
    models: dict[str, str] = {}

    @model_validator(mode="before")
    @classmethod
    def _count(cls, given: Any) -> Any:
        if isinstance(given, dict) and isinstance(given.get("seeds"), int):
            return {**given, "seeds": tuple(range(given["seeds"]))}
        return given

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("a seed twice")
        odd = [m for m in self.models.values() if not re.fullmatch(r"end|loss|step [1-9]\d*", m)]
        if odd:
            raise ValueError(f'a moment is "end", "loss" or "step N", not {odd[0]!r}')
        if self.checkpoint is not None and (self.train or set(self.models.values()) - {"end"}):
            raise ValueError("a checkpoint from elsewhere has no training and no earlier moments")
        return self


class QuantizerConfig(_Frozen):
    """A quantizer, by the options of `flatq.recipe_for_bits` and the method of rounding."""

    bits: int
    activation_bits: int = 8
    granularity: Granularity = "per_channel"
    edges: Edges = "float"
    activation_range: ActivationRange = "mse"
    weight_range: WeightRange = "minmax"
    method: Method = "gptq"

    def settings(self, weights: str, threads: int) -> QuantizeSettings:
        """The settings of `flatq.quantize`; calibration is the default."""
        options = self.model_dump(exclude={"bits", "activation_bits", "method"})
        return QuantizeSettings(
            recipe_for_bits(self.bits, self.activation_bits, **options),
            WeightRounding(method=self.method),
            CalibrationPlan(),
            weights,
            threads,
        )


class _Measured(_Frozen):
    """Models and weights that something is measured on.

    Attributes:
        seeds: only the first so many seeds of each run.
    """

    models: tuple[str, ...] = Field(min_length=1)
    weights: tuple[Variant, ...] = ("raw",)
    seeds: int | None = Field(default=None, gt=0)


class ImagesConfig(_Measured):
    """FID and drift of quantized models, against the float model in torch on the same noise."""

    quantizers: tuple[str, ...] = Field(min_length=1)
    runtime: StudyRuntime = "onnxruntime"
    steps: int = Field(default=20, gt=0)
    n: int | None = Field(default=None, gt=1)


class FlatnessConfig(_Measured):
    """`flatq flatness`, and the damage that quantizers' errors do."""

    damage: tuple[str, ...] = ()

    @property
    def quantizers(self) -> tuple[str, ...]:
        """Those whose errors are measured."""
        return self.damage


class ExposureConfig(_Measured):
    """Exposure bias, of the float model in torch and of quantized ones on a runtime."""

    quantizers: tuple[str, ...] = (FLOAT,)
    runtime: StudyRuntime = "onnxruntime"
    steps: int = Field(default=20, gt=0)
    n: int = Field(default=1000, gt=1)


class Cost(_Frozen):
    """Rates for the estimate of `--dry-run`, measured once.

    Attributes:
        device: what they were measured on.
        passes_per_second: images through one gradient pass.
        evaluations_per_second: images through one network evaluation while sampling.
        seconds_per_artifact: quantization and export.
        megabytes: size of a checkpoint with its training state.
    """

    device: str
    passes_per_second: float = Field(gt=0)
    evaluations_per_second: float = Field(gt=0)
    seconds_per_artifact: float = Field(ge=0)
    megabytes: float = Field(ge=0)


class StudyConfig(_Frozen):
    """A study; frozen, unknown keys are refused.

    Attributes:
        about: paragraphs for the page: what is studied, what is simplified, what shrank.
        data, size, resize: training images and the reference of the FID, as `flatq.images.load_images`.
        heldout: images of the held-out loss.
        features: an ONNX feature network, "inception", or None for the bundled one.
        n: images sampled for an FID.
        pictures: images kept of each evaluation at a run's first seed.
        threads: CPU threads of a cell.
        device: that the float models, lowered graphs in torch and the Inception network run on.
        train: `TrainConfig` options of all runs.
        sigma: standard deviation of the weight noise of `lpf` in an expression.
        steps, runtime: what `fid` and `drift` in an expression mean, unless it names others.
        controls: name -> roles that it replaces in every claim; reported beside, outside Holm's correction.
    """

    name: str
    title: str
    about: tuple[str, ...] = ()
    data: str
    size: int | None = None
    resize: Resize = "center-crop-adm"
    heldout: str | None = None
    features: str | None = None
    n: int = Field(default=4000, gt=1)
    pictures: int = Field(default=16, ge=0)
    threads: int = Field(default=1, gt=0)
    device: Literal["cpu", "cuda"] = "cpu"
    train: dict[str, Any] = {}
    runs: dict[str, Run] = Field(min_length=1)
    quantizers: dict[str, QuantizerConfig] = {}
    images: tuple[ImagesConfig, ...] = ()
    flatness: tuple[FlatnessConfig, ...] = ()
    exposure: tuple[ExposureConfig, ...] = ()
    flatness_settings: FlatnessSettings = FlatnessSettings()
    sigma: float = 0.01
    steps: int = 20
    runtime: StudyRuntime = "onnxruntime"
    claims: tuple[ClaimConfig, ...] = ()
    controls: dict[str, dict[str, str]] = {}
    questions: tuple[QuestionConfig, ...] = ()
    pilot: PilotConfig | None = None
    cost: Cost | None = None

    @model_validator(mode="after")
    def _agree(self) -> Self:
        models = self.models
        twice = {name for name in models if models.count(name) > 1}
        if twice:
            raise ValueError(f"the model {sorted(twice)[0]} belongs to two runs")
        for run, seed in self.pairs():
            self.train_config(run, seed)
        named = {name for spec in self.measured for name in spec.models}
        _known("a measurement", "model", named, models)
        levels = [*self.quantizers, FLOAT]
        _known("a measurement", "quantizer", {q for spec in self.measured for q in spec.quantizers}, levels)
        stated: tuple[ClaimConfig | QuestionConfig, ...] = (*self.claims, *self.questions)
        for claim in stated:
            who, calls = f"the claim {claim.id}", [call for e in claim.expressions() for call in e.calls]
            named = {call.model for call in calls} - set(claim.roles)
            _known(who, "model", {*claim.roles.values(), *named}, models)
            _known(who, "quantizer", {call.quantizer for call in calls}, levels)
        known_roles = sorted({role for claim in self.claims for role in claim.roles})
        for name, replaced in self.controls.items():
            _known(f"the control {name}", "role", set(replaced), known_roles)
            _known(f"the control {name}", "model", set(replaced.values()), models)
        sizes: dict[tuple[str, str, int, str], int] = {}
        for images in self.images:
            for model, weights in product(images.models, images.weights):
                n, key = images.n or self.n, (model, weights, images.steps, images.runtime)
                if sizes.setdefault(key, n) != n:
                    raise ValueError(f"FIDs of {model} {weights} of two numbers of images")
        if self.pilot is not None:
            _known("the pilot", "model", {self.pilot.plain, *self.pilot.radii}, models)
            _known("the pilot", "quantizer", {*self.pilot.at_8, *self.pilot.at_4}, self.quantizers)
        return self

    @property
    def wanted_resize(self) -> Resize | None:
        """How images get to the study's size; None where it names none."""
        return self.resize if self.size else None

    @property
    def measured(self) -> tuple[ImagesConfig | FlatnessConfig | ExposureConfig, ...]:
        """All measurements."""
        return (*self.images, *self.flatness, *self.exposure)

    @property
    def models_of(self) -> dict[str, dict[str, str]]:
        """Run -> model -> moment."""
        return {name: run.models or {name: "end"} for name, run in self.runs.items()}

    @property
    def models(self) -> list[str]:
        """All models, in the order of the runs."""
        return [model for models in self.models_of.values() for model in models]

    def pairs(self) -> Iterator[tuple[str, int]]:
        """Every (run, seed), the first seed of each run first, then the second, ..."""
        ordered = [(i, name, seed) for name, run in self.runs.items() for i, seed in enumerate(run.seeds)]
        yield from ((name, seed) for _, name, seed in sorted(ordered, key=lambda place: place[0]))

    def train_config(self, run: str, seed: int) -> TrainConfig | None:
        """What is trained; None for a checkpoint from elsewhere."""
        spec = self.runs[run]
        if spec.checkpoint is not None:
            return None
        moments = self.models_of[run].values()
        steps = tuple(sorted(int(m.split()[1]) for m in moments if m.startswith("step")))
        given = {
            "data": self.data,
            "size": self.size,
            "resize": self.resize,
            "heldout": self.heldout,
            "threads": self.threads,
            "snapshot_steps": steps,
            **self.train,
            **spec.train,
        }
        config = TrainConfig.model_validate({**given, "seed": seed})
        if "loss" in moments and config.snapshot_loss is None:
            raise ValueError(f"the run {run} has a model at a loss, but no snapshot_loss")
        return config

    def cells(self, pattern: str = "*") -> list[Cell]:
        """The cells whose name `RUN-SEED` matches a shell pattern."""
        cells = [Cell(self, run, seed) for run, seed in self.pairs()]
        chosen = [cell for cell in cells if fnmatch.fnmatch(cell.name, pattern)]
        if not chosen:
            raise UsageError(
                f"no cell matches {pattern!r}",
                expected="some of " + ", ".join(cell.name for cell in cells),
                got="none",
                next_step="name cells as RUN-SEED; * and ? stand for any text",
            )
        return chosen


def _known(who: str, what: str, names: set[str], known: Any) -> None:
    strangers = sorted(names - set(known))
    if strangers:
        raise ValueError(f"{who} names the {what} {strangers[0]!r}; there are {', '.join(known)}")


_T = TypeVar("_T", bound=_Measured)


@dataclass(frozen=True)
class Cell:
    """One run at one seed, and what is to be measured on it."""

    study: StudyConfig
    run: str
    seed: int

    @property
    def name(self) -> str:
        """RUN-SEED."""
        return f"{self.run}-{self.seed}"

    @property
    def place(self) -> int:
        """Position of the seed among the run's seeds, from 0."""
        return self.study.runs[self.run].seeds.index(self.seed)

    @property
    def models(self) -> dict[str, str]:
        """Model -> moment."""
        return self.study.models_of[self.run]

    def chosen(self, specs: tuple[_T, ...]) -> Iterator[tuple[_T, str, Variant]]:
        """(measurement, model, weights) for all that concerns this cell."""
        for spec in specs:
            if spec.seeds is None or self.place < spec.seeds:
                for model in self.models:
                    if model in spec.models:
                        yield from ((spec, model, weights) for weights in spec.weights)


def read_config(path: Path) -> StudyConfig:
    """Read and check a study.

    Raises:
        UsageError: it cannot be read, or is not valid; the message names the key.
    """
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
        return StudyConfig.model_validate(given)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(
            f"the study {path} cannot be read", expected="a TOML file", got=one_line(error)
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the study"
        raise UsageError(
            f"the study {path} is not valid: {where}",
            expected=str(first["msg"]).removeprefix("Value error, "),
            got=" ".join(str(first["input"]).split())[:200],
        ) from error
