"""How large the parts of `benchmarks/gpu.py` are: on a GPU, and rehearsed on the CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["FULL", "REHEARSAL", "Settings"]


@dataclass(frozen=True)
class Settings:
    """The size of a run.

    Attributes:
        training: keys of `TrainConfig` that all trainings share.
        data: the file of training images in the folder above the results; None takes random ones.
        minutes: how long SAM trains.
        compile: also measures torch.compile, and trains with it.
        window_s: a throughput is the median of three windows of so many seconds.
        matmul: side of the square matrices whose product measures the bf16 peak.
        images: sampled on the device. cpu_images: of the same, sampled on ONNX Runtime.
        steps: of a sample. calibration_images: sampling trajectories.
    """

    training: dict[str, Any]
    data: str | None
    minutes: float
    compile: bool
    window_s: float
    matmul: int
    images: int
    cpu_images: int
    steps: int
    calibration_images: int


FULL = Settings(
    training={
        "channels": [96, 160, 192],
        "layers_per_block": 1,
        "attention": [16],
        "head_dim": 32,
        "resblock_updown": True,
        "zero_init": True,
        "variance": "learned_range",
        "flip": True,
        "batch_size": 256,
        "lr": 5e-4,
        "warmup": 300,
        "ema_decays": [0.999],
        "seed": 0,
        "device": "cuda",
    },
    data="cifar10-train.zip",
    minutes=3.0,
    compile=True,
    window_s=2.0,
    matmul=8192,
    images=512,
    cpu_images=64,
    steps=20,
    calibration_images=16,
)
"""10.8 million parameters: two weights variants of three runs in half precision are 124 MiB."""

REHEARSAL = Settings(
    training={
        "channels": [16, 32],
        "attention": [16],
        "variance": "learned_range",
        "batch_size": 4,
        "seed": 0,
        "device": "cpu",
        "threads": 1,
    },
    data=None,
    minutes=0.02,
    compile=False,
    window_s=0.05,
    matmul=64,
    images=4,
    cpu_images=2,
    steps=2,
    calibration_images=2,
)
