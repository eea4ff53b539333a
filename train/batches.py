"""What each step trains on: images, timesteps, noise, labels. Drawn on the CPU, alike on all devices.

All processes draw the same joint batch from generators in the same state, and each takes its part.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from flatq.images import ImageSet, load_images, to_float
from flatq.train.config import TrainConfig
from flatq.train.streams import stream
from flatq.train.timesteps import Uniform

__all__ = ["Batch", "Batches", "read_images"]

_STREAMS = ("order", "timesteps", "noise", "perturbation", "label_dropout")


def read_images(config: TrainConfig, source: str | None = None) -> ImageSet:
    """The images of a run, or all of another source made alike.

    Raises:
        DataError, MissingRuntimeError: as `flatq.images.load_images`.
    """
    return load_images(
        config.data if source is None else source,
        size=config.size,
        resize=None if config.size is None else config.resize,
        limit=config.limit if source is None else None,
        channels=config.image_channels,
    )


class Batch(NamedTuple):
    """A joint batch, or one process's part of it.

    Attributes:
        x0: float32 [N, C, H, W], in [-1, 1].
        t: int64 [N]. weight: float32 [N], of the timesteps' importance.
        noise: float32, like x0, standard normal.
        shift: float32, like x0, what input perturbation adds to the noise; None without it.
        label: int64 [N]; None for a network without classes.
    """

    x0: torch.Tensor
    t: torch.Tensor
    weight: torch.Tensor
    noise: torch.Tensor
    shift: torch.Tensor | None
    label: torch.Tensor | None

    def part(self, rank: int, processes: int, device: torch.device) -> Batch:
        """The rank-th of `processes` consecutive parts, on the device. The batch must divide evenly.

        Nothing waits for a copy to a CUDA device: it goes through pinned memory.
        """
        size = len(self.t) // processes

        def take(value: torch.Tensor | None) -> Any:
            if value is None:
                return None
            rows = value[rank * size : (rank + 1) * size]
            cuda = device.type == "cuda"
            return (rows.pin_memory() if cuda else rows).to(device, non_blocking=cuda)

        return Batch(*map(take, self))


class Batches:
    """Draws joint batches.

    The images are taken in a new random order in each epoch; a batch may span epochs. Order and flips,
    timesteps, noise, input perturbation and the dropout of labels have a random stream each. So at one seed
    all methods see the same images, flips and noise, and with uniform timesteps the same timesteps. With the
    loss-second-moment sampler the timesteps follow the losses, which differ between the methods.

    Args:
        pixels: uint8 [n, C, H, W].
        labels: int64 [n], below the null label; None for no labels.
        null_label: the label of images that lose theirs.
        config: batch size, seed, flip, input perturbation, label dropout.
    """

    def __init__(
        self,
        pixels: NDArray[np.uint8],
        config: TrainConfig,
        labels: NDArray[np.int64] | None = None,
        null_label: int | None = None,
    ) -> None:
        self._pixels = pixels
        self._labels = None if labels is None else torch.from_numpy(labels)
        self._null_label = null_label
        self._config = config
        self._streams = {name: stream(config.seed, name) for name in _STREAMS}
        self._order = torch.empty(0, dtype=torch.int64)
        self._taken = 0

    def draw(self, timesteps: Uniform) -> Batch:
        """The next joint batch."""
        config, streams, size = self._config, self._streams, self._config.batch_size
        while len(self._order) < size:
            order = torch.randperm(len(self._pixels), generator=streams["order"])
            self._order = torch.cat([self._order, order])
        rows, self._order = self._order[:size], self._order[size:]
        self._taken += size
        x0 = torch.from_numpy(to_float(self._pixels[rows.numpy()]))
        if config.flip:
            mirrored = torch.rand(size, 1, 1, 1, generator=streams["order"]) < 0.5
            x0 = torch.where(mirrored, x0.flip(3), x0)
        t, weight = timesteps.draw(size, streams["timesteps"])
        noise = torch.randn(x0.shape, generator=streams["noise"])
        shift = None
        if config.perturbation > 0:
            shift = config.perturbation * torch.randn(x0.shape, generator=streams["perturbation"])
        label = None if self._labels is None else self._labels[rows]
        if label is not None and self._null_label is not None:
            dropped = torch.rand(size, generator=streams["label_dropout"]) < config.label_dropout
            label = torch.where(dropped, self._null_label, label)
        return Batch(x0, t, weight, noise, shift, label)

    @property
    def epoch_ended(self) -> bool:
        """Whether the last batch drawn took the last image of an epoch."""
        count = len(self._pixels)
        return self._taken // count > (self._taken - self._config.batch_size) // count

    def state_dict(self) -> dict[str, Any]:
        return {
            "streams": {name: generator.get_state() for name, generator in self._streams.items()},
            "order": self._order.clone(),
            "taken": self._taken,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, generator in self._streams.items():
            generator.set_state(state["streams"][name])
        self._order = state["order"]
        self._taken = int(state["taken"])
