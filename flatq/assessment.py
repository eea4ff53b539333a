"""What `flatq.evaluate` and `flatq.gate` are asked for. Pure data, no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from flatq.backends import RuntimeSettings
from flatq.sampling_settings import SamplingSettings

if TYPE_CHECKING:
    from flatq.images import Resize

__all__ = ["EvaluateSettings", "GateSettings", "OnInconclusive"]

OnInconclusive = Literal["pass", "fail", "error"]


@dataclass(frozen=True)
class EvaluateSettings:
    """What to evaluate and how; the defaults are those of `flatq eval`.

    Attributes:
        models: artifacts, deployments or checkpoints.
        baseline: the float checkpoint they are compared with; by default the one beside the first model.
        data: images that the distances are taken to, as `flatq.images.load_images` names them; the embedded
            digits where there is no `reference` either.
        out: folder of the report.
        sampling: how images are drawn.
        images: how many, from index `first`.
        features: an ONNX feature network, "inception", or None for the bundled one.
        runtime: how the models run; the feature network takes its threads too.
        baseline_runtime: how the baseline runs, by default with the threads of `runtime`.
        weights: raw, ema or swa of the baseline; by default those that the models were made from.
        max_drift, max_drift_rel, min_samples: the gate's, as `flatq.evaluate.gate.Tolerances`; without a
            tolerance there is no verdict.
        max_samples: go on drawing up to so many images until the gate has decided; None draws `images`.
        looks: at how many sizes the gate looks then, each at its share of 1 - confidence.
        ladder: sample the middle rungs too, and say where the drift comes from.
        reference: a file of statistics that the distances are taken to, in place of `data`.
        inception_weights, features_device: of the Inception network, as `open_extractor`.
        cache: whether the features of `data`, and all samples with theirs, are kept for the next time; a
            folder for them in place of the usual one.
        resize: how images of `data` get to the model's size; without it, others are refused.
    """

    models: tuple[Path, ...]
    baseline: Path | None = None
    data: str | None = None
    out: Path = Path("flatq-eval")
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    images: int = 1000
    first: int = 0
    batch_size: int = 64
    features: str | None = None
    runtime: RuntimeSettings = RuntimeSettings()
    baseline_runtime: RuntimeSettings = RuntimeSettings()
    weights: str | None = None
    rounding: Literal["round", "truncate"] = "round"
    confidence: float = 0.95
    max_drift: float | None = None
    max_drift_rel: float | None = None
    min_samples: int | None = None
    max_samples: int | None = None
    looks: int = 4
    ladder: bool = False
    reference: Path | None = None
    inception_weights: Path | None = None
    features_device: str = "cpu"
    cache: bool | Path = True
    resize: Resize | None = None


@dataclass(frozen=True)
class GateSettings:
    """What a report is judged by; the defaults are those of `flatq gate`.

    Attributes:
        max_drift: the largest FID drift that passes.
        max_drift_rel: the largest drift that passes, as a fraction of the float model's FID. Without either,
            the tolerances are those that the report was evaluated with.
        min_samples: fewer images are inconclusive.
        confidence: confidence level of the intervals, that of the report by default.
        baseline: an earlier report, or its folder: `max_drift` is then how much the drift may grow over it.
        on_inconclusive: what an inconclusive verdict exits with: pass = 0, fail = 1, error = 4.
    """

    max_drift: float | None = None
    max_drift_rel: float | None = None
    min_samples: int | None = None
    confidence: float | None = None
    baseline: Path | None = None
    on_inconclusive: OnInconclusive = "error"
