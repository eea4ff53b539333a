"""One quantized model against its float model, from paired samples: features, drifts, distances, sidecar.

Sampling lives in `flatq.sampler`, the statistics in `flatq.evaluate.drift` and `flatq.evaluate.kid`, the
verdict in `flatq.evaluate.gate`, tables and pictures in `flatq.report`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flatq.errors import DataError
from flatq.evaluate.drift import Drift, fid_drift
from flatq.evaluate.features import FeatureNet
from flatq.evaluate.frechet import frechet_side
from flatq.evaluate.kid import KidDrift, kid_drift
from flatq.evaluate.moments import F64, Reference, reference_from_features
from flatq.images import ImageSet, to_uint8

__all__ = ["Comparison", "Referee", "compare", "open_referee"]

Rounding = Literal["round", "truncate"]


@dataclass(frozen=True, eq=False)
class Referee:
    """What all models are measured against, computed once.

    images: the reference images. net: the feature network. features: f64 [m, d] of all reference images.
    reference: their statistics. threads: for every later extraction too.
    """

    images: ImageSet
    net: FeatureNet
    features: F64
    reference: Reference
    threads: int = 1

    def extract(self, samples: NDArray[np.float32], *, rounding: Rounding = "round") -> F64:
        """Features f64 [n, d] of samples [n, C, H, W] in [-1, 1], by way of uint8.

        Raises:
            DataError: another shape, or samples that are not finite.
        """
        return self.net.extract(to_uint8(samples, rounding), threads=self.threads)


@dataclass(frozen=True, eq=False)
class Comparison:
    """The quantized samples beside the float samples.

    drift, kid: None where the quantized samples are not finite. rms_distance_mean and rms_distance_max: of
    the root mean square distance between the two images of a pair, in units of [-1, 1]; None likewise.
    sidecar: arrays for an npz, row i the pair i: indices i64 [n], image_distance f64 [n] (not finite where
    the images are not), features_float and features_quantized f64 [n, d], influence_float and
    influence_quantized f64 [n] (on the FID). What does not exist has no key.
    """

    drift: Drift | None
    kid: KidDrift | None
    finite: bool
    rms_distance_mean: float | None
    rms_distance_max: float | None
    sidecar: dict[str, NDArray[Any]]


def open_referee(images: ImageSet, net: FeatureNet, *, threads: int = 1) -> Referee:
    """Extracts the reference's features and takes their statistics.

    Raises:
        DataError: images that do not fit the network, or too few or too alike for statistics.
        MissingRuntimeError: onnxruntime is not installed.
    """
    features = net.extract(images.pixels, threads=threads)
    return Referee(images, net, features, reference_from_features(features), threads)


def compare(
    referee: Referee,
    samples_float: NDArray[np.float32],
    samples_quantized: NDArray[np.float32],
    *,
    indices: Sequence[int] | NDArray[np.int64],
    confidence: float = 0.95,
    rounding: Rounding = "round",
    features_float: F64 | None = None,
    clusters: ArrayLike | None = None,
    relative_tolerance: float | None = None,
) -> Comparison:
    """Both drifts of samples [n, C, H, W] in [-1, 1], row i of both from the noise of indices[i].

    Args:
        features_float: `referee.extract(samples_float, rounding=rounding)` where the caller has it, so that
            several models share it.
        clusters, relative_tolerance: as `fid_drift`.

    Raises:
        DataError: samples or indices that do not pair up, fewer than 2 pairs, float samples that are not
            finite (there is nothing to compare with then), and as `fid_drift`.
    """
    rows = np.asarray(indices, dtype=np.int64)
    if samples_float.shape != samples_quantized.shape or rows.shape != samples_float.shape[:1]:
        raise DataError(
            "Float and quantized samples do not pair up.",
            expected=f"{list(samples_float.shape)} on both sides and {len(samples_float)} indices",
            got=f"{list(samples_quantized.shape)} and {rows.size} indices",
        )
    if not np.isfinite(samples_float).all():
        raise DataError(
            "The float model gave samples that are not finite.",
            next_step="check the checkpoint and its process: there is nothing to compare with",
        )
    xs = referee.extract(samples_float, rounding=rounding) if features_float is None else features_float
    sidecar: dict[str, NDArray[Any]] = {
        "indices": rows,
        "image_distance": _image_distance(samples_float, samples_quantized),
        "features_float": xs,
    }
    side_x = frechet_side(xs, referee.reference, clusters)
    if side_x.influence is not None:
        sidecar["influence_float"] = side_x.influence
    if not np.isfinite(samples_quantized).all():
        return Comparison(None, None, False, None, None, sidecar)
    qs = referee.extract(samples_quantized, rounding=rounding)
    sidecar["features_quantized"] = qs
    side_q = frechet_side(qs, referee.reference, clusters)
    if side_q.influence is not None:
        sidecar["influence_quantized"] = side_q.influence
    distance = sidecar["image_distance"]
    return Comparison(
        drift=fid_drift(xs, qs, referee.reference, confidence, clusters, relative_tolerance),
        kid=kid_drift(xs, qs, referee.features, confidence, clusters),
        finite=True,
        rms_distance_mean=float(distance.mean()),
        rms_distance_max=float(distance.max()),
        sidecar=sidecar,
    )


def _image_distance(x: NDArray[np.float32], q: NDArray[np.float32]) -> F64:
    """Root mean square difference of each pair, [n]."""
    distance = np.empty(len(x), np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        for i, (a, b) in enumerate(zip(x, q, strict=True)):
            distance[i] = np.sqrt(np.mean((b.astype(np.float64) - a) ** 2))
    return distance
