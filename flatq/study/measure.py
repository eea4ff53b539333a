"""The measurements of one cell, by the verbs of `flatq`. Each is a function that gives a plain result."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import flatq
from flatq.assessment import EvaluateSettings
from flatq.backends import RuntimeSettings
from flatq.checkpoint import Checkpoint
from flatq.errors import ModelError
from flatq.export.settings import ExportSettings
from flatq.flatness.exposure import measure_exposure
from flatq.flatness.measure import measure_flatness
from flatq.images import ImageSet, Resize, load_images, make_grid
from flatq.models import deployment_folder, open_model
from flatq.progress import Progress
from flatq.report.model import ModelEntry
from flatq.report.sidecar import read_sidecar
from flatq.sampling_settings import SamplingSettings
from flatq.study.config import FLOAT, StudyConfig
from flatq.study.results import (
    ExposureResult,
    FlatnessResult,
    ImagesResult,
    ParitySummary,
    QuantizerResult,
)

if TYPE_CHECKING:
    from flatq.deployment import Target

__all__ = ["Subject"]


@dataclass(frozen=True)
class Subject:
    """One model's weights, and the folder that its artifacts are kept in.

    Attributes:
        cache: folder for features of the reference, and for samples.
        verify: compare each layer of the deployments with the PyTorch reference.
        pictures: images to keep of each evaluation.
    """

    study: StudyConfig
    model: str
    checkpoint: Checkpoint
    weights: str
    folder: Path
    cache: Path
    verify: bool
    pictures: int
    progress: Progress

    def artifact(self, quantizer: str, runtime: str | None = None) -> Path:
        """The artifact of a quantizer, made and exported where it is not there yet."""
        path = self.folder / quantizer
        threads = self.study.threads
        if not path.exists():
            settings = self.study.quantizers[quantizer].settings(self.weights, threads)
            flatq.quantize(self.checkpoint, settings, path, progress=self.progress)
        if runtime not in (None, "torch"):
            target = cast("Target", runtime)
            if not deployment_folder(path, target).exists():
                flatq.export(path, ExportSettings(target=target, verify=False, threads=threads))
        return path

    def _where(self, runtime: str) -> RuntimeSettings:
        device = self.study.device if runtime == "torch" else None
        return RuntimeSettings(runtime, device, threads=self.study.threads)

    def images(self, quantizers: Iterable[str], runtime: str, steps: int, n: int) -> ImagesResult:
        """Sample the float model in torch and the quantized ones on the runtime, and compare."""
        paths = {name: self.artifact(name, runtime) for name in quantizers}
        out = self.folder / f"eval-{runtime}-{steps}"
        report = flatq.evaluate(
            EvaluateSettings(
                models=tuple(paths.values()),
                baseline=self.checkpoint.source,
                data=self.study.data,
                out=out,
                sampling=SamplingSettings(steps=steps),
                images=n,
                features=self.study.features,
                runtime=self._where(runtime),
                baseline_runtime=self._where("torch"),
                features_device=self.study.device,
                weights=self.weights,
                cache=self.cache,
                resize=self.study.wanted_resize,
            ),
            progress=self.progress,
        )
        entries = dict(zip(paths, report.models, strict=True))
        some = report.models[0].drift
        return ImagesResult(
            model=self.model,
            weights=self.weights,
            runtime=runtime,
            identity=report.models[0].runtime,
            steps=steps,
            n=n,
            features=report.extractor.digest,
            fid=some.fid_float - (some.bias_float or 0.0),
            fid_raw=some.fid_float,
            n_over_rank=some.n_over_rank,
            quantized={
                name: self._quantized(paths[name], runtime, out, entry) for name, entry in entries.items()
            },
            picture=self._picture(out, report.models[0], "float"),
        )

    def _quantized(self, path: Path, runtime: str, out: Path, entry: ModelEntry) -> QuantizerResult:
        return QuantizerResult(
            digest=entry.digest,
            precision=entry.precision,
            finite=entry.not_finite == 0,
            drift=entry.drift,
            distance=entry.rms_distance_mean,
            integer_share=None if entry.audit is None else entry.audit.integer_share,
            parity=self._parity(path, runtime),
            picture=self._picture(out, entry, "quantized"),
        )

    def _parity(self, path: Path, runtime: str) -> ParitySummary | None:
        if not self.verify or runtime == "torch":
            return None
        folder = deployment_folder(path, cast("Target", runtime))
        try:
            found = flatq.verify(path, folder, threads=self.study.threads, progress=self.progress).parity
        except ModelError as error:
            return ParitySummary(layers=0, least_equal=0.0, problem=f"{error.what}; {error.got}")
        assert found is not None
        return ParitySummary(
            layers=len(found.layers), least_equal=min(layer.equal for layer in found.layers), problem=None
        )

    def _picture(self, out: Path, entry: ModelEntry, side: Literal["float", "quantized"]) -> str | None:
        kept = read_sidecar(entry, out) if self.pictures else None
        pixels = None if kept is None else kept.kept_float if side == "float" else kept.kept_quantized
        if pixels is None:
            return None
        stream = io.BytesIO()
        make_grid(pixels[: self.pictures], self.pictures).save(stream, format="PNG", optimize=True)
        return base64.b64encode(stream.getvalue()).decode()

    def flatness(self, quantizers: tuple[str, ...]) -> FlatnessResult:
        """Flatness of the float weights, and the damage of the quantizers' errors."""
        settings = self.study.flatness_settings.model_copy(update={"threads": self.study.threads})
        found = measure_flatness(
            self.checkpoint,
            self._training_images(),
            settings,
            weights_variant=self.weights,
            artifacts=[self.artifact(name) for name in quantizers],
            progress=self.progress,
        )
        return FlatnessResult(model=self.model, weights=self.weights, quantizers=quantizers, flatness=found)

    def exposure(self, quantizers: tuple[str, ...], runtime: str, steps: int, n: int) -> ExposureResult:
        """Exposure bias of the float model in torch and of the quantized ones on the runtime."""
        found = {}
        for name in quantizers:
            if name == FLOAT:
                assert self.checkpoint.source is not None
                opened = open_model(self.checkpoint.source, self._where("torch"), weights=self.weights)
            else:
                opened = open_model(self.artifact(name, runtime), self._where(runtime))
            with opened.runtime:
                found[name] = measure_exposure(
                    opened, self._training_images(), SamplingSettings(steps=steps), n
                )
        return ExposureResult(model=self.model, weights=self.weights, runtime=runtime, quantizers=found)

    def _training_images(self) -> ImageSet:
        channels, size, _ = self.checkpoint.model.image_shape
        return _load(self.study.data, size, self.study.wanted_resize, channels)


@lru_cache(maxsize=1)
def _load(data: str, size: int, resize: Resize | None, channels: int) -> ImageSet:
    """The images that all models of a study are measured on, read once."""
    return load_images(data, size=size, resize=resize, channels=channels)
