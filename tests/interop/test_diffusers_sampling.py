"""Imported models sample what diffusers' own pipelines sample, on the same noise, and exported ones likewise.

diffusers keeps its tables in float32 and flatq in float64; on these models and up to 20 steps that moves
images in [0, 1] by up to 6e-6, so 5e-5 is the tolerance where they are to be equal.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers_models import make_scheduler, make_unet, write_pipeline
from numpy.typing import NDArray

from flatq.checkpoint import Checkpoint
from flatq.interop.diffusers import export_diffusers, import_diffusers
from flatq.noise import normal
from flatq.process import ProcessConfig
from flatq.runtime.torch import TorchRuntime
from flatq.sampler import sample
from flatq.sampling_settings import SamplingSettings

N, SEED, TOLERANCE = 3, 5, 5e-5


def _silent(text: str) -> None:
    pass


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _ours(checkpoint: Checkpoint, steps: int, **options: Any) -> NDArray[np.float32]:
    """Images mapped to [0, 1] as the pipelines do."""
    plan = SamplingSettings(steps=steps, seed=SEED, **options)
    with TorchRuntime(checkpoint.network(), threads=1) as runtime:
        images = sample(runtime, checkpoint.process, plan, range(N), checkpoint.model.image_shape)
    return np.clip(images / 2 + 0.5, 0, 1)


def _theirs(folder: Path, patch: pytest.MonkeyPatch, steps: int, **options: Any) -> NDArray[np.float32]:
    """The images of the pipeline in the folder, from flatq's noise."""
    pipeline: Any = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    config = pipeline.unet.config
    shape, draws = (config.in_channels, config.sample_size, config.sample_size), count()

    def draw(*_: Any, **__: Any) -> torch.Tensor:
        return torch.from_numpy(normal(SEED, range(N), next(draws), shape))

    for module in (
        "pipelines.ddpm.pipeline_ddpm",
        "pipelines.ddim.pipeline_ddim",
        "schedulers.scheduling_ddpm",
        "schedulers.scheduling_ddim",
    ):
        patch.setattr(f"diffusers.{module}.randn_tensor", draw)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(batch_size=N, num_inference_steps=steps, output_type="np", **options).images
    return np.asarray(images, dtype=np.float32).transpose(0, 3, 1, 2)


def _assert_pictures(images: NDArray[np.float32]) -> None:
    """Most pixels are not at the ends, where any two samplers would agree."""
    assert ((images > 0) & (images < 1)).mean() > 0.4


@pytest.mark.parametrize(
    ("options", "unet", "steps"),
    [
        ({"prediction_type": "epsilon", "variance_type": "fixed_large"}, {}, 20),
        ({"prediction_type": "epsilon", "variance_type": "learned_range"}, {"out_channels": 6}, 7),
        ({"prediction_type": "v_prediction", "beta_schedule": "squaredcos_cap_v2"}, {}, 20),
        (
            {"prediction_type": "sample", "timestep_spacing": "linspace", "variance_type": "fixed_small_log"},
            {"in_channels": 1, "out_channels": 1},
            7,
        ),
        ({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}, {}, 7),
        ({"beta_schedule": "sigmoid", "timestep_spacing": "trailing", "clip_sample_range": 0.8}, {}, 7),
        ({"trained_betas": np.linspace(1e-3, 0.05, 100), "num_train_timesteps": 100}, {}, 7),
        ({"prediction_type": "v_prediction", "steps_offset": 1, "clip_sample": False}, {}, 7),
    ],
    ids=["epsilon", "learned", "v", "sample", "scaled_linear", "sigmoid", "table", "unclipped"],
)
def test_ancestral_sampling_is_that_of_the_pipeline(
    options: dict[str, Any],
    unet: dict[str, Any],
    steps: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = write_pipeline(tmp_path / "model", make_unet(**unet), make_scheduler(**options))
    theirs = _theirs(folder, monkeypatch, steps)
    _assert_pictures(theirs)
    checkpoint = import_diffusers(str(folder), note=_silent)
    np.testing.assert_allclose(_ours(checkpoint, steps), theirs, atol=TOLERANCE)
    # out again as DDPMPipeline: the same images from both
    export_diffusers(checkpoint, tmp_path / "again", note=_silent)
    np.testing.assert_allclose(_theirs(tmp_path / "again", monkeypatch, steps), theirs, atol=TOLERANCE)


@pytest.mark.parametrize("eta", [0.0, 0.7])
@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"prediction_type": "epsilon", "beta_end": 0.002}, 7),
        ({"prediction_type": "v_prediction", "timestep_spacing": "trailing"}, 20),
        ({"prediction_type": "sample", "beta_schedule": "squaredcos_cap_v2", "steps_offset": 1}, 7),
    ],
    ids=["epsilon", "v", "sample"],
)
def test_ddim_is_that_of_the_pipeline_with_the_clipped_epsilon(
    options: dict[str, Any], steps: int, eta: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = make_scheduler("DDIMScheduler", **options)
    folder = write_pipeline(tmp_path / "model", make_unet(), scheduler, "DDIMPipeline")
    theirs = _theirs(folder, monkeypatch, steps, eta=eta, use_clipped_model_output=True)
    _assert_pictures(theirs)
    checkpoint = import_diffusers(str(folder), note=_silent)
    ours = _ours(checkpoint, steps, sampler="ddim", eta=eta)
    np.testing.assert_allclose(ours, theirs, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("kind", "options", "call", "said"),
    [
        ("DDPM", {"timestep_spacing": "trailing", "variance_type": "fixed_large"}, {}, "last step"),
        ("DDPM", {"steps_offset": 3, "variance_type": "fixed_large"}, {}, "last step"),
        ("DDIM", {"timestep_spacing": "linspace"}, {"use_clipped_model_output": True}, "T // N"),
        ("DDIM", {}, {}, "use_clipped_model_output"),
    ],
    ids=["trailing", "offset", "linspace", "clipped"],
)
def test_where_diffusers_samples_differently_it_is_said(
    kind: str,
    options: dict[str, Any],
    call: dict[str, Any],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scheduler = make_scheduler(f"{kind}Scheduler", **options)
    folder = write_pipeline(tmp_path / "model", make_unet(), scheduler, f"{kind}Pipeline")
    notes: list[str] = []
    checkpoint = import_diffusers(str(folder), note=notes.append)
    assert any(said in line for line in notes)
    theirs = _theirs(folder, monkeypatch, 7, **call)
    ours = _ours(checkpoint, 7, sampler="ddim" if kind == "DDIM" else "ancestral")
    assert np.abs(ours - theirs).max() > 20 * TOLERANCE


@pytest.mark.parametrize("steps", [7, 20])
@pytest.mark.parametrize(
    "process",
    [
        ProcessConfig(schedule="cosine"),
        ProcessConfig(schedule="linear", train_steps=500, prediction="v", variance="fixed_small"),
    ],
    ids=["cosine", "linear"],
)
def test_an_exported_checkpoint_samples_the_same_in_ddpm_pipeline(
    process: ProcessConfig, steps: int, tiny: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Checkpoint(tiny.model, process, tiny.weights)
    export_diffusers(checkpoint, tmp_path / "out", note=_silent)
    theirs = _theirs(tmp_path / "out", monkeypatch, steps)
    _assert_pictures(theirs)
    np.testing.assert_allclose(_ours(checkpoint, steps), theirs, atol=TOLERANCE)
