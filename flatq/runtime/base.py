"""What every backend offers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, ClassVar, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from flatq.errors import ArtifactError, ModelError, one_line
from flatq.failures import shortage
from flatq.inputs import Condition, InputSpec

__all__ = [
    "UNCONDITIONED",
    "CheckedRuntime",
    "Condition",
    "Precision",
    "Runtime",
    "bind_inputs",
    "default_threads",
    "inputs_of_file",
]

Precision = Literal["fp32", "fp16", "bf16"]
"""What the layers that are not integers compute in."""

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
            ModelError: an input that `bind_inputs` refuses, or the backend fails on them.
        """
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class CheckedRuntime:
    """A runtime that checks its inputs and names its backend's failures.

    Subclasses set `_inputs`, the model's, and may set the errors that their backend raises.
    """

    _backend: ClassVar[str]
    _errors: ClassVar[tuple[type[Exception], ...]] = ()
    _inputs: Sequence[InputSpec]

    def _run(self, feed: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
        """The model's output for arrays by input name, in memory that the next run leaves alone."""
        raise NotImplementedError

    def __call__(
        self, x: NDArray[np.float32], t: NDArray[np.int64], cond: Condition = UNCONDITIONED
    ) -> NDArray[np.float32]:
        feed = bind_inputs(self._inputs, x, t, cond)
        try:
            return self._run(feed)
        except self._errors as error:
            raise shortage(error) or ModelError(
                f"{self._backend} failed to run the model",
                expected="an output for these inputs",
                got=one_line(error),
                next_step="check the labels",
            ) from error

    def close(self) -> None:
        """Frees what the backend holds; the runtime must not be used any more."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def bind_inputs(
    inputs: Sequence[InputSpec], x: NDArray[np.float32], t: NDArray[Any], cond: Condition
) -> dict[str, NDArray[Any]]:
    """The arrays by input name, in the model's order, checked before a backend makes something of them.

    Integer kernels turn NaN into an ordinary number, and some backends take a batch of zero. Integer
    timesteps become float32 for a model that takes them so.

    Raises:
        ModelError: a dtype, a shape, an empty batch, a value that is not finite, a condition that is missing
            or left over.
    """
    image, time, *conditions = inputs
    if set(cond) != {spec.name for spec in conditions}:
        raise ModelError(
            "the model's conditions do not fit",
            expected=", ".join(spec.name for spec in conditions) or "x and t alone",
            got=", ".join(cond) or "x and t alone",
            next_step="give each condition that the model takes, and no other",
        )
    if time.dtype == "float32" and np.issubdtype(t.dtype, np.integer):
        t = t.astype(np.float32)
    feed: dict[str, NDArray[Any]] = {image.name: x, time.name: t, **cond}
    for spec in inputs:
        value = feed[spec.name]
        sizes = zip(value.shape[1:], spec.shape, strict=False)
        fits = value.ndim == 1 + len(spec.shape) and all(wanted in (None, size) for size, wanted in sizes)
        if str(value.dtype) != spec.dtype or not fits or len(value) != len(x) or len(x) < 1:
            count = "N at least 1" if spec is image else f"one for each of {len(x)} images"
            wanted = " x ".join(["N", *("any" if size is None else str(size) for size in spec.shape)])
            raise ModelError(
                f"{spec.name} does not fit the model's input",
                expected=f"{spec.dtype}, {wanted}, {count}",
                got=f"{value.dtype}, {' x '.join(map(str, value.shape)) or 'a single number'}",
            )
        if spec.dtype == "float32" and not np.isfinite(value).all():
            raise ModelError(
                f"{spec.name} holds values that are not finite", expected="finite values",
                got="NaN or infinity",
                next_step="look where they come from: integer kernels would hide them",
            )  # fmt: skip
    return {spec.name: feed[spec.name] for spec in inputs}


def inputs_of_file(path: Path, found: Sequence[tuple[str, str, Sequence[Any]]]) -> tuple[InputSpec, ...]:
    """The inputs that a model file declares.

    Args:
        found: name, dtype and shape with the batch of each; a size that is no int is any.

    Raises:
        ArtifactError: they are not those of an export.
    """
    try:
        inputs = tuple(
            InputSpec.model_validate(
                {
                    "name": name,
                    "dtype": dtype,
                    "shape": [n if isinstance(n, int) else None for n in shape[1:]],
                }
            )
            for name, dtype, shape in found
        )
    except ValidationError:
        inputs = ()
    if [len(spec.shape) for spec in inputs[:2]] != [3, 0]:
        raise ArtifactError(
            f"{path} is not a flatq export",
            expected="images and timesteps as the first two inputs, of float32 or int64",
            got=", ".join(f"{name} {dtype} {list(shape)}" for name, dtype, shape in found) or "no inputs",
            next_step="write it with `flatq export`",
        )
    return inputs


def default_threads() -> int:
    """`OMP_NUM_THREADS`, where set, as for torch; else the number of cores this process may use.

    Under a launcher, which sets `OMP_NUM_THREADS` by itself, the cores are divided among its processes.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    if "LOCAL_WORLD_SIZE" in os.environ:
        return max(1, cores // int(os.environ["LOCAL_WORLD_SIZE"]))
    chosen = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return int(chosen) if chosen.isdigit() and int(chosen) else cores
