"""The inputs of a denoiser, `(x, t, **conditions) -> prediction`: their names, dtypes and shapes. No torch.

The first is the noised image, the second the timestep, and the others are conditions. Trace, calibration,
export, runtimes and the manifest read these specs, so that a new condition is a new entry and no new case.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

__all__ = ["PLAIN_INPUTS", "Condition", "InputSpec", "zeros"]

Condition: TypeAlias = Mapping[str, NDArray[Any]]
"""What a network is given beside x and t, by input name, [N, ...] each."""


class InputSpec(BaseModel):
    """One input of a denoiser.

    Attributes:
        name: its name in an exported model.
        dtype: of its tensor; t may be either.
        shape: of one sample, without the batch: [C, H, W] of x, [] of t; None for any size.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    dtype: Literal["float32", "int64"]
    shape: tuple[int | None, ...]


PLAIN_INPUTS = (
    InputSpec(name="x", dtype="float32", shape=(None, None, None)),
    InputSpec(name="t", dtype="int64", shape=()),
)
"""Images of any size and a timestep."""


def zeros(inputs: Sequence[InputSpec], n: int) -> tuple[NDArray[Any], NDArray[Any], dict[str, NDArray[Any]]]:
    """A batch of zeros: x, t and the conditions by name; 1 for any size."""
    values = {spec.name: np.zeros((n, *(size or 1 for size in spec.shape)), spec.dtype) for spec in inputs}
    x, t, *conditions = values
    return values[x], values[t], {name: values[name] for name in conditions}
