"""The forecast of a run against counts made another way."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from flatq.network import build_network
from flatq.train import TrainConfig, model_config_for
from flatq.train.dry_run import forecast


def _config(**changes: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "data": "nowhere", "size": 16, "image_channels": 3, "channels": (32, 64), "attention": (8,),
        "head_dim": 16, "batch_size": 4, "resblock_updown": True,
    }  # fmt: skip
    return TrainConfig(**values | changes)


def _count(config: TrainConfig) -> tuple[int, int, int]:
    """Parameters, multiply-adds of convolutions, linears and attention products, saved bytes of one image."""
    network = build_network(model_config_for(config, (3, 16, 16))).train()
    macs = 0

    def convolution(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        nonlocal macs
        weight: Any = module.weight
        macs += output.numel() * weight[0].numel()

    def attention(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        nonlocal macs
        _, channels, height, width = output.shape
        macs += 2 * (height * width) ** 2 * channels  # queries with keys, weights with values

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(convolution)
        elif type(module).__name__ == "Attention":
            module.register_forward_hook(attention)
    saved: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    own = {p.untyped_storage().data_ptr() for p in network.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(torch.randn(1, 3, 16, 16), torch.tensor([5]))
    activations = sum(storage.nbytes() for key, storage in saved.items() if key not in own)
    return sum(p.numel() for p in network.parameters()), macs, activations


def test_parameters_multiply_adds_and_memory() -> None:
    config = _config()
    parameters, macs, activations = _count(config)
    found = forecast(config)
    assert found.parameters == parameters
    assert found.macs == macs
    assert found.weights_bytes == 4 * parameters * 5  # weights, gradients, two moments, one average
    # the CPU's attention kernel keeps less than the one that the count goes by
    assert 0.8 < found.activations_bytes / (4 * activations) < 1.4
    assert found.images is None


def test_memory_of_options() -> None:
    plain = forecast(_config())
    rich = _config(method="sam", swa_start=0.5, ema_decays=(0.9, 0.99), precision="bf16", batch_size=8)
    found = forecast(rich)
    assert found.weights_bytes == 4 * plain.parameters * 9
    assert found.activations_bytes == plain.activations_bytes


def test_images_are_read_where_the_configuration_leaves_them_open() -> None:
    read = forecast(_config(data="digits", size=None, image_channels=None, labels=True))
    assert (read.image_shape, read.labels, read.images) == ((1, 8, 8), 10, 1797)
    given = forecast(_config(labels=True, num_classes=7))
    assert (given.image_shape, given.labels, given.images) == ((3, 16, 16), 7, None)
