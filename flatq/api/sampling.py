"""`load` and `sample`."""

from __future__ import annotations

import numpy as np

from flatq.api.results import Samples, Saved, path_of
from flatq.backends import RuntimeSettings
from flatq.errors import ModelError
from flatq.models import Model, open_model
from flatq.progress import Progress
from flatq.sampler import sample as draw
from flatq.sampling_settings import SamplingSettings

__all__ = ["load", "sample"]


def load(
    model: Saved,
    *,
    weights: str | None = None,
    runtime: RuntimeSettings = RuntimeSettings(),
) -> Model:
    """Open a checkpoint, an artifact or a deployment folder to sample from; a context manager that closes it.

    Args:
        weights: raw, ema or swa of a checkpoint; ema if there, else raw, by default.
        runtime: how it runs. An artifact must have been exported for that runtime.

    Raises:
        InputError: a path, an option or a combination that does not fit.
        MissingRuntimeError: the runtime or the device is not there.
    """
    return open_model(path_of(model), runtime, weights=weights)


def sample(
    model: Model | Saved,
    n: int,
    settings: SamplingSettings = SamplingSettings(),
    *,
    first: int = 0,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> Samples:
    """Sample n >= 1 images; the same index gives the same noise whatever the batch size or the runtime.

    Args:
        model: as `load` opens it; anything else is opened for this call with the defaults.
        first: index of the first image.

    Raises:
        UsageError: labels and guidance that the model does not take.
        ModelError: the samples are not finite.
    """
    if not isinstance(model, Model):
        with load(model) as opened:
            return sample(opened, n, settings, first=first, batch_size=batch_size, progress=progress)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress("sampling", done, n * settings.evaluations)

    images = draw(
        model.runtime,
        model.process,
        settings,
        range(first, first + n),
        model.image_shape,
        classes=model.classes,
        batch_size=batch_size,
        progress=advance,
    )
    if not np.isfinite(images).all():
        raise ModelError(
            f"{model.name} samples values that are not finite",
            expected="finite images",
            got="NaN or infinity",
            next_step="check the weights; quantize from another checkpoint",
        )
    return Samples(images, settings, first)
