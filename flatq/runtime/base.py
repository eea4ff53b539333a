"""What every backend offers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from flatq.errors import ArtifactError, InputError, ModelError
from flatq.failures import shortage

__all__ = [
    "UNCONDITIONED",
    "Condition",
    "Precision",
    "Runtime",
    "check_input_names",
    "check_inputs",
    "default_threads",
    "failed_run",
]

Precision = Literal["fp32", "fp16", "bf16"]
"""What the layers that are not integers compute in."""

Condition = Mapping[str, NDArray[np.int64]]
"""What else the network is told, by input name: `label` int64 [N] for a network with classes."""

UNCONDITIONED: Condition = MappingProxyType({})


class Runtime(Protocol):
    """A model that is ready to run.

    Two runs give the same numbers only at equal identity (and on the same machine).
    """

    @property
    def identity(self) -> dict[str, Any]:
        """Backend, version, device, threads and precision: whatever moves the numbers."""
        ...

    def __call__(
        self, x: NDArray[np.float32], t: NDArray[np.int64], cond: Condition = UNCONDITIONED
    ) -> NDArray[np.float32]:
        """Model output for noised images x [N, C, H, W] at training timesteps t [N].

        Raises:
            ModelError: an input that `check_inputs` refuses, or the backend fails on them.
        """
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def check_inputs(
    x: NDArray[np.float32],
    t: NDArray[np.int64],
    cond: Condition,
    conditions: tuple[str, ...],
    image_shape: tuple[int, ...] | None = None,
) -> None:
    """Refuse what is not an input of the model, before a backend makes something of it.

    Integer kernels turn NaN into an ordinary number, and some backends take a batch of zero.

    Args:
        conditions: names of the model's further inputs.
        image_shape: [C, H, W] where the backend knows it.

    Raises:
        ModelError: a dtype, a shape, an empty batch, a value of x that is not finite, a condition that is
            missing or left over.
    """
    if set(cond) != set(conditions):
        raise ModelError(
            "the model's conditions do not fit",
            expected=", ".join(conditions) or "x and t alone",
            got=", ".join(cond) or "x and t alone",
            next_step="give a label exactly where the network has classes",
        )
    wanted = "N x C x H x W" if image_shape is None else "N x " + " x ".join(map(str, image_shape))
    fits = x.ndim == 4 and (image_shape is None or x.shape[1:] == tuple(image_shape))
    if x.dtype != np.float32 or not fits or len(x) < 1:
        raise ModelError(
            "x is not a batch of the model's images",
            expected=f"float32, {wanted}, N at least 1",
            got=f"{x.dtype}, {' x '.join(map(str, x.shape))}",
        )
    for name, value in {"t": t, **cond}.items():
        if value.dtype != np.int64 or value.shape != (len(x),):
            raise ModelError(
                f"{name} does not go with x",
                expected=f"int64, one for each of {len(x)} images",
                got=f"{value.dtype}, {' x '.join(map(str, value.shape)) or 'a single number'}",
            )
    if not np.isfinite(x).all():
        raise ModelError(
            "x holds values that are not finite", expected="finite images", got="NaN or infinity",
            next_step="look where they come from: integer kernels would hide them",
        )  # fmt: skip


def check_input_names(path: Path, names: list[str]) -> tuple[str, ...]:
    """The conditions among a model file's inputs.

    Raises:
        ArtifactError: the inputs are not those of an export.
    """
    if names not in (["x", "t"], ["x", "t", "label"]):
        raise ArtifactError(
            f"{path} is not a flatq export",
            expected="the inputs x, t and, with classes, label",
            got=", ".join(names) or "no inputs",
            next_step="write it with `flatq export`",
        )
    return tuple(names[2:])


def failed_run(backend: str, error: Exception) -> InputError:
    """What a backend said when it failed on inputs that `check_inputs` had passed."""
    return shortage(error) or ModelError(
        f"{backend} failed to run the model",
        expected="an output for these inputs",
        got=" ".join(str(error).split())[:300],
        next_step="check the labels",
    )


def default_threads() -> int:
    """The number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
