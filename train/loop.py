"""The training loop: from a configuration and a folder to a checkpoint. Nothing is evaluated here."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from flatq.checkpoint import Checkpoint, save_checkpoint
from flatq.errors import ModelError, UsageError
from flatq.network import build_network
from flatq.runtime.torch import torch_threads
from flatq.train.averages import Averages
from flatq.train.batches import Batch, Batches, read_images
from flatq.train.config import TrainConfig, model_config_for
from flatq.train.distributed import Workers, open_workers
from flatq.train.initialise import zero_outputs
from flatq.train.objective import Objective
from flatq.train.record import Curve, Scalars, provenance, write_json
from flatq.train.sam import sam_gradients
from flatq.train.state import STATE_FILE, check_agreement, read_state, write_state
from flatq.train.timesteps import timestep_sampler
from flatq.train.watch import HeldOut, save_samples

__all__ = ["Trainer", "train"]

Progress = Callable[[int, float], None]


def train(
    config: TrainConfig,
    run_folder: Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
) -> Checkpoint:
    """Trains a network and writes `ckpt.pt`, `train.json` and `state.pt` into `run_folder`.

    Batches, timesteps and noise come from generators of their own, so that ADM, IP and SAM see the same ones
    at the same seed. The same configuration gives the same weights, bit for bit, on the same machine with the
    same number of threads, also where the run was killed and resumed. torch's global generators and its
    thread count are left as they were found.

    `train.json` holds the checkpoint's provenance and `curve`: for each 50 steps, the last step's number, the
    mean loss, and with SAM the mean loss at the perturbed weights; and `heldout_curve`, the held-out losses.
    `state.pt` is what a resumed run goes on from; it is there from the start. All three are replaced at each
    checkpoint.

    Args:
        config: the run.
        run_folder: made where it is missing.
        resume: goes on from `state.pt`; where there is none, begins.
        progress: called after each step with the number of steps done and the loss, with SAM that at the
            unperturbed weights.

    Returns:
        The checkpoint as it was written.

    Raises:
        UsageError: `run_folder` already holds a run that is not to be resumed, or another one; the network
            does not fit the images; the processes do not divide the batch.
        DataError: the images cannot be read.
        CheckpointError: the state is damaged.
        MissingRuntimeError: a package that an option needs is not installed.
        ModelError: the loss or the weights are no longer finite; no checkpoint is written of that, and
            nothing is left where there was none before.
    """
    _check_folder(run_folder, resume)
    with (
        open_workers(config.device) as workers,
        torch_threads(config.threads),
        _own_randomness(workers.device),
    ):
        trainer = Trainer(config, run_folder, workers)
        if resume and (run_folder / STATE_FILE).exists():
            trainer.load_state(read_state(run_folder))
        else:
            trainer.begin()
        try:
            return trainer.run(progress)
        except ModelError:
            trainer.forget_if_unsaved()
            raise
        finally:
            trainer.scalars.close()


class Trainer:
    """A run in progress. `train` is the way in; this is here for benchmarks.

    Args:
        config: the run.
        folder: where checkpoints go; nothing is written before the first.
        workers: the processes that share the batch.
    """

    def __init__(self, config: TrainConfig, folder: Path, workers: Workers) -> None:
        if config.batch_size % workers.count:
            raise UsageError(
                "the processes do not divide the batch",
                expected=f"a batch size divisible by {workers.count}",
                got=str(config.batch_size),
                next_step="choose another --batch-size; it counts the images of all processes",
            )
        self.config, self.folder, self.workers = config, folder, workers
        self.images = read_images(config)
        labels = config.label_count(self.images.labels)
        self.model = model_config_for(config, self.images.shape, labels)
        torch.default_generator.manual_seed(config.seed)
        if workers.device.type == "cuda":
            torch.cuda.manual_seed(config.seed + workers.rank)
        network = build_network(self.model)
        if config.zero_init:
            zero_outputs(network)
        self.network = network.train().to(workers.device)
        if workers.rank:
            torch.default_generator.manual_seed(
                config.seed + workers.rank
            )  # each process has its own dropout
        self._wrapped = workers.wrap(self.network)
        self._called: Callable[..., torch.Tensor] = (
            torch.compile(self._wrapped) if config.compile else self._wrapped
        )
        self._unsynchronised = workers.unsynchronised(self._wrapped)
        self.parameters = list(self.network.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=config.lr, weight_decay=config.weight_decay)
        self.averages = Averages(self.network.unet, config)
        self.objective = Objective(config.process, workers.device)
        self.timesteps = timestep_sampler(config.timesteps, config.train_steps)
        self.batches = Batches(
            self.images.pixels,
            config,
            self.images.labels if config.labels else None,
            self.model.null_label,
        )
        self.curve = Curve()
        self.scalars = Scalars(folder, config.tensorboard and workers.main)
        self._heldout = (
            HeldOut(config, self.images.shape, workers.device) if config.heldout and workers.main else None
        )
        self.step = 0
        self.passes = 0
        self._began = self._saved_at = time.monotonic()
        self._saved_step: int | None = None

    def begin(self) -> None:
        """Writes the state before the first step, so that a run can be resumed from the first moment."""
        state = self.state()
        if self.workers.main:
            write_state(state, self.folder)

    def forget_if_unsaved(self) -> None:
        """Takes away what `begin` wrote where no checkpoint followed."""
        if self._saved_step is None and self.workers.main:
            (self.folder / STATE_FILE).unlink(missing_ok=True)
            if self.folder.is_dir() and not any(self.folder.iterdir()):
                self.folder.rmdir()

    def run(self, progress: Progress | None = None) -> Checkpoint:
        """Trains to the end, with checkpoints on the way, and writes the last one."""
        while (reason := self._reason_to_stop()) is None:
            loss = self.advance()
            if progress is not None:
                progress(self.step, loss)
            self._look()
            self._save_where_due()
        if not self.curve.heldout or self.curve.heldout[-1]["step"] != self.step:
            self._take_heldout_loss()
        return self._save(reason)

    def advance(self) -> float:
        """One optimizer step; gives the mean loss of the joint batch at the unperturbed weights."""
        config, step = self.config, self.step + 1
        joint = self.batches.draw(self.timesteps)
        batch = joint.part(self.workers.rank, self.workers.count, self.workers.device)
        seen: list[torch.Tensor] = []

        def closure() -> torch.Tensor:
            losses = self._losses(batch)
            seen.append(losses.detach())
            return (losses * batch.weight).mean()

        if config.method == "sam" and (step - 1) % config.sam_every == 0:
            sam_gradients(self.parameters, closure, config.rho, unsynchronised=self._unsynchronised)
        else:
            self.optimizer.zero_grad(set_to_none=True)
            closure().backward()  # type: ignore[no-untyped-call]
        per_image = [self.workers.gather(losses).cpu() for losses in seen]
        means = [float((losses * joint.weight).mean()) for losses in per_image]
        loss, sharp_loss = means[0], means[-1]
        if not (math.isfinite(loss) and math.isfinite(sharp_loss)):
            raise self._diverged(f"loss {loss}, at the perturbed weights {sharp_loss}", step)
        self.timesteps.update(joint.t, per_image[0])
        rate = config.lr * min(1.0, step / config.warmup) if config.warmup else config.lr
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if config.clip_grad is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, config.clip_grad)
        self.optimizer.step()
        self.averages.update(step, pass_ended=self.batches.pass_ended)
        self.step, self.passes = step, self.passes + len(seen)
        point = self.curve.add(step, loss, sharp_loss if len(seen) > 1 else None)
        if point is not None:
            values = {**point, "learning_rate": rate, "images_per_second": self._images_per_second()}
            del values["step"]
            self.scalars.add(step, {f"train/{name}": value for name, value in values.items()})
        return loss

    def _losses(self, batch: Batch) -> torch.Tensor:
        """float32 [N] at the present weights."""

        def called(*inputs: torch.Tensor) -> torch.Tensor:
            bf16 = self.config.precision == "bf16"
            with torch.autocast(self.workers.device.type, torch.bfloat16, enabled=bf16):
                return self._called(*inputs)

        return self.objective(called, batch.x0, batch.t, batch.noise, batch.shift, batch.label).total

    def _reason_to_stop(self) -> str | None:
        config = self.config
        if self.step >= config.steps:
            return "steps"
        if config.stop_loss is not None and self.curve.heldout:
            last = self.curve.heldout[-1]
            if last["step"] == self.step and last[config.stop_weights] <= config.stop_loss:
                return "loss"
        if config.max_minutes is not None and self.step:
            over = self.workers.agree(self._elapsed() >= 60 * config.max_minutes)
            return "time" if over else None
        return None

    def _elapsed(self) -> float:
        """Seconds in training, all sessions of the run."""
        return time.monotonic() - self._began

    def _images_per_second(self) -> float:
        return self.step * self.config.batch_size / max(self._elapsed(), 1e-9)

    def _look(self) -> None:
        """Held-out loss and sample grid, where they are due."""
        config = self.config
        if config.heldout and self.step % config.heldout_every == 0:
            self._take_heldout_loss()
        if config.grid_every is not None and self.step % config.grid_every == 0 and self.workers.main:
            save_samples(
                self.folder / "grids" / f"step-{self.step:07}.png",
                self.network,
                self.model,
                config.process,
                self.averages.view("ema"),
            )

    def _take_heldout_loss(self) -> None:
        if not self.config.heldout:
            return
        found: dict[str, float] = {}
        if self._heldout is not None:
            found = {"step": self.step, "raw": self._heldout.loss(self.network)}
            ema = self.averages.view("ema")
            if ema is not None:
                found["ema"] = self._heldout.loss(self.network, ema)
            self.scalars.add(self.step, {f"heldout/{n}": v for n, v in found.items() if n != "step"})
        self.curve.heldout.append(self.workers.agree(found))

    def _save_where_due(self) -> None:
        config, due = self.config, False
        if self.step >= config.steps:
            return  # the end is saved anyway
        if config.save_every is not None:
            due = self.step % config.save_every == 0
        if config.save_minutes is not None:
            late = time.monotonic() - self._saved_at >= 60 * config.save_minutes
            due = self.workers.agree(late) or due
        if due:
            self._save(None)

    def _save(self, reason: str | None) -> Checkpoint:
        """Writes state, report and checkpoint, in this order, by the first process alone."""
        raw = {name: value.detach().clone() for name, value in self.network.unet.state_dict().items()}
        weights = {"raw": raw, **self.averages.weights()}
        for average, values in weights.items():
            if not all(bool(value.isfinite().all()) for value in values.values()):
                raise self._diverged(f"NaN or infinity in the {average} weights", self.step)
        found = {
            "steps_done": self.step,
            "stopped_by": reason,
            "gradient_passes": self.passes,
            "swa_count": self.averages.swa_count,
            "final_loss": self.curve.final_loss,
            "heldout_loss": {k: v for k, v in self.curve.heldout[-1].items() if k != "step"}
            if self.curve.heldout
            else None,
        }
        about = provenance(self.config, self.images, self.workers.count, found)
        checkpoint = Checkpoint(self.model, self.config.process, weights, about)
        state = self.state()
        if self.workers.main:
            write_state(state, self.folder)
            points = self.curve.points(self.step)
            write_json(
                self.folder / "train.json", {**about, "curve": points, "heldout_curve": self.curve.heldout}
            )
            checkpoint = save_checkpoint(checkpoint, self.folder / "ckpt.pt")
        self.workers.wait()
        self._saved_at, self._saved_step = time.monotonic(), self.step
        return checkpoint

    def state(self) -> dict[str, Any]:
        """All that decides how the run goes on; shares its memory. Every process has to take part."""
        rng = {"cpu": torch.get_rng_state(), "cuda": None}
        if self.workers.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(self.workers.device)
        return {
            "config": self.config.model_dump(mode="json"),
            "data_digest": self.images.digest,
            "step": self.step,
            "passes": self.passes,
            "elapsed_s": self._elapsed(),
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "averages": self.averages.state_dict(),
            "timesteps": self.timesteps.state_dict(),
            "batches": self.batches.state_dict(),
            "curve": self.curve.state_dict(),
            "rng": self.workers.gather_objects(rng),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Goes back to where `state` was taken.

        Raises:
            UsageError: it is another run's.
        """
        check_agreement(state, self.config, self.images.digest, self.workers.count)
        self.network.load_state_dict(state["network"], strict=True)
        self.optimizer.load_state_dict(state["optimizer"])
        for part in ("averages", "timesteps", "batches", "curve"):
            getattr(self, part).load_state_dict(state[part])
        self.step, self.passes = int(state["step"]), int(state["passes"])
        self._began = time.monotonic() - float(state["elapsed_s"])
        self._saved_step = self.step or None
        rng = state["rng"][self.workers.rank]
        torch.set_rng_state(rng["cpu"])
        if self.workers.device.type == "cuda" and rng["cuda"] is not None:
            torch.cuda.set_rng_state(rng["cuda"], self.workers.device)

    def _diverged(self, got: str, step: int) -> ModelError:
        config = self.config
        saved = self._saved_step
        kept = "nothing was written" if saved is None else f"step {saved} is the last saved"
        radius = f" or rho ({config.rho:g})" if config.method == "sam" else ""
        return ModelError(
            f"the training diverged by step {step}; {kept}",
            expected="finite losses and weights",
            got=got,
            next_step=f"lower lr ({config.lr:g}){radius}",
        )


def _check_folder(folder: Path, resume: bool) -> None:
    if resume:
        return
    for name, what in (("ckpt.pt", "a trained checkpoint"), (STATE_FILE, "a run that was begun")):
        if (folder / name).exists():
            raise UsageError(
                f"{folder} already holds {what}",
                expected=f"a folder without {name}",
                got=str(folder / name),
                next_step="choose another folder, resume this run with --resume, or delete it first",
            )


@contextmanager
def _own_randomness(device: torch.device) -> Iterator[None]:
    """torch's global generators come back as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
