"""What a run would be: parameters, multiply-adds and memory, from a network that holds no numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flatq.images import load_images
from flatq.network import build_network
from flatq.train.config import TrainConfig, model_config_for

if TYPE_CHECKING:
    import torch

__all__ = ["Forecast", "forecast", "image_shape"]


@dataclass(frozen=True)
class Forecast:
    """The size of a run.

    Attributes:
        parameters: numbers in the network.
        macs: multiply-adds of one forward pass over one image: convolutions and matrix products, as
            `torch.utils.flop_counter` finds them; norms, activations and additions are not counted.
        weights_bytes: weights, gradients, optimizer, averages and SAM's copy, on the device.
        activations_bytes: what one process's part of the batch keeps for the backward pass. Temporary
            tensors, the caching allocator and libraries come on top: an estimate from below.
        images_bytes: the images in main memory, where they are known (0 else).
    """

    parameters: int
    macs: int
    weights_bytes: int
    activations_bytes: int
    images_bytes: int


def image_shape(config: TrainConfig) -> tuple[int, int, int]:
    """(C, H, W) of a run's images, without reading them where size and image_channels say it.

    Raises:
        DataError: the images cannot be read.
    """
    if config.size is not None and config.image_channels is not None:
        return config.image_channels, config.size, config.size
    return load_images(config.data, size=config.size, limit=1, channels=config.image_channels).shape


def forecast(
    config: TrainConfig, shape: tuple[int, int, int], *, processes: int = 1, images: int = 0
) -> Forecast:
    """The size of a run on images of `shape`, nothing of which is allocated.

    Args:
        processes: that share the batch.
        images: how many there are.

    Raises:
        UsageError: a network that does not fit the images.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        network = build_network(model_config_for(config, shape)).train()
        x = torch.empty(1, *shape)
        t = torch.zeros(1, dtype=torch.int64)
    parameters = sum(p.numel() for p in network.parameters())
    own = {id(p.untyped_storage()) for p in network.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[id(storage)] = storage  # held, so that an id is not given again
        return tensor

    counter = FlopCounterMode(display=False)
    with counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(x, t)
    activations = sum(storage.nbytes() for key, storage in kept.items() if key not in own)
    if config.precision == "bf16":
        activations //= 2
    copies = 1 + 1 + 2 + len(config.ema_decays)  # weights, gradients, the two moments of AdamW
    copies += 2 if config.swa_start is not None else 0  # float64
    copies += 1 if config.method == "sam" else 0
    return Forecast(
        parameters,
        counter.get_total_flops() // 2,
        4 * parameters * copies,
        activations * -(-config.batch_size // processes),
        images * shape[0] * shape[1] * shape[2],
    )
