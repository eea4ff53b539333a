"""Measuring the reference: features and statistics of images, by way of the cache, and into a file.

The cache is `flatq.evaluate.cache`, the file's format `flatq.evaluate.reference`.
"""

from __future__ import annotations

from pathlib import Path

from flatq.errors import DataError
from flatq.evaluate.cache import ReferenceCache, cache_key
from flatq.evaluate.extractor import Extractor, Progress, open_extractor
from flatq.evaluate.moments import F64, Reference, moments_of, reference_from_moments
from flatq.evaluate.reference import StoredReference, save_reference, source_of
from flatq.images import ImageSet, Resize, load_images
from flatq.runtime.base import default_threads

__all__ = ["measure_reference", "write_statistics"]


def measure_reference(
    images: ImageSet,
    extractor: Extractor,
    *,
    threads: int = 1,
    cache: ReferenceCache | None = None,
    features: bool = True,
    progress: Progress | None = None,
) -> tuple[F64 | None, Reference]:
    """Features f64 [n, d] of all images (None unless asked for) and their statistics.

    With a cache the numbers are those of a run with the same images, extractor, backend, version, device and
    threads, bit for bit.

    Raises:
        DataError: images that do not fit the extractor, or too few or too alike for statistics.
        MissingRuntimeError: the extractor's backend is not installed.
    """
    if len(images.pixels) < 2:
        raise DataError(
            f"{images.name} holds too few images for reference statistics",
            expected="at least 2, and for a Frechet distance many more than feature dimensions",
            got=str(len(images.pixels)),
            next_step="name a larger image set, or raise --limit",
        )
    key = cache_key(images, extractor, threads)
    found = cache.load(key, features=features) if cache is not None else None
    if found is not None:
        kept, moments = found
        return kept, reference_from_moments(moments)
    measured = extractor.extract(images.pixels, threads=threads, progress=progress)
    moments = moments_of(measured)
    reference = reference_from_moments(moments)
    if cache is not None:
        cache.store(key, measured, moments)
    return measured if features else None, reference


def write_statistics(
    data: str,
    out: Path,
    *,
    features: str | None = None,
    inception_weights: Path | None = None,
    device: str = "cpu",
    size: int | None = None,
    resize: Resize | None = None,
    limit: int | None = None,
    channels: int | None = None,
    threads: int | None = None,
    cache: ReferenceCache | None = None,
    progress: Progress | None = None,
) -> StoredReference:
    """Measures images and writes their statistics to `out`.

    Args:
        data, size, resize, limit, channels: as `flatq.images.load_images`.
        features, inception_weights, device: as `open_extractor`.
        threads: of the CPU; all cores by default.

    Raises:
        InputError, MissingRuntimeError: as those and `measure_reference`; `out` cannot be written.
    """
    images = load_images(data, size=size, resize=resize, limit=limit, channels=channels)
    extractor = open_extractor(
        features, image_shape=images.shape, inception_weights=inception_weights, device=device
    )
    _, reference = measure_reference(
        images,
        extractor,
        threads=threads or default_threads(),
        cache=cache,
        features=False,
        progress=progress,
    )
    source = source_of(images)
    save_reference(out, reference, source, extractor)
    return StoredReference(reference, source, extractor.name, extractor.digest)
