"""Samples and their features in the cache folder, kept by content, a file for each batch.

So another gate, another reference or more images never sample what is there, and an evaluation that was
interrupted goes on where it stopped. The reference's features are `flatq.evaluate.cache`'s.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flatq import __version__
from flatq.errors import DataError
from flatq.evaluate.cache import Note
from flatq.evaluate.extractor import Extractor
from flatq.evaluate.moments import F64
from flatq.evaluate.reference import write_npz
from flatq.models import Model
from flatq.noise import NOISE_VERSION
from flatq.runtime.cpu import instruction_set
from flatq.sampler import SamplePlan

__all__ = ["Batch", "SampleCache", "sample_key"]

_VERSION = 1
_RESOLVED = {"path", "runtime", "weights"}
"""Fields of an `Opening` that the key holds as they turned out: the model's digest, its runtime's identity
with every default filled in, and its weights."""


@dataclass(frozen=True, eq=False)
class Batch:
    """images float32 [k, C, H, W]; features f64 [k, d], None where an image is not finite. seconds: wall time
    of both. calls: of each evaluation of the network, where the batch was a full one."""

    images: NDArray[np.float32]
    features: F64 | None
    seconds: float
    calls: F64


def sample_key(
    model: Model,
    plan: SamplePlan,
    extractor: Extractor,
    *,
    first: int,
    batch_size: int,
    rounding: str,
    threads: int,
) -> dict[str, Any]:
    """Whatever changes images or features, in plain values.

    The batch size is among it, as kernels may sum in another order, and `first`, which the batches start at.
    Of the opening every field is, but for those that `_RESOLVED` names.

    Args:
        threads: of the extractor; the runtime's are in its identity.
    """
    return {
        "version": _VERSION,
        "model": model.digest,
        "weights": model.weights,
        "precision": model.precision,
        "runtime": model.runtime.identity,
        "opening": {name: value for name, value in vars(model.opening).items() if name not in _RESOLVED},
        "machine": instruction_set(),
        "flatq": __version__,
        "numpy": np.__version__,
        "noise": NOISE_VERSION,
        "process": model.process.model_dump(mode="json"),
        "classes": None if model.classes is None else model.classes.model_dump(mode="json"),
        "shape": list(model.image_shape),
        "plan": plan.model_dump(mode="json"),
        "first": first,
        "batch_size": batch_size,
        "rounding": rounding,
        "extractor": extractor.digest,
        "extractor_identity": extractor.identity(threads),
    }


@dataclass(frozen=True)
class SampleCache:
    """folder: the files lie in samples/ below it. note: told of damaged files and of a folder that cannot be
    written; neither is an error."""

    folder: Path
    note: Note

    def path(self, key: dict[str, Any], begin: int, stop: int) -> Path:
        digest = hashlib.sha256(_text(key).encode()).hexdigest()[:40]
        return self.folder / "samples" / digest / f"{begin}-{stop}.npz"

    def load(self, key: dict[str, Any], begin: int, stop: int, dim: int) -> Batch | None:
        """The images first + begin to first + stop - 1; None where there are none that can be used."""
        path = self.path(key, begin, stop)
        if not path.exists():
            return None
        try:
            with path.open("rb") as stream:
                archive = np.load(stream, allow_pickle=False)
                if str(archive["key"]) != _text(key) or int(archive["begin"]) != begin:
                    raise ValueError("it belongs to other samples")
                images = archive["images"]
                features = archive["features"].astype(np.float64) if "features" in archive.files else None
                seconds, calls = float(archive["seconds"]), archive["calls"]
            wanted = (stop - begin, *key["shape"])
            if images.shape != wanted or images.dtype != np.float32 or calls.ndim != 1:
                raise ValueError("it has another shape")
            if (features is not None) != bool(np.isfinite(images).all()):
                raise ValueError("its features do not go with its images")
            if features is not None and (
                features.shape != (stop - begin, dim) or not np.isfinite(features).all()
            ):
                raise ValueError("its features have another shape, or are not finite")
        except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
            self.note(
                f"the cached samples {path} are damaged and drawn again ({' '.join(str(error).split())})"
            )
            return None
        return Batch(images, features, seconds, calls)

    def store(self, key: dict[str, Any], begin: int, batch: Batch) -> None:
        """Writes a batch atomically; features in float32 where that loses nothing."""
        entry: dict[str, Any] = {
            "key": np.array(_text(key)),
            "begin": np.int64(begin),
            "images": batch.images,
            "seconds": np.float64(batch.seconds),
            "calls": batch.calls,
        }
        if batch.features is not None:
            single = batch.features.astype(np.float32)
            entry["features"] = single if np.array_equal(single, batch.features) else batch.features
        try:
            write_npz(self.path(key, begin, begin + len(batch.images)), entry)
        except DataError as error:
            self.note(f"samples were not cached: {error.what}: {error.got}")


def _text(key: dict[str, Any]) -> str:
    return json.dumps(key, sort_keys=True, default=str)
