"""Evaluation of a network in training: held-out loss, a grid of samples. Leaves torch's generators alone."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch

from flatq.errors import DataError
from flatq.images import save_grid, to_float, to_uint8
from flatq.network import Denoiser
from flatq.network_config import ModelConfig
from flatq.process import ProcessConfig
from flatq.runtime.torch import TorchRuntime
from flatq.sampler import sample
from flatq.sampling_settings import SamplingSettings
from flatq.train.batches import read_images
from flatq.train.config import TrainConfig
from flatq.train.objective import Objective

__all__ = ["HeldOut", "save_samples"]

_MOST_IMAGES = 2000
_GRID_IMAGES = 64
_GRID_STEPS = 20


def _copy(network: Denoiser, weights: Mapping[str, torch.Tensor] | None) -> Denoiser:
    """A copy in eval mode, with other weights of the UNet where they are given."""
    copied = deepcopy(network).eval()
    if weights is not None:
        copied.unet.load_state_dict(weights)
    return copied


class HeldOut:
    """The noise prediction's mean squared error on held-out images, always on the same timesteps and noise.

    At most 2000 images, spread evenly over the source; each has one timestep, spread evenly over the process.
    Plain squared error whatever the method and the variance, so that runs compare.

    Args:
        config: names the images.
        image_shape: of the images in training.
        device: of the network.

    Raises:
        DataError: the images cannot be read or have another shape.
    """

    def __init__(self, config: TrainConfig, image_shape: tuple[int, int, int], device: torch.device) -> None:
        assert config.heldout is not None
        images = read_images(config, config.heldout)
        if images.shape != image_shape:
            raise DataError(
                "the held-out images do not fit those in training",
                expected=str(list(image_shape)),
                got=str(list(images.shape)),
                next_step="give a size, and image_channels where one is grey and the other is not",
            )
        count = min(len(images.pixels), _MOST_IMAGES)
        rows = np.linspace(0, len(images.pixels) - 1, count).astype(np.int64)
        self._pixels = images.pixels[rows]
        self._labels = None
        if config.label_count(images.labels) is not None and images.labels is not None:
            self._labels = torch.from_numpy(images.labels[rows])
        generator = torch.Generator().manual_seed(0)
        spread = torch.arange(count) * config.train_steps // count
        self._t = spread[torch.randperm(count, generator=generator)]
        self._batch = min(config.batch_size, count)
        self._objective = Objective(config.process)
        self._device = device

    @torch.no_grad()
    def loss(self, network: Denoiser, weights: Mapping[str, torch.Tensor] | None = None) -> float:
        """The mean over the images, with the network's own weights or others of its UNet."""
        generator = torch.Generator().manual_seed(1)
        model = _copy(network, weights)
        total = 0.0
        for start in range(0, len(self._t), self._batch):
            rows = slice(start, start + self._batch)
            x0 = torch.from_numpy(to_float(self._pixels[rows]))
            noise = torch.randn(x0.shape, generator=generator)
            label = None if self._labels is None else self._labels[rows].to(self._device)
            x0, t, noise = (value.to(self._device) for value in (x0, self._t[rows], noise))
            losses = self._objective(model, x0, t, noise, label=label)
            total += float(losses.mse.double().sum())
        return total / len(self._t)


def save_samples(
    path: Path,
    network: Denoiser,
    model: ModelConfig,
    process: ProcessConfig,
    weights: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """A PNG of 64 samples after 20 steps, on the same noise each time; its folder is made.

    Args:
        weights: of the UNet; None for the network's own.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    runtime = TorchRuntime(
        _copy(network, weights),
        inputs=model.inputs,
        device=str(next(network.parameters()).device),
        threads=torch.get_num_threads(),
    )
    settings = SamplingSettings(steps=min(_GRID_STEPS, process.train_steps))
    x = sample(runtime, process, settings, range(_GRID_IMAGES), model.image_shape, classes=model.classes)
    save_grid(path, to_uint8(x), columns=8)
