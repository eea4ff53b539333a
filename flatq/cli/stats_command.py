"""`flatq stats`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flatq.cli.common import (
    Cache,
    Features,
    FeaturesDevice,
    InceptionWeights,
    ResizeChoice,
    Threads,
    note,
    parse_resize,
    progress_bar,
)

__all__ = ["command"]


def command(
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="digits, or a folder, .zip, .npz or .parquet of images.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="The file of statistics to write, .npz.")],
    features: Features = None,
    inception_weights: InceptionWeights = None,
    features_device: FeaturesDevice = "cpu",
    size: Annotated[
        int | None, typer.Option(help="Height and width; others are refused without --resize.")
    ] = None,
    resize: ResizeChoice = None,
    channels: Annotated[int | None, typer.Option(help="1 or 3: convert to grey or RGB.")] = None,
    limit: Annotated[int | None, typer.Option(help="Use only the first LIMIT images.")] = None,
    cache: Cache = True,
    threads: Threads = None,
) -> None:
    """Reference statistics of images, for `flatq eval --reference`: mean and covariance of their features."""
    from flatq.evaluate.cache import cache_folder, open_cache
    from flatq.evaluate.reference import write_statistics

    with progress_bar() as bar:
        measured = write_statistics(
            data,
            out,
            features=features,
            inception_weights=inception_weights,
            device=features_device,
            size=size,
            resize=parse_resize(resize),
            limit=limit,
            channels=channels,
            threads=threads,
            cache=open_cache(cache_folder(), note) if cache else None,
            progress=lambda done, total: bar("features", done, total),
        )
    n, dim = measured.statistics.n or 0, measured.statistics.dim
    note(f"{n} images of {measured.source.name}, {dim} features of {measured.extractor.name}")
    if n <= dim:
        note(
            f"{n} images are not more than the {dim} features: their covariance is singular, "
            "and a distance to it says little; take more images"
        )
    typer.echo(str(out))
