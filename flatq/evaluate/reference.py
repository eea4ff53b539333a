"""The reference that all models of an evaluation are measured against, measured once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from flatq.errors import DataError
from flatq.evaluate.cache import Cache
from flatq.evaluate.extractor import Extractor
from flatq.evaluate.moments import Moments, Reference, Rows, moments_of, reference_from_moments
from flatq.evaluate.precision_recall import (
    NEIGHBOURS,
    Manifold,
    PrecisionRecall,
    fixed_choice,
    manifold_of,
    precision_recall,
)
from flatq.evaluate.statistics_file import ReferenceSource, StoredReference
from flatq.images import ImageSet
from flatq.version import __version__

__all__ = ["MeasuredReference", "from_statistics", "measure_reference", "reference_key"]

_VERSION = 2


@dataclass(frozen=True, eq=False)
class MeasuredReference:
    """Statistics of the reference in the features of an extractor.

    source: where they come from. features: [m, d] of at most 10,000 reference images (`fixed_choice`); None
    where there are only statistics.
    """

    extractor: Extractor
    statistics: Reference
    source: ReferenceSource
    features: Rows | None = None

    @cached_property
    def manifold(self) -> Manifold | None:
        """For precision and recall; None without images, or with too few."""
        if self.features is None or len(self.features) <= NEIGHBOURS:
            return None
        return manifold_of(self.features)

    def precision_recall(self, features: Rows) -> PrecisionRecall | None:
        """Of samples' features [n, d]; None without the reference's manifold, or for too few samples."""
        if self.manifold is None or len(features) <= NEIGHBOURS:
            return None
        return precision_recall(manifold_of(features), self.manifold)


def measure_reference(
    images: ImageSet,
    extractor: Extractor,
    *,
    cache: Cache | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> MeasuredReference:
    """Features and statistics of images, from the cache where it has them.

    With a cache the numbers are those of a run with the same images, extractor, backend, version, device and
    threads, bit for bit.

    Args:
        progress: called with (images done, total).

    Raises:
        DataError: images that do not fit the extractor, or too few or too alike for statistics.
    """
    n = len(images.pixels)
    if n < 2:
        raise DataError(
            f"{images.name} holds too few images for reference statistics",
            expected="at least 2, and for a Frechet distance many more than feature dimensions",
            got=str(n),
            next_step="name a larger image set, or raise --limit",
        )
    source = ReferenceSource("images", images.name, images.digest, n, images.shape, images.preprocessing)
    key = reference_key(images, extractor)
    found = None if cache is None else cache.load("reference", key)
    if found is not None:
        statistics = reference_from_moments(Moments(n, found["mu"], found["sigma"]))
        return MeasuredReference(extractor, statistics, source, found["features"])
    features = extractor.extract(images.pixels, progress)
    moments, features = moments_of(features), fixed_choice(features)
    statistics = reference_from_moments(moments)
    if cache is not None:
        cache.store("reference", key, {"mu": moments.mean, "sigma": moments.cov, "features": features})
    return MeasuredReference(extractor, statistics, source, features)


def reference_key(images: ImageSet, extractor: Extractor) -> dict[str, Any]:
    """Whatever changes the features, in plain values.

    The machine is not: two machines' features differ by roundings of float32, which is nothing beside the
    images, and both models of a comparison are measured against the same reference. So an entry may go from
    machine to machine, as a file of `flatq stats` does.
    """
    return {
        "version": _VERSION,
        "flatq": __version__,
        "images": images.digest,
        "n": len(images.pixels),
        "extractor": extractor.digest,
        "identity": extractor.identity,
    }


def from_statistics(stored: StoredReference, extractor: Extractor) -> MeasuredReference:
    """A reference that has only statistics, checked against the extractor as far as they say what made them.

    Raises:
        DataError: statistics of another extractor, of other dimensions, or of images of another shape.
    """
    name = stored.source.name
    if stored.reference.dim != extractor.dim or stored.extractor_digest not in (None, extractor.digest):
        raise DataError(
            f"the statistics of {name} were made with another extractor",
            expected=f"{extractor.name}, {extractor.dim} dimensions, sha256 {extractor.digest[:16]}...",
            got=f"{stored.extractor_name or 'unknown'}, {stored.reference.dim} dimensions, sha256 "
            f"{str(stored.extractor_digest)[:16]}...",
            next_step="name the extractor that they were made with: --features; or make them again with "
            "`flatq stats`",
        )
    shape = stored.source.image_shape
    if shape is not None and shape != extractor.image_shape:
        raise DataError(
            f"the statistics of {name} are of images of another shape",
            expected=str(list(extractor.image_shape)),
            got=str(list(shape)),
            next_step="make them of images of the model's shape: flatq stats DATA --size N",
        )
    return MeasuredReference(extractor, stored.reference, stored.source)
