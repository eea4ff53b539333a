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
from flatq.evaluate.cache import ReferenceCache
from flatq.evaluate.drift import Drift, fid_drift
from flatq.evaluate.extractor import Extractor, Progress
from flatq.evaluate.frechet import FrechetSide, frechet_side
from flatq.evaluate.kid import KidDrift, kid_drift, kid_from_float
from flatq.evaluate.measure import measure_reference
from flatq.evaluate.moments import F64, Reference
from flatq.evaluate.prc import NEIGHBOURS, Manifold, PrecisionRecall, manifold_of, precision_recall
from flatq.evaluate.reference import ReferenceSource, StoredReference, source_of
from flatq.images import ImageSet, to_uint8

__all__ = ["Comparison", "Referee", "Rounding", "compare", "open_referee", "stored_referee"]

Rounding = Literal["round", "truncate"]


@dataclass(frozen=True, eq=False)
class Referee:
    """What all models are measured against, computed once.

    net: the extractor. reference: the reference's statistics. source: where they come from. features: f64
    [m, d] of all reference images, and manifold: for precision and recall; both None where there are only
    statistics (manifold also where the images are too few). threads: for every later extraction too.
    """

    net: Extractor
    reference: Reference
    source: ReferenceSource
    features: F64 | None = None
    manifold: Manifold | None = None
    threads: int = 1

    def extract(self, samples: NDArray[np.float32], *, rounding: Rounding = "round") -> F64:
        """Features f64 [n, d] of samples [n, C, H, W] in [-1, 1], by way of uint8.

        Raises:
            DataError: another shape, or samples that are not finite.
        """
        return self.net.extract(to_uint8(samples, rounding), threads=self.threads)

    def precision_recall(self, features: F64) -> PrecisionRecall | None:
        """Of samples' features [n, d]; None without the reference's manifold, or for n <= k."""
        if self.manifold is None or len(features) <= self.manifold.k:
            return None
        return precision_recall(manifold_of(features, self.manifold.k), self.manifold)


@dataclass(frozen=True, eq=False)
class Comparison:
    """The quantized samples beside the float samples.

    drift, kid, prc: None where the quantized samples are not finite; kid is of the quantized samples from the
    float ones where there are no reference features (`KidDrift.against`); prc, precision and recall of the
    quantized samples, as `Referee.precision_recall`. rms_distance_mean and rms_distance_max: of
    the root mean square distance between the two images of a pair, in units of [-1, 1]; None likewise.
    sidecar: arrays for an npz, row i the pair i: indices i64 [n], image_distance f64 [n] (not finite where
    the images are not), features_float and features_quantized f64 [n, d], influence_float and
    influence_quantized f64 [n] (on the FID), clusters [n]. What does not exist has no key.
    """

    drift: Drift | None
    kid: KidDrift | None
    finite: bool
    rms_distance_mean: float | None
    rms_distance_max: float | None
    sidecar: dict[str, NDArray[Any]]
    prc: PrecisionRecall | None = None


def open_referee(
    images: ImageSet,
    net: Extractor,
    *,
    threads: int = 1,
    cache: ReferenceCache | None = None,
    progress: Progress | None = None,
) -> Referee:
    """A referee with the images at hand: their features (from the cache where it has them) and statistics.

    Raises:
        DataError: images that do not fit the network, or too few or too alike for statistics.
        MissingRuntimeError: the extractor's backend is not installed.
    """
    features, reference = measure_reference(images, net, threads=threads, cache=cache, progress=progress)
    assert features is not None
    manifold = manifold_of(features) if len(features) > NEIGHBOURS else None
    return Referee(net, reference, source_of(images), features, manifold, threads)


def stored_referee(stored: StoredReference, net: Extractor, *, threads: int = 1) -> Referee:
    """A referee that has only statistics, checked against the extractor as far as they say what made them.

    Raises:
        DataError: statistics of another extractor, of other dimensions, or of images of another shape.
    """
    if stored.reference.dim != net.dim:
        raise DataError(
            f"the statistics of {stored.source.name} do not fit the extractor {net.name}",
            expected=f"{net.dim} dimensions",
            got=f"{stored.reference.dim} dimensions",
            next_step="name the extractor that they were made with: --features",
        )
    if stored.extractor_digest not in (None, net.digest):
        raise DataError(
            f"the statistics of {stored.source.name} were made with another extractor",
            expected=f"{net.name}, sha256 {net.digest[:16]}...",
            got=f"{stored.extractor_name}, sha256 {str(stored.extractor_digest)[:16]}...",
            next_step="name the extractor that they were made with, or make them again with `flatq stats`",
        )
    shape = stored.source.image_shape
    if shape is not None and shape != net.image_shape:
        raise DataError(
            f"the statistics of {stored.source.name} are of images of another shape",
            expected=str(list(net.image_shape)),
            got=str(list(shape)),
            next_step="make them of images of the model's shape: flatq stats DATA --size N",
        )
    return Referee(net, stored.reference, stored.source, threads=threads)


def compare(
    referee: Referee,
    samples_float: NDArray[np.float32],
    samples_quantized: NDArray[np.float32],
    *,
    indices: Sequence[int] | NDArray[np.int64],
    confidence: float = 0.95,
    rounding: Rounding = "round",
    features_float: F64 | None = None,
    side_float: FrechetSide | None = None,
    features_quantized: F64 | None = None,
    clusters: ArrayLike | None = None,
    relative_tolerance: float | None = None,
) -> Comparison:
    """Both drifts, and precision and recall, of samples [n, C, H, W] in [-1, 1].

    Row i of both sides is from the noise of indices[i].

    Args:
        features_float: `referee.extract(samples_float, rounding=rounding)` where the caller has it, so that
            several models share it.
        side_float: `frechet_side` of these features with the referee's reference and clusters; likewise.
        features_quantized: of the quantized samples, where the caller has them.
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
    side_x = frechet_side(xs, referee.reference, clusters) if side_float is None else side_float
    if clusters is not None:
        sidecar["clusters"] = np.asarray(clusters)
    if side_x.influence is not None:
        sidecar["influence_float"] = side_x.influence
    if not np.isfinite(samples_quantized).all():
        return Comparison(None, None, False, None, None, sidecar)
    qs = features_quantized
    if qs is None:
        qs = referee.extract(samples_quantized, rounding=rounding)
    sidecar["features_quantized"] = qs
    side_q = side_x if np.array_equal(xs, qs) else frechet_side(qs, referee.reference, clusters)
    if side_q.influence is not None:
        sidecar["influence_quantized"] = side_q.influence
    distance = sidecar["image_distance"]
    if referee.features is None:
        kid = kid_from_float(xs, qs, confidence, clusters)
    else:
        kid = kid_drift(xs, qs, referee.features, confidence, clusters)
    return Comparison(
        drift=fid_drift(
            xs, qs, referee.reference, confidence, clusters, relative_tolerance, sides=(side_x, side_q)
        ),
        kid=kid,
        finite=True,
        rms_distance_mean=float(distance.mean()),
        rms_distance_max=float(distance.max()),
        sidecar=sidecar,
        prc=referee.precision_recall(qs),
    )


def _image_distance(x: NDArray[np.float32], q: NDArray[np.float32]) -> F64:
    """Root mean square difference of each pair, [n]."""
    distance = np.empty(len(x), np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        for i, (a, b) in enumerate(zip(x, q, strict=True)):
            distance[i] = np.sqrt(np.mean((b.astype(np.float64) - a) ** 2))
    return distance
