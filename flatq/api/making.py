"""`train`, `quantize` and `sensitivity`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from flatq.api.results import Quantized, checkpoint_of, path_of, silent
from flatq.checkpoint import Checkpoint, choose_weights
from flatq.files import check_free_folder, writing
from flatq.progress import Note, Progress
from flatq.quantize.settings import QuantizeSettings
from flatq.sensitivity.settings import SensitivitySettings

if TYPE_CHECKING:
    from flatq.sensitivity.result import Sensitivity
    from flatq.train.config import TrainConfig

__all__ = ["quantize", "sensitivity", "train"]


def train(
    config: TrainConfig,
    folder: str | Path,
    *,
    resume: bool = False,
    progress: Callable[[int, float | None], None] | None = None,
) -> Checkpoint:
    """Train a network and write `ckpt.pt`, `train.json` and `state.pt`; see `flatq.train.loop.train`.

    Args:
        resume: go on from `state.pt`; where there is none, begin.
        progress: called with the number of steps done and, now and then, the loss.

    Returns:
        The checkpoint as it was written; `source` is its path.
    """
    from flatq.train.loop import train as run

    return run(config, Path(folder), resume=resume, progress=progress)


def quantize(
    checkpoint: str | Path | Checkpoint,
    settings: QuantizeSettings = QuantizeSettings(),
    out: str | Path | None = None,
    *,
    progress: Progress | None = None,
    note: Note = silent,
) -> Quantized:
    """Quantize a checkpoint into an artifact that knows no target.

    Args:
        out: a new or empty folder; by default beside the checkpoint, such as `ckpt.w4a8`.

    Raises:
        UsageError: the folder exists, or the checkpoint does not hold the weights that were asked for.
        CheckpointError, ModelError: it cannot be read, traced or quantized.
    """
    if out is None:
        path = path_of(checkpoint)
        folder = path.with_name(f"{path.stem}.{settings.suffix}")
    else:
        folder = Path(out)
    check_free_folder(folder)

    from flatq.quantize.artifact import write_artifact
    from flatq.quantize.rounding import quantize_checkpoint

    loaded = checkpoint_of(checkpoint)
    chosen = choose_weights(loaded, settings.weights, note)
    note(settings.rounding.describe())
    artifact = quantize_checkpoint(
        loaded,
        settings.recipe,
        average=chosen,
        calibration=settings.calibration,
        threads=settings.threads,
        progress=progress,
        rounding=settings.rounding,
    )
    return Quantized(folder, write_artifact(artifact, folder))


def sensitivity(
    checkpoint: str | Path | Checkpoint,
    settings: SensitivitySettings = SensitivitySettings(),
    out: str | Path | None = None,
    *,
    progress: Progress | None = None,
    note: Note = silent,
) -> Sensitivity:
    """Measure how much quantizing each layer alone harms the prediction and the final image.

    Args:
        out: folder for `sensitivity.json`, `sensitivity.md` and `sensitivity.svg`; None writes nothing.

    Raises:
        UsageError: settings that cannot be measured, or a checkpoint without the weights asked for.
        CheckpointError, ModelError: it cannot be read, traced or quantized.
        DataError: a file cannot be written.
    """
    from flatq.sensitivity.measure import measure_sensitivity
    from flatq.sensitivity.tables import save_plot, to_markdown

    loaded = checkpoint_of(checkpoint)
    chosen = choose_weights(loaded, settings.quantize.weights, note)
    found = measure_sensitivity(loaded, settings, variant=chosen, progress=progress)
    if out is not None:
        file = Path(out) / "sensitivity"
        for suffix, text in ((".json", found.model_dump_json(indent=1) + "\n"), (".md", to_markdown(found))):
            with writing(file.with_suffix(suffix)) as partial:
                partial.write_text(text, encoding="utf-8")
        with writing(file.with_suffix(".svg")) as partial:
            save_plot(found, partial)
    return found
