"""Training of small diffusion UNets, plain (ADM) or with sharpness-aware minimization (SAM).

Configuration, objective, SAM, weight averages and the loop. What a checkpoint is on disk is
`flatq.checkpoint`'s; sampling and evaluation live elsewhere. Importing this package imports torch.
"""

from __future__ import annotations

from flatq.train.config import TrainConfig, model_config_for
from flatq.train.loop import train

__all__ = ["TrainConfig", "model_config_for", "train"]
