"""What the benchmarks share: a network with random weights, and ONNX Runtime's own quantization."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["UNET", "open_checkpoint", "quantize_static"]

UNET: dict[str, Any] = {
    "block_out_channels": [64, 128, 128],
    "layers_per_block": 2,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": 32,
    "norm_num_groups": 32,
    "attn_norm_num_groups": 32,
    "resnet_time_scale_shift": "scale_shift",
}
"""3 x 32 x 32, 7.3 million parameters."""


def open_checkpoint(path: Path | None, folder: Path, unet: dict[str, Any] = UNET) -> Any:
    """The checkpoint at a path, or else a network with random weights, saved in a folder."""
    import torch

    from flatq.checkpoint import Checkpoint, ModelConfig, load_checkpoint, save_checkpoint
    from flatq.network import build_network
    from flatq.process import ProcessConfig

    if path is not None:
        return load_checkpoint(path)
    config = ModelConfig(image_size=32, image_channels=3, out_channels=3, unet=unet)
    torch.manual_seed(0)
    state = build_network(config).unet.state_dict()
    for name, value in state.items():
        if "norm" in name:  # else all are 1 and 0, which an optimizer might use
            value += 0.1 * torch.randn_like(value)
    checkpoint = Checkpoint(config, ProcessConfig(schedule="cosine"), {"raw": state}, {"method": "none"})
    return save_checkpoint(checkpoint, folder / "ckpt.pt")


def quantize_static(source: Path, out: Path, calibration: Sequence[dict[str, Any]]) -> None:
    """With the settings nearest to w8a8: Q/DQ, weights int8 by channel, activations uint8.

    Its own preparation comes first: without it, it does not know the types behind a GroupNormalization. Of
    that the symbolic shape inference is left out, which does not know all of these operators.

    Args:
        calibration: inputs by name, a batch each.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType
    from onnxruntime.quantization import quantize_static as quantize
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = list(calibration)

        def get_next(self) -> Any:
            return self._left.pop(0) if self._left else None

    prepared = out.with_suffix(".prepared.onnx")
    quant_pre_process(source, prepared, skip_symbolic_shape=True)
    quantize(
        prepared,
        out,
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    prepared.unlink()
