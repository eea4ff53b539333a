"""The fixed draws of (x0, t, noise) that every model is measured on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from flatq.errors import DataError
from flatq.flatness.settings import BINS
from flatq.images import ImageSet, to_float
from flatq.labels import Classes
from flatq.noise import NoiseStream, normal
from flatq.process import Process, ProcessConfig

__all__ = ["Draws", "make_draws", "spread_rows"]


@dataclass(frozen=True, eq=False)
class Draws:
    """Inputs of the network and what its output should be.

    Attributes:
        x: float32 [n, C, H, W], samples of q(x_t | x_0) (DDPM eq. 4).
        t: int64 [n].
        target: float32 [n, C, H, W]: the noise, x_0 or v, as the process predicts.
        label: int64 [n]; None for a network without classes.
        bins: int64 [n], the quarter of [0, T) that t lies in.
    """

    x: torch.Tensor
    t: torch.Tensor
    target: torch.Tensor
    label: torch.Tensor | None
    bins: torch.Tensor

    def __getitem__(self, rows: slice) -> Draws:
        """Some of the draws, in order."""
        label = None if self.label is None else self.label[rows]
        return Draws(self.x[rows], self.t[rows], self.target[rows], label, self.bins[rows])


def spread_rows(images: ImageSet, n: int) -> NDArray[np.int64]:
    """n rows spread evenly over the images.

    Raises:
        DataError: fewer than n images.
    """
    if len(images.pixels) < n:
        raise DataError(
            f"{images.name} has too few images",
            expected=f"at least {n}",
            got=str(len(images.pixels)),
            next_step="take fewer (-n), or more images",
        )
    return np.linspace(0, len(images.pixels) - 1, n).astype(np.int64)


def make_draws(
    images: ImageSet, process: ProcessConfig, n: int, seed: int, *, classes: Classes | None = None
) -> Draws:
    """n draws from images spread evenly over the source; the same whatever the model.

    Draw i takes a timestep from quarter i modulo 4, at a fixed place within it, so that the first draws are
    spread over [0, T) as evenly as all of them. Noise is that of image index i, draw 0 of the probes' stream.

    Args:
        classes: the network's; labels are the images' own where they have some, else round-robin.

    Raises:
        DataError: as `spread_rows`.
    """
    rows = spread_rows(images, n)
    rows = rows[np.random.Generator(np.random.Philox(key=seed)).permutation(n)]
    quarters = np.arange(n) % BINS
    # The golden ratio spreads any first part of a sequence evenly over [0, 1).
    places = (np.arange(n) // BINS + 0.5) * 0.6180339887498949 % 1.0
    t = ((quarters + places) / BINS * process.train_steps).astype(np.int64)
    x0 = to_float(images.pixels[rows])
    noise = normal(seed, range(n), 0, images.shape, stream=NoiseStream.PROBES)
    kept = Process.from_config(process).alphas_cumprod[t].reshape(-1, 1, 1, 1)
    signal, scale = np.sqrt(kept).astype(np.float32), np.sqrt(1 - kept).astype(np.float32)
    target = {"epsilon": noise, "sample": x0, "v": signal * noise - scale * x0}[process.prediction]
    labels = None
    if classes is not None:
        labels = classes.assign(range(n)) if images.labels is None else images.labels[rows].astype(np.int64)
    return Draws(
        torch.from_numpy(signal * x0 + scale * noise),
        torch.from_numpy(t),
        torch.from_numpy(target),
        None if labels is None else torch.from_numpy(labels),
        torch.from_numpy(quarters),
    )
