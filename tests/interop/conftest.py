"""Fixtures of the imports."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers_models import make_scheduler, make_unet, write_pipeline


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The networks are so small that more threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def unet_folder(tmp_path: Path) -> Path:
    make_unet().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def pipeline_folder(tmp_path: Path) -> Path:
    return write_pipeline(tmp_path / "model", make_unet(), make_scheduler())
