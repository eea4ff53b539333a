"""All measurements on one checkpoint's weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flatq.checkpoint import Checkpoint, file_digest
from flatq.deployment import MANIFEST, Target
from flatq.flatness.curvature import curvature
from flatq.flatness.damage import damage
from flatq.flatness.draws import make_draws
from flatq.flatness.landscape import Landscape
from flatq.flatness.lpf import noise_losses
from flatq.flatness.result import Damage, Flatness, binned_over_draws
from flatq.flatness.settings import FlatnessSettings
from flatq.flatness.sharpness import ascent_losses
from flatq.flatness.weights import layer_weights
from flatq.images import ImageSet
from flatq.progress import Progress
from flatq.quantize.artifact import read_artifact
from flatq.runtime.base import default_threads
from flatq.runtime.torch import torch_threads

__all__ = ["measure_flatness"]


def measure_flatness(
    checkpoint: Checkpoint,
    images: ImageSet,
    settings: FlatnessSettings,
    *,
    weights_variant: str | None = None,
    artifacts: Sequence[Path] = (),
    target: Target = "onnxruntime",
    progress: Progress = lambda *_: None,
) -> Flatness:
    """Measure the flatness of a checkpoint, and the damage that its artifacts' quantization errors do.

    Args:
        images: of the shape that the network takes.
        weights_variant: raw, ema or swa; None for the checkpoint's default.
        artifacts: folders of `flatq quantize`, each made from these weights.

    Raises:
        UsageError, DataError, ArtifactError: weights, images or artifacts that do not fit.
    """
    chosen = checkpoint.choose(weights_variant)
    read = [(path, read_artifact(path)) for path in artifacts]
    network = checkpoint.network(chosen)
    draws = make_draws(
        images, checkpoint.process, settings.images, settings.seed, classes=checkpoint.model.classes
    )
    bins = draws.bins.numpy()
    kinds = [("absolute", s) for s in settings.sigmas] + [("relative", s) for s in settings.relative_sigmas]
    climbs = [("absolute", r) for r in settings.rhos] + [("adaptive", r) for r in settings.adaptive_rhos]
    total = len(kinds) + len(climbs) + 1 + len(read)
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        progress("flatness", done, total)

    with torch_threads(settings.threads or default_threads()):
        landscape = Landscape(network, draws, settings.batch_size)
        base, gradient = landscape.losses(), landscape.gradient()
        noise = []
        for kind, sigma in kinds:
            noise.append(noise_losses(landscape, kind, sigma, settings.pairs, settings.seed, base))  # type: ignore[arg-type]
            advance()
        ascent = []
        for kind, rho in climbs:
            ascent.append(ascent_losses(landscape, kind, rho, gradient, base))  # type: ignore[arg-type]
            advance()
        fewer = Landscape(network, draws[: settings.eigenvalue_images], settings.batch_size)
        bend = curvature(fewer, settings.probes, settings.seed)
        advance()
        hurt: list[Damage] = []
        for path, artifact in read:
            found = damage(
                landscape,
                artifact,
                path.name,
                file_digest(path / MANIFEST),
                target=target,
                gradient=gradient,
                base=base,
                random_draws=settings.random_draws,
                seed=settings.seed,
            )
            hurt.append(found)
            advance()
    return Flatness(
        checkpoint=checkpoint.source.name if checkpoint.source else "",
        digest=checkpoint.digest or "",
        weights_variant=chosen,
        data=images.name,
        data_digest=images.digest,
        settings=settings,
        loss=binned_over_draws(base, bins),
        noise=tuple(noise),
        ascent=tuple(ascent),
        curvature=bend,
        layers=tuple(layer_weights(landscape.weights)),
        damage=tuple(hurt),
    )
