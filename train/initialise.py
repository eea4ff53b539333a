"""Weights to start from that the network's own constructors do not give."""

from __future__ import annotations

from typing import Any

import torch

from flatq.network import Denoiser

__all__ = ["zero_outputs"]


@torch.no_grad()
def zero_outputs(network: Denoiser) -> None:
    """Sets to zero what guided-diffusion starts at zero (`zero_module`).

    That is the last convolution of each residual block, the output of each attention, and the last
    convolution: so each block starts as its shortcut, and the network predicts zero.
    """
    unet: Any = network.unet
    outputs = [unet.conv_out]
    for module in unet.modules():
        kind = type(module).__name__
        if kind == "ResnetBlock2D":
            outputs.append(module.conv2)
        elif kind == "Attention":
            outputs.append(module.to_out[0])
    for output in outputs:
        for parameter in output.parameters():
            parameter.zero_()
