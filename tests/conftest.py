"""Fixtures that several rooms' tests use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from flatq.checkpoint import Checkpoint
    from flatq.quantize.artifact import Artifact

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference material beside the checkout; the test is skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"no reference material: {SHARED} is absent")
    return SHARED


@pytest.fixture(scope="session")
def shared_data(shared: Path) -> Path:
    """The test vectors below `shared`; the test is skipped where they are absent."""
    data = shared / "data"
    if not data.is_dir():
        pytest.skip(f"no test vectors: {data} is absent")
    return data


def _tiny(folder: Path, **fields: Any) -> Checkpoint:
    import torch

    from flatq.checkpoint import Checkpoint, ModelConfig, save_checkpoint
    from flatq.network import build_network
    from flatq.process import ProcessConfig

    config = ModelConfig(
        image_size=16,
        image_channels=3,
        out_channels=3,
        unet={
            "block_out_channels": [16, 32],
            "layers_per_block": 1,
            "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
            "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
            "attention_head_dim": 8,
            "norm_num_groups": 8,
            "attn_norm_num_groups": 8,
        },
        **fields,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = build_network(config).unet.state_dict()
    checkpoint = Checkpoint(config, ProcessConfig(schedule="cosine"), {"raw": weights}, {"method": "none"})
    return save_checkpoint(checkpoint, folder / "tiny.pt")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A saved checkpoint of a small UNet with attention, random weights, 16 x 16 RGB."""
    return _tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """As `tiny`, for 5 classes and the null label 5."""
    return _tiny(tmp_path_factory.mktemp("labelled"), num_classes=6, null_label=5)


@pytest.fixture(scope="session")
def tiny_artifacts(tiny: Checkpoint) -> dict[str, Artifact]:
    """`tiny` quantized by the presets w8a8, w4a8 and w4a4."""
    from flatq.calib.inputs import CalibrationPlan
    from flatq.quantize.rounding import quantize_checkpoint
    from flatq.recipe import PRESETS

    calibration = CalibrationPlan(images=2, steps=2)
    return {
        name: quantize_checkpoint(tiny, PRESETS[name], calibration=calibration, threads=2)
        for name in ("w8a8", "w4a8", "w4a4")
    }
