"""`flatq stats`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flatq.cli.common import note, progress_bar
from flatq.cli.options import (
    Cache,
    Features,
    FeaturesDevice,
    InceptionWeights,
    ResizeChoice,
    Threads,
    images_option,
)

__all__ = ["command"]


def command(
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="Images: digits, or a folder, .zip, .npz or .parquet.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Statistics file to write, .npz.")],
    features: Features = None,
    inception_weights: InceptionWeights = None,
    features_device: FeaturesDevice = "cpu",
    size: Annotated[
        int | None, images_option(help="Height and width in pixels; other sizes need --resize.")
    ] = None,
    resize: ResizeChoice = None,
    channels: Annotated[
        int | None, images_option(help="Number of channels to convert to: 1 is grey, 3 is RGB.")
    ] = None,
    limit: Annotated[int | None, images_option(help="Number of images to use; all by default.")] = None,
    cache: Cache = True,
    threads: Threads = None,
) -> None:
    """Write mean and covariance of the features of images, for `flatq eval --reference`."""
    from flatq.evaluate.cache import cache_folder, open_cache
    from flatq.evaluate.features import open_extractor
    from flatq.evaluate.reference import measure_reference
    from flatq.evaluate.statistics_file import save_reference
    from flatq.images import load_images
    from flatq.runtime.base import default_threads

    images = load_images(data, size=size, resize=resize, limit=limit, channels=channels)
    extractor = open_extractor(
        features,
        image_shape=images.shape,
        inception_weights=inception_weights,
        device=features_device,
        threads=threads or default_threads(),
    )
    with progress_bar() as bar:
        measured = measure_reference(
            images,
            extractor,
            cache=open_cache(cache_folder(), note) if cache else None,
            progress=lambda done, total: bar("features", done, total),
        )
    save_reference(out, measured.statistics, measured.source, extractor)
    n, dim = measured.statistics.n or 0, measured.statistics.dim
    note(f"{n} images of {measured.source.name}, {dim} features of {measured.extractor.name}")
    if n <= dim:
        note(
            f"{n} images are not more than the {dim} features: their covariance is singular, "
            "and a distance to it says little; take more images"
        )
    typer.echo(str(out))
