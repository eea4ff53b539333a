"""The training loop: from a configuration and a folder to a checkpoint. Nothing is evaluated here."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import torch

from flatq.checkpoint import Checkpoint, save_checkpoint
from flatq.errors import ModelError, UsageError
from flatq.files import replacing
from flatq.runtime.torch import torch_threads
from flatq.train.config import TrainConfig
from flatq.train.distributed import Workers, open_workers
from flatq.train.held_out import HeldOut, save_samples
from flatq.train.record import provenance
from flatq.train.state import STATE_FILE, read_state, write_state
from flatq.train.steps import Steps

__all__ = ["Trainer", "train"]

Progress = Callable[[int, float | None], None]

_CLOCK_EVERY = 10


def train(
    config: TrainConfig,
    run_folder: Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
) -> Checkpoint:
    """Trains a network and writes `ckpt.pt`, `train.json`, `state.pt` and snapshots into `run_folder`.

    At one seed ADM, IP and SAM start from the same weights and see the same images, flips and noise. They see
    the same timesteps if these are uniform; with the loss-second-moment sampler they don't, because it
    follows the losses. The same configuration gives the same weights, bit for
    bit, on the same machine with the same number of threads, also where the run was killed and resumed.
    torch's global generators and its thread count are left as they were found.

    The losses stay on the device until a point of the curve, a checkpoint or another look at the network is
    due: a loss that is not finite stops the run there, with the number of its step. Only the
    loss-second-moment sampler waits for the losses of each step.

    `train.json` holds the checkpoint's provenance and `curve`: for each 50 steps, the last step's number, the
    mean loss, and with SAM the mean loss at the perturbed weights; and `heldout_curve`, the held-out losses.
    `state.pt` is what a resumed run goes on from; it is there from the start. All three are replaced at each
    checkpoint.

    Args:
        config: the run.
        run_folder: made where it is missing.
        resume: goes on from `state.pt`; where there is none, begins.
        progress: called after each step with the number of steps done and, where a point of the curve is
            complete, its mean loss, else None.

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
        torch.random.fork_rng([workers.device] if workers.device.type == "cuda" else []),
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


class Trainer(Steps):
    """A run in progress. `train` is the way in; this is here for benchmarks.

    Args:
        config: the run.
        folder: where checkpoints go; nothing is written before the first.
        workers: the processes that share the batch.
    """

    def __init__(self, config: TrainConfig, folder: Path, workers: Workers) -> None:
        super().__init__(config, folder, workers)
        self.folder = folder
        self._heldout = (
            HeldOut(config, self.images.shape, workers.device) if config.heldout and workers.main else None
        )
        self._saved_at = time.monotonic()

    def begin(self) -> None:
        """Writes the state before the first step, so that a run can be resumed from the first moment."""
        state = self.state()
        if self.workers.main:
            write_state(state, self.folder)

    def forget_if_unsaved(self) -> None:
        """Takes away what `begin` wrote where no checkpoint followed."""
        if self.saved_step is None and self.workers.main:
            (self.folder / STATE_FILE).unlink(missing_ok=True)
            if self.folder.is_dir() and not any(self.folder.iterdir()):
                self.folder.rmdir()

    def run(self, progress: Progress | None = None) -> Checkpoint:
        """Trains to the end, with checkpoints on the way, and writes the last one."""
        while (reason := self._reason_to_stop()) is None:
            self.advance()
            if progress is not None:
                progress(self.step, self.curve.loss_at(self.step))
            snapshot = self.step in self.config.snapshot_steps
            if snapshot or self.step % self.config.heldout_every == 0:
                self._take_heldout_loss()
            if self._every(self.config.grid_every):
                self._save_grid()
            if snapshot:
                self._write(self._checkpoint(None), f"ckpt-step-{self.step:07}.pt")
            if self.step < self.config.steps and self._save_is_due():  # the end is saved anyway
                self._save(None)
        self._take_heldout_loss()
        return self._save(reason)

    def _every(self, steps: int | None) -> bool:
        return steps is not None and self.step % steps == 0

    def _reason_to_stop(self) -> str | None:
        config = self.config
        if self.step >= config.steps:
            return "steps"
        if config.stop_loss is not None and self.curve.heldout:
            last = self.curve.heldout[-1]
            if last["step"] == self.step and last[config.stop_weights] <= config.stop_loss:
                return "loss"
        if config.max_minutes is not None and self.step:
            return "time" if self._is_late(self.elapsed() >= 60 * config.max_minutes) else None
        return None

    def _is_late(self, late: bool) -> bool:
        """Whether the first process's clock says so; several processes ask it at every 10th step only."""
        if self.workers.count > 1 and self.step % _CLOCK_EVERY:
            return False
        return bool(self.workers.agree(late))

    def _save_grid(self) -> None:
        self.read_losses()
        if self.workers.main:
            path = self.folder / "grids" / f"step-{self.step:07}.png"
            save_samples(path, self.network, self.model, self.config.process, self.averages.ema)

    def _take_heldout_loss(self) -> None:
        """Adds this step's held-out loss, unless it is there, and writes `ckpt-loss.pt` where it is due."""
        config, points = self.config, self.curve.heldout
        if not config.heldout or (points and points[-1]["step"] == self.step):
            return
        self.read_losses()
        found: dict[str, float] = {}
        if self._heldout is not None:
            found = {"step": self.step, "raw": self._heldout.loss(self.network)}
            ema = self.averages.ema
            if ema is not None:
                found["ema"] = self._heldout.loss(self.network, ema)
            self.scalars.add(self.step, {f"heldout/{n}": v for n, v in found.items() if n != "step"})
        points.append(self.workers.agree(found))
        below = [p for p in points if p[config.stop_weights] <= (config.snapshot_loss or 0)]
        if below == points[-1:]:
            self._write(self._checkpoint(None), "ckpt-loss.pt")

    def _save_is_due(self) -> bool:
        minutes = self.config.save_minutes
        late = minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes
        return (minutes is not None and self._is_late(late)) or self._every(self.config.save_every)

    def _save(self, reason: str | None) -> Checkpoint:
        """Writes state, report and checkpoint, in this order, by the first process alone."""
        state = self.state()
        checkpoint = self._checkpoint(reason)
        if self.workers.main:
            write_state(state, self.folder)
            curves = {"curve": self.curve.points_until(self.step), "heldout_curve": self.curve.heldout}
            with replacing(self.folder / "train.json") as partial:
                content = json.dumps({**checkpoint.provenance, **curves}, indent=2)
                partial.write_text(content + "\n", encoding="utf-8")
        checkpoint = self._write(checkpoint, "ckpt.pt")
        self.workers.wait()
        self._saved_at = time.monotonic()
        return checkpoint

    def _write(self, checkpoint: Checkpoint, name: str) -> Checkpoint:
        self.saved_step = self.step
        return save_checkpoint(checkpoint, self.folder / name) if self.workers.main else checkpoint

    def _checkpoint(self, reason: str | None) -> Checkpoint:
        """The weights as they are, with copies of all averages.

        Raises:
            ModelError: a loss or a weight is not finite.
        """
        self.read_losses()
        raw = {name: value.detach().clone() for name, value in self.network.unet.state_dict().items()}
        weights = {"raw": raw, **self.averages.weights()}
        for average, values in weights.items():
            if not all(bool(value.isfinite().all()) for value in values.values()):
                raise self.diverged(f"NaN or infinity in the {average} weights", self.step)
        found = {
            "steps_done": self.step,
            "stopped_by": reason,
            "gradient_passes": self.passes,
            "swa_count": self.averages.swa.count,
            "final_loss": fmean(self.curve.last),
            "heldout_loss": {k: v for k, v in self.curve.heldout[-1].items() if k != "step"}
            if self.curve.heldout
            else None,
        }
        about = provenance(self.config, self.images, self.workers.count, found)
        return Checkpoint(self.model, self.config.process, weights, about)


def _check_folder(folder: Path, resume: bool) -> None:
    if resume:
        return
    for name, what in (("ckpt*.pt", "a trained checkpoint"), (STATE_FILE, "a run that was begun")):
        found = sorted(folder.glob(name))
        if found:
            raise UsageError(
                f"{folder} already holds {what}",
                expected=f"a folder without {name}",
                got=str(found[0]),
                next_step="choose another folder, resume this run with --resume, or delete it first",
            )
