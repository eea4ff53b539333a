"""Small networks of the shapes that targets meet, with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import torch

from flatq.checkpoint import Checkpoint, save_checkpoint
from flatq.network import build_network
from flatq.network_config import ModelConfig
from flatq.process import ProcessConfig

__all__ = ["NETWORKS", "assert_symmetric_int8", "checkpoint", "random_weights"]

NETWORKS: dict[str, dict[str, Any]] = {
    # As `flatq train` makes it for the digits.
    "digits": {
        "image_size": 8,
        "image_channels": 1,
        "out_channels": 1,
        "patch_size": 2,
        "unet": {
            "block_out_channels": [16, 32],
            "layers_per_block": 1,
            "down_block_types": ["DownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "UpBlock2D"],
            "norm_num_groups": 8,
            "add_attention": False,
        },
    },
    "rgb32": {
        "image_size": 32,
        "image_channels": 3,
        "out_channels": 3,
        "unet": {
            "block_out_channels": [16, 32],
            "layers_per_block": 1,
            "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
            "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
            "attention_head_dim": 8,
            "norm_num_groups": 8,
            "attn_norm_num_groups": 8,
        },
    },
    # As imported from guided-diffusion: scale-shift, residual up and down, learned variance, labels.
    "imported64": {
        "image_size": 64,
        "image_channels": 3,
        "out_channels": 6,
        "num_classes": 4,
        "null_label": 3,
        "attention_heads": (2, 2),
        "timestep_channels": 16,
        "unet": {
            "block_out_channels": [16, 32],
            "layers_per_block": 1,
            "down_block_types": ["ResnetDownsampleBlock2D", "AttnDownBlock2D"],
            "up_block_types": ["AttnUpBlock2D", "ResnetUpsampleBlock2D"],
            "downsample_type": "resnet",
            "upsample_type": "resnet",
            "resnet_time_scale_shift": "scale_shift",
            "attention_head_dim": 16,
            "norm_num_groups": 8,
            "attn_norm_num_groups": 8,
        },
    },
}


def random_weights(config: ModelConfig) -> dict[str, torch.Tensor]:
    """The weights of a new UNet, the same at each call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_network(config).unet.state_dict()


def checkpoint(name: str, folder: Path) -> Checkpoint:
    """A saved checkpoint of one of `NETWORKS`."""
    config = ModelConfig(**NETWORKS[name])
    weights = random_weights(config)
    learned = config.out_channels > config.image_channels
    process = ProcessConfig(schedule="cosine", variance="learned_range" if learned else "fixed_large")
    return save_checkpoint(Checkpoint(config, process, {"raw": weights}), folder / f"{name}.pt")


def assert_symmetric_int8(model: onnx.ModelProto) -> None:
    """TensorRT's parser asks for int8 with zero point 0 in every QuantizeLinear and DequantizeLinear."""
    stored = {value.name: value for value in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero_point = stored[node.input[2]]
            assert zero_point.data_type == onnx.TensorProto.INT8, node.name
            assert not onnx.numpy_helper.to_array(zero_point).any(), node.name
