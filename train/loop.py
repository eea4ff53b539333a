"""The training loop: from a configuration and a folder to a checkpoint. CPU; nothing is evaluated here."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from flatq import __version__
from flatq.checkpoint import Checkpoint, save_checkpoint
from flatq.errors import ModelError, UsageError
from flatq.images import ImageSet, Resize, load_images, to_float
from flatq.network import build_network
from flatq.process import ProcessConfig
from flatq.train.averages import Ema
from flatq.train.config import TrainConfig, model_config_for
from flatq.train.objective import noise_prediction_loss
from flatq.train.sam import sam_gradients

__all__ = ["train"]

_CURVE_EVERY = 50


def train(
    config: TrainConfig, run_folder: Path, *, progress: Callable[[int, float], None] | None = None
) -> Checkpoint:
    """Trains a network and writes `ckpt.pt` (raw and ema weights) and `train.json` into `run_folder`.

    Batches, timesteps and noise come from a generator of their own, so that ADM and SAM see the same ones at
    the same seed. The same configuration gives the same weights, bit for bit, on the same machine with the
    same number of threads. torch's global generators and its thread count are left as they were found.

    `train.json` holds the checkpoint's provenance and `curve`: for each 50 steps, the last step's number, the
    mean loss, and with SAM the mean loss at the perturbed weights.

    Args:
        config: the run.
        run_folder: made where it is missing.
        progress: called after each step with the number of steps done and the loss, with SAM that at the
            unperturbed weights.

    Returns:
        The checkpoint as it was written.

    Raises:
        UsageError: `run_folder` already holds a checkpoint, or the network does not fit the images.
        DataError: the images cannot be read.
        ModelError: the loss or the weights are no longer finite; nothing is written.
    """
    path = run_folder / "ckpt.pt"
    if path.exists():
        raise UsageError(
            f"{run_folder} already holds a trained checkpoint",
            expected="a folder without ckpt.pt",
            got=str(path),
            next_step="choose another folder, or delete this run first",
        )
    resize: Resize | None = None if config.size is None else "center-crop-adm"
    images = load_images(config.data, size=config.size, resize=resize, limit=config.limit)
    model = model_config_for(config, images.shape)
    process = ProcessConfig(schedule=config.schedule, train_steps=config.train_steps)
    alphas_cumprod = torch.from_numpy(np.cumprod(1 - process.training_betas()))

    with _threads(config.threads), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        network = build_network(model).train()
        parameters = list(network.parameters())
        optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay)
        ema = Ema(network.unet, config.ema_decay)
        losses: list[float] = []
        sharp_losses: list[float] = []
        for step, (x0, t, noise) in enumerate(_batches(config, images), start=1):
            closure = partial(noise_prediction_loss, network, x0, t, noise, alphas_cumprod)
            if config.method == "sam":
                loss, sharp_loss = sam_gradients(parameters, closure, config.rho)
                sharp_losses.append(sharp_loss)
            else:
                optimizer.zero_grad(set_to_none=True)
                value = closure()
                value.backward()  # type: ignore[no-untyped-call]
                loss = sharp_loss = float(value.detach())
            losses.append(loss)
            if not (np.isfinite(loss) and np.isfinite(sharp_loss)):
                raise _diverged(config, f"loss {loss}, at the perturbed weights {sharp_loss}", step)
            if config.clip_grad is not None:
                torch.nn.utils.clip_grad_norm_(parameters, config.clip_grad)
            optimizer.step()
            ema.update()
            if progress is not None:
                progress(step, loss)
        weights = {
            "raw": {name: value.detach().clone() for name, value in network.unet.state_dict().items()},
            "ema": ema.state_dict(),
        }
    for average, state in weights.items():
        if not all(bool(value.isfinite().all()) for value in state.values()):
            raise _diverged(config, f"NaN or infinity in the {average} weights", config.steps)

    provenance = _provenance(config, images, fmean(losses[-_CURVE_EVERY:]))
    _write_json(run_folder / "train.json", {**provenance, "curve": _curve(losses, sharp_losses)})
    return save_checkpoint(Checkpoint(model, process, weights, provenance), path)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        if count is not None:
            torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)


def _batches(
    config: TrainConfig, images: ImageSet
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """`config.steps` times x0 float32 [N, C, H, W], t int64 [N], noise like x0.

    The images are taken in a new random order in each pass; a batch may span passes.
    """
    generator = torch.Generator().manual_seed(config.seed)
    pixels = torch.from_numpy(to_float(images.pixels))
    size = config.batch_size
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(config.steps):
        while len(order) < size:
            order = torch.cat([order, torch.randperm(len(pixels), generator=generator)])
        x0, order = pixels[order[:size]], order[size:]
        if config.flip:
            mirrored = torch.rand(size, 1, 1, 1, generator=generator) < 0.5
            x0 = torch.where(mirrored, x0.flip(3), x0)
        t = torch.randint(config.train_steps, (size,), generator=generator)
        yield x0, t, torch.randn(x0.shape, generator=generator)


def _diverged(config: TrainConfig, got: str, step: int) -> ModelError:
    sam = config.method == "sam"
    return ModelError(
        f"the training diverged by step {step}; nothing was written",
        expected="finite losses and weights",
        got=got,
        next_step=f"lower lr ({config.lr:g})" + (f" or rho ({config.rho:g})" if sam else ""),
    )


def _provenance(config: TrainConfig, images: ImageSet, final_loss: float) -> dict[str, Any]:
    """Plain values. No times in here: the same run gives the same file."""
    import diffusers

    return {
        **config.model_dump(mode="json"),
        "rho": config.rho if config.method == "sam" else None,
        "data_name": images.name,
        "data_digest": images.digest,
        "data_count": len(images.pixels),
        "final_loss": final_loss,
        "versions": {
            "flatq": __version__,
            "torch": str(torch.__version__),
            "diffusers": str(diffusers.__version__),
        },
    }


def _curve(losses: list[float], sharp_losses: list[float]) -> list[dict[str, float]]:
    points = []
    for start in range(0, len(losses), _CURVE_EVERY):
        part = losses[start : start + _CURVE_EVERY]
        point = {"step": start + len(part), "loss": fmean(part)}
        if sharp_losses:
            point["sharp_loss"] = fmean(sharp_losses[start : start + _CURVE_EVERY])
        points.append(point)
    return points


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial_path = path.with_name(f".{path.name}.partial")
    try:
        partial_path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        os.replace(partial_path, path)  # noqa: PTH105 (the house rule names os.replace)
    finally:
        partial_path.unlink(missing_ok=True)
