"""Training of diffusion UNets: plain (ADM), with input perturbation (IP), or sharpness-aware (SAM).

Configuration and presets, objective, SAM, weight averages, the loop and its state. What a checkpoint is on
disk is `flatq.checkpoint`'s; quantization and evaluation live elsewhere. Importing this imports torch.
"""

from __future__ import annotations

from flatq.callable_package import make_callable
from flatq.train.config import TrainConfig, model_config_for
from flatq.train.loop import train

__all__ = ["TrainConfig", "model_config_for", "train"]

make_callable(__name__)
