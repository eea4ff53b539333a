"""Cells of a study by construction: nothing is trained or sampled."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from flatq.evaluate.drift import Drift
from flatq.flatness.exposure import Exposure, ExposureStep
from flatq.flatness.result import Binned, Damage, Estimate, Flatness, LayerWeights, Noise
from flatq.sampling_settings import SamplingSettings
from flatq.study.config import FLOAT, Cell, StudyConfig, read_config
from flatq.study.results import (
    CellResult,
    ExposureResult,
    FlatnessResult,
    ImagesResult,
    ParitySummary,
    QuantizerResult,
    TrainedModel,
    digest_of,
    write_result,
)
from flatq.study.run import cell_file, cell_settings

__all__ = ["STUDY", "Planted", "planted_cell", "write_study"]

STUDY = """
name = "planted"
title = "A planted study"
about = ["Nothing was trained: <every number> is planted."]
data = "digits:train"
heldout = "digits:heldout"
n = 1000
train = { steps = 30, heldout_every = 10, snapshot_loss = 0.1, swa_start = 20 }
runs.adm = { seeds = SEEDS, models = { adm = "end", adm-early = "loss" } }
runs.sam = { seeds = SEEDS, train = { method = "sam", rho = 0.1 } }
quantizers.naive8 = { bits = 8, granularity = "per_tensor", edges = "same", method = "rtn" }
quantizers.naive4 = { bits = 4, granularity = "per_tensor", edges = "same", method = "rtn" }
images = [
    { models = ["adm", "adm-early", "sam"], weights = ["raw"], quantizers = ["naive8", "naive4"] },
    { models = ["adm", "sam"], weights = ["raw"], quantizers = ["naive8"], steps = 100, seeds = 2 },
]
flatness = [{ models = ["adm", "adm-early", "sam"], damage = ["naive8"] }]
exposure = [{ models = ["adm", "sam"], quantizers = ["float", "naive8"] }]
flatness_settings = { sigmas = [0.01] }

[[claims]]
id = "C1a"
title = "SAM flattens"
roles = { plain = "adm", flat = "sam" }
[[claims.weak]]
name = "log ratio of LPF increase, SAM / ADM"
value = "log_ratio(lpf(flat, raw), lpf(plain, raw), lpf_error(flat, raw), lpf_error(plain, raw))"
below = 0
[[claims.paper]]
name = "log ratio of LPF increase, SAM / ADM"
value = "log_ratio(lpf(flat, raw), lpf(plain, raw), lpf_error(flat, raw), lpf_error(plain, raw))"
below = "log(0.65)"

[[claims]]
id = "C2-raw"
title = "SAM keeps its FID at 8 bits, ADM does not"
roles = { plain = "adm", flat = "sam" }
[[claims.weak]]
name = "drift of ADM - drift of SAM, over ADM's FID"
value = "(drift(plain, raw, naive8) - drift(flat, raw, naive8)) / mean(fid(plain, raw))"
above = 0
[claims.premise]
name = "drift of ADM over its FID"
value = "drift(plain, raw, naive8) / mean(fid(plain, raw))"
above = 0.1

[[claims]]
id = "C6"
title = "the same at T = 100"
family = "T = 100"
roles = { plain = "adm", flat = "sam" }
[[claims.weak]]
name = "log ratio of FID"
value = "log(fid(flat, raw, steps=100) / fid(plain, raw, steps=100))"
below = 0

[controls."ADM stopped at SAM's loss"]
plain = "adm-early"

[[questions]]
id = "Q1"
title = "How large is the damage?"
values.ADM = "damage(adm, raw, naive8)"
values."ADM with EMA" = "damage(adm, ema, naive8)"
"""


@dataclass(frozen=True)
class Planted:
    """What a model measures, before the noise of its seed; drifts by quantizer, relative to the FID."""

    fid: float = 10.0
    drifts: Mapping[str, float] = None  # type: ignore[assignment]
    lpf: float = 0.1
    lpf_error: float = 0.001
    gap: float = 0.1
    spread: float = 0.01
    n_over_rank: float = 40.0
    finite: bool = True

    def __post_init__(self) -> None:
        if self.drifts is None:
            object.__setattr__(self, "drifts", {"naive8": 0.5, "naive4": 4.0})


def write_study(
    folder: Path, models: Mapping[str, Planted], seeds: int = 6, text: str = STUDY
) -> StudyConfig:
    """A folder of `flatq study run` with every cell of the study."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "study.toml"
    path.write_text(text.replace("SEEDS", str(seeds)), encoding="utf-8")
    study = read_config(path)
    for cell in study.cells():
        write_result(planted_cell(cell, models), cell_file(folder, cell))
    return study


def planted_cell(cell: Cell, models: Mapping[str, Planted]) -> CellResult:
    """One cell; a model that `models` does not name is missing."""
    study, settings = cell.study, cell_settings(cell)
    there = {name: models[name] for name in cell.models if name in models}

    def noise(model: str) -> Callable[[float], float]:
        rng = np.random.default_rng([cell.seed, *model.encode()])
        return lambda value: float(value * (1 + there[model].spread * rng.standard_normal()))

    def images_of(model: str, weights: str, runtime: str, steps: int, quantizers: list[str]) -> ImagesResult:
        jitter, planted = noise(model), there[model]
        fid = jitter(planted.fid * 20 / steps)
        picture = _picture(study.pictures) if cell.place == 0 else None
        return ImagesResult(
            model=model,
            weights=weights,
            runtime=runtime,
            identity={"runtime": runtime},
            steps=steps,
            n=study.n,
            features="ab" * 32,
            fid=fid,
            fid_raw=fid + 0.1,
            n_over_rank=planted.n_over_rank,
            quantized={
                name: QuantizerResult(
                    digest="cd" * 32,
                    precision=name,
                    finite=planted.finite,
                    drift=_drift(fid, jitter(planted.drifts.get(name, 0.0)) * fid),
                    distance=0.1,
                    integer_share=1.0,
                    parity=ParitySummary(layers=7, least_equal=1.0, problem=None)
                    if cell.place == 0 and cell.run == next(iter(study.runs))
                    else None,
                    picture=picture,
                )
                for name in quantizers
            },
            picture=picture,
        )

    def flatness_of(model: str, weights: str, quantizers: tuple[str, ...]) -> FlatnessResult:
        jitter, planted = noise(model), there[model]
        loss, increase = jitter(0.05), jitter(planted.lpf)
        return FlatnessResult(
            model=model,
            weights=weights,
            quantizers=quantizers,
            flatness=Flatness(
                checkpoint=model,
                digest="ef" * 32,
                weights_variant=weights,
                data="digits",
                data_digest="01" * 32,
                settings=study.flatness_settings,
                loss=_binned(loss, 0.001),
                noise=(
                    Noise(
                        kind="absolute",
                        sigma=study.sigma,
                        loss=_binned(loss + increase, 0.001),
                        increase=_binned(increase, planted.lpf_error),
                    ),
                ),
                ascent=(),
                curvature=None,
                layers=(
                    LayerWeights(
                        name="conv",
                        count=9,
                        norm=jitter(1.0),
                        standard_deviation=0.1,
                        range_over_std=jitter(5.0),
                        kurtosis=jitter(3.0),
                    ),
                ),
                damage=tuple(
                    Damage(
                        artifact=name,
                        precision=name,
                        digest="23" * 32,
                        weights=_binned(jitter(increase / 2), 0.001),
                        quantized=_binned(jitter(increase), 0.001),
                        random=_binned(jitter(increase / 3), 0.001),
                        slope=0.0,
                        curvature=0.0,
                        error_norm=1.0,
                    )
                    for name in quantizers
                ),
            ),
        )

    def exposure_of(
        model: str, weights: str, runtime: str, steps: int, quantizers: tuple[str, ...]
    ) -> ExposureResult:
        jitter, planted = noise(model), there[model]
        found = {}
        for name in quantizers:
            gap = jitter(planted.gap) * (1 if name == FLOAT else 2)
            found[name] = Exposure(
                model=model,
                digest="45" * 32,
                weights_variant=weights,
                precision=name,
                runtime={"runtime": runtime},
                sampling=SamplingSettings(steps=steps),
                images=100,
                dimension=64,
                steps=tuple(
                    ExposureStep(
                        t=int(t),
                        norm_training=_estimate(8.0),
                        norm_sampling=_estimate(8.0 + gap),
                        squared_training=_estimate(64.0),
                        squared_sampling=_estimate(64.0 * (1 + gap * (1000 - t) / 500)),
                        delta=0.01,
                    )
                    for t in np.linspace(950, 0, steps)
                ),
            )
        return ExposureResult(model=model, weights=weights, runtime=runtime, quantizers=found)

    return CellResult(
        study=study.name,
        run=cell.run,
        seed=cell.seed,
        digest=digest_of(settings),
        settings=settings,
        commit="a" * 40,
        environment={
            "cpu": "a CPU, 2 cores",
            "python": "3.12",
            "platform": "Linux",
            "versions": {"torch": "2.13"},
        },
        instructions="avx512_vnni",
        models={
            name: TrainedModel(digest="67" * 32, steps=30, passes=60, heldout_loss={"raw": 0.1, "ema": 0.1})
            for name in there
        },
        missing={name: "the held-out loss never fell to 0.1" for name in cell.models if name not in there},
        images=tuple(
            images_of(model, weights, spec.runtime, spec.steps, list(spec.quantizers))
            for spec, model, weights in cell.chosen(study.images)
            if model in there
        ),
        flatness=tuple(
            flatness_of(model, weights, spec.damage)
            for spec, model, weights in cell.chosen(study.flatness)
            if model in there
        ),
        exposure=tuple(
            exposure_of(model, weights, spec.runtime, spec.steps, spec.quantizers)
            for spec, model, weights in cell.chosen(study.exposure)
            if model in there
        ),
        seconds={"train": 60.0, "images": 30.0},
    )


def _estimate(value: float, error: float = 0.01) -> Estimate:
    return Estimate(value=value, standard_error=error)


def _binned(value: float, error: float) -> Binned:
    one = _estimate(value, error)
    return Binned(overall=one, quarters=(one, one, one, one))


_PLAIN = Drift(
    fid_float=0.0,
    fid_quantized=0.0,
    raw=0.0,
    bias_correction=0.0,
    corrected=0.0,
    standard_error=0.01,
    half_width=0.02,
    low=-0.02,
    high=0.02,
    confidence=0.95,
    n=1000,
    dim=64,
    rank=50,
    reference_rank=50,
    n_over_rank=20.0,
    identical=False,
    reason=None,
    settles=True,
    relative_tolerance=None,
)


def _drift(fid: float, drift: float) -> Drift:
    return replace(
        _PLAIN,
        fid_float=fid,
        fid_quantized=fid + drift,
        raw=drift,
        corrected=drift,
        low=drift - 0.02,
        high=drift + 0.02,
    )


def _picture(columns: int) -> str:
    pixels = np.random.default_rng(0).integers(0, 255, (8, 9 * columns - 1), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return base64.b64encode(stream.getvalue()).decode()
