"""The size of a run: parameters, multiply-adds and memory, from a network on the meta device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from flatq.network import build_network
from flatq.train.batches import read_images
from flatq.train.config import TrainConfig, model_config_for

__all__ = ["Forecast", "forecast"]


@dataclass(frozen=True)
class Forecast:
    """The size of a run.

    Attributes:
        image_shape: (C, H, W). labels: number of classes, None without.
        images: number of images; None where they were not read.
        parameters: numbers in the network.
        macs: multiply-adds of one forward pass over one image: convolutions and matrix products, as
            `torch.utils.flop_counter` finds them; norms, activations and additions are not counted.
        weights_bytes: weights, gradients, optimizer, averages, copies of SAM or weight noise, on the device.
        activations_bytes: what a batch keeps for the backward pass; several processes share it. Temporary
            tensors, the caching allocator and libraries come on top: an estimate from below. bf16 is
            taken to halve it.
    """

    image_shape: tuple[int, int, int]
    labels: int | None
    images: int | None
    parameters: int
    macs: int
    weights_bytes: int
    activations_bytes: int


def forecast(config: TrainConfig) -> Forecast:
    """The size of a run in one process, nothing of which is allocated.

    The images are read only where size, image_channels and num_classes leave a question open.

    Raises:
        DataError: the images cannot be read, or lack the labels that the run needs.
        UsageError: a network that does not fit the images.
    """
    size, channels, labels, images = config.size, config.image_channels, config.num_classes, None
    if size is None or channels is None or (config.labels and labels is None):
        found = read_images(config)
        shape, labels, images = found.shape, config.label_count(found.labels), len(found.pixels)
    else:
        shape = (channels, size, size)
    with torch.device("meta"):
        network = build_network(model_config_for(config, shape, labels)).train()
        index = torch.zeros(1, dtype=torch.int64)
        inputs = (torch.empty(1, *shape), index, *(() if labels is None else (index,)))
    parameters = sum(p.numel() for p in network.parameters())
    own = {id(p.untyped_storage()) for p in network.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[id(storage)] = storage  # held, so that an id is not given again
        return tensor

    counter = FlopCounterMode(display=False)
    with counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(*inputs)
    activations = sum(storage.nbytes() for key, storage in kept.items() if key not in own)
    if config.precision == "bf16":
        activations //= 2
    copies = 1 + 1 + 2 + len(config.ema_decays)  # weights, gradients, the two moments of AdamW
    copies += 2 if config.swa_start is not None else 0  # float64
    copies += {"sam": 1, "noise": 2}.get(config.method, 0)  # the weights as they were, and the noise
    return Forecast(
        shape,
        labels,
        images,
        parameters,
        counter.get_total_flops() // 2,
        4 * parameters * copies,
        activations * config.batch_size,
    )
