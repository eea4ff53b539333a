"""All measurements on one checkpoint's weights."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch

from flatq.checkpoint import Checkpoint, file_digest
from flatq.deployment import MANIFEST, Target
from flatq.flatness.damage import damage
from flatq.flatness.draws import make_draws
from flatq.flatness.landscape import F64, Landscape, Vector, inner, norm, weight_noise
from flatq.flatness.result import Ascent, Curvature, Estimate, Flatness, LayerWeights, Noise, binned
from flatq.flatness.settings import FlatnessSettings
from flatq.images import ImageSet
from flatq.progress import Progress
from flatq.quantize.artifact import read_artifact
from flatq.runtime.base import default_threads
from flatq.runtime.torch import torch_threads

__all__ = [
    "ascent_losses",
    "ascent_step",
    "curvature",
    "filter_scales",
    "layer_weights",
    "measure_flatness",
    "noise_losses",
]

_T = TypeVar("_T")
_ETA = 0.01  # Kwon et al. 2021, section 5.1: keeps directions of tiny weights
_EIGENVALUE_TOLERANCE = 1e-3


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
        images: must have the network's image shape.
        weights_variant: raw, ema or swa; None for the checkpoint's default.
        artifacts: folders of `flatq quantize`, each made from these weights.

    Raises:
        UsageError, DataError, ArtifactError: weights, images or artifacts that do not fit.
    """
    s, chosen = settings, checkpoint.choose(weights_variant)
    read = [(path, read_artifact(path)) for path in artifacts]
    network = checkpoint.network(chosen)
    draws = make_draws(images, checkpoint.process, s.images, s.seed, classes=checkpoint.model.classes)
    radii = (*s.sigmas, *s.relative_sigmas, *s.rhos, *s.adaptive_rhos)
    numbers, total = count(1), len(radii) + 1 + len(read)

    def done(found: _T) -> _T:
        progress("flatness", next(numbers), total)
        return found

    with torch_threads(s.threads or default_threads()):
        landscape = Landscape(network, draws, s.batch_size)
        base, gradient = landscape.losses(), landscape.gradient()
        probed = (s.pairs, s.seed, base)
        noise = [done(noise_losses(landscape, "absolute", sigma, *probed)) for sigma in s.sigmas]
        noise += [done(noise_losses(landscape, "relative", sigma, *probed)) for sigma in s.relative_sigmas]
        ascent = [done(ascent_losses(landscape, "absolute", rho, gradient, base)) for rho in s.rhos]
        ascent += [done(ascent_losses(landscape, "adaptive", rho, gradient, base)) for rho in s.adaptive_rhos]
        fewer = Landscape(network, draws[: s.eigenvalue_images], s.batch_size)
        bend = done(curvature(fewer, s.probes, s.seed))
        harm = [
            done(
                damage(
                    landscape,
                    artifact,
                    path.name,
                    file_digest(path / MANIFEST),
                    target=target,
                    gradient=gradient,
                    base=base,
                    random_draws=s.random_draws,
                    seed=s.seed,
                )
            )
            for path, artifact in read
        ]
    return Flatness(
        checkpoint=checkpoint.source.name if checkpoint.source else "",
        digest=checkpoint.digest or "",
        weights_variant=chosen,
        data=images.name,
        data_digest=images.digest,
        settings=settings,
        loss=binned(base, draws.bins.numpy()),
        noise=tuple(noise),
        ascent=tuple(ascent),
        curvature=bend,
        layers=tuple(layer_weights(landscape.weights)),
        damage=tuple(harm),
    )


def filter_scales(weights: Vector) -> dict[str, torch.Tensor]:
    """The root mean square of each filter (axis 0 of a matrix or kernel), of a vector as a whole."""
    scales = {}
    for name, w in weights.items():
        rows = w.flatten(1) if w.ndim > 1 else w[None]
        scales[name] = rows.square().mean(1).sqrt().view(-1, *[1] * (w.ndim - 1))
    return scales


def noise_losses(
    landscape: Landscape,
    kind: Literal["absolute", "relative"],
    sigma: float,
    pairs: int,
    seed: int,
    base: F64,
) -> Noise:
    """Mean loss and its increase under e ~ N(0, sigma^2), or N(0, (sigma rms of the filter)^2): low-pass
    filter flatness (Bisla et al. 2022).

    Each draw of e is evaluated with both signs; the standard errors are over the pairs, on fixed draws of
    (x0, t, noise).

    Args:
        base: float64 [n], the losses at the weights.
    """
    scales = filter_scales(landscape.weights) if kind == "relative" else None
    found = np.empty((pairs, len(base)))
    for pair in range(pairs):
        noise = weight_noise(landscape.weights, seed, pair)
        e = {name: z * sigma * (scales[name] if scales else 1.0) for name, z in noise.items()}
        found[pair] = (landscape.losses(e) + landscape.losses({k: -z for k, z in e.items()})) / 2
    bins = landscape.draws.bins.numpy()
    return Noise(kind=kind, sigma=sigma, loss=binned(found, bins), increase=binned(found - base, bins))


def ascent_step(
    weights: Vector, gradient: Vector, rho: float, kind: Literal["absolute", "adaptive"]
) -> dict[str, torch.Tensor]:
    """e = rho g / |g| (Foret et al. 2021, eq. 2), or e = rho T^2 g / |T g| with T = |w| + 0.01 (Kwon et al.
    2021, section 4). The norm is over all tensors together."""
    scale = {
        name: weights[name].abs() + _ETA if kind == "adaptive" else torch.ones_like(g)
        for name, g in gradient.items()
    }
    length = norm({name: scale[name] * g for name, g in gradient.items()})
    return {name: rho / length * scale[name].square() * g for name, g in gradient.items()}


def ascent_losses(
    landscape: Landscape, kind: Literal["absolute", "adaptive"], rho: float, gradient: Vector, base: F64
) -> Ascent:
    """Increase of the loss at SAM's ascent point, the worst direction nearby to first order; the standard
    error is over the draws."""
    moved = landscape.losses(ascent_step(landscape.weights, gradient, rho, kind))
    return Ascent(kind=kind, rho=rho, increase=binned(moved - base, landscape.draws.bins.numpy()))


def curvature(landscape: Landscape, probes: int, seed: int) -> Curvature:
    """Largest eigenvalue (by Lanczos, ARPACK) and trace of the mean loss's Hessian.

    The standard error of the eigenvalue is that of v^T H v over the batches, at the eigenvector v that was
    found; of the trace, over the Rademacher probes (Hutchinson 1989).
    """
    from scipy.sparse.linalg import LinearOperator, eigsh

    weights = landscape.weights
    sizes = [w.numel() for w in weights.values()]

    def unflatten(flat: F64) -> dict[str, torch.Tensor]:
        parts = torch.split(torch.from_numpy(flat.reshape(-1)), sizes)
        return {
            name: part.view(w.shape).to(w) for part, (name, w) in zip(parts, weights.items(), strict=True)
        }

    def flatten(v: Vector) -> F64:
        return torch.cat([part.flatten() for part in v.values()]).double().cpu().numpy()

    operator = LinearOperator(
        (sum(sizes), sum(sizes)),
        matvec=lambda flat: flatten(landscape.hessian_times(unflatten(flat))[0]),
        dtype=np.float64,
    )
    start = flatten(weight_noise(weights, seed, 0))
    values, vectors = eigsh(operator, k=1, which="LA", tol=_EIGENVALUE_TOLERANCE, v0=start)
    _, by_batch = landscape.hessian_times(unflatten(vectors[:, 0]))
    traces = []
    for probe in range(probes):
        signs = {name: z.sign() for name, z in weight_noise(weights, seed, probe).items()}
        traces.append(inner(signs, landscape.hessian_times(signs)[0]))
    error = float(by_batch.std(ddof=1) / len(by_batch) ** 0.5) if len(by_batch) > 1 else None
    return Curvature(
        largest_eigenvalue=Estimate(value=float(values[0]), standard_error=error),
        trace=Estimate.of(np.array(traces)),
    )


def layer_weights(weights: Vector) -> list[LayerWeights]:
    """Norm, range and kurtosis of every matrix and kernel, in the network's order; vectors (biases,
    normalizations) stay in float and are left out."""
    found = []
    for name, w in weights.items():
        if w.ndim < 2:
            continue
        values = w.double().flatten()
        centred = values - values.mean()
        deviation = float(centred.square().mean().sqrt())
        found.append(
            LayerWeights(
                name=name.removesuffix(".weight"),
                count=values.numel(),
                norm=float(values.norm()),
                standard_deviation=deviation,
                range_over_std=float(values.max() - values.min()) / deviation if deviation else 0.0,
                kurtosis=float(centred.pow(4).mean()) / deviation**4 if deviation else 0.0,
            )
        )
    return found
