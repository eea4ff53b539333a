"""Training on a GPU: bf16 and torch.compile agree with float32 on the CPU in what they learn."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flatq.train import TrainConfig, train


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("method", ["adm", "sam"])
def test_the_loss_falls_as_on_the_cpu(method: str, tmp_path: Path) -> None:
    losses = {}
    for device in ("cpu", "cuda"):
        on_cuda = device == "cuda"
        config = TrainConfig.model_validate(
            {
                "data": "digits",
                "size": 8,
                "method": method,
                "steps": 60,
                "batch_size": 64,
                "channels": (16, 32),
                "device": device,
                "precision": "bf16" if on_cuda else "fp32",
                "compile": on_cuda,
            }
        )
        checkpoint = train(config, tmp_path / device)
        losses[device] = checkpoint.provenance["final_loss"]
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=0.1)
