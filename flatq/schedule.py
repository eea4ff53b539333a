"""Betas of the training process and the timesteps that a sampler keeps: numpy, float64, no torch.

Conventions are guided-diffusion's (`gaussian_diffusion.py`, `respace.py`), from which nothing is copied; the
schedules and spacings that diffusers adds follow its schedulers' definitions. `flatq.process` uses them.
"""

from __future__ import annotations

import math
import re
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from flatq.errors import UsageError

__all__ = ["Schedule", "Spacing", "beta_schedule", "count_steps", "space_timesteps", "spaced_timesteps"]

Schedule = Literal["cosine", "linear", "scaled_linear", "sigmoid"]
Spacing = Literal["respaced", "leading", "linspace", "trailing"]


def beta_schedule(
    schedule: Schedule, train_steps: int, ends: tuple[float, float] | None = None
) -> npt.NDArray[np.float64]:
    """The training betas, float64 [train_steps], in (0, 1).

    Args:
        schedule: "cosine": IDDPM eq. 17 with s = 0.008, each beta at most 0.999 (diffusers'
            squaredcos_cap_v2). "linear": evenly spaced between the ends. "scaled_linear": their square roots
            are. "sigmoid": the logistic function on [-6, 6], scaled to the ends.
        ends: first and last beta; None takes DDPM section 4's 1e-4 and 0.02 times 1000 / train_steps, as
            guided-diffusion does. Unused by "cosine".

    Raises:
        UsageError: a beta outside (0, 1), as with "linear", no ends and 20 training steps or less.
    """
    if schedule == "cosine":
        edges = [_alpha_bar(i / train_steps) for i in range(train_steps + 1)]
        return np.array([min(1 - b / a, 0.999) for a, b in pairwise(edges)], dtype=np.float64)
    scale = 1000 / train_steps
    first, last = ends or (scale * 0.0001, scale * 0.02)
    if not (0 < first < 1 and 0 < last < 1):
        raise UsageError(
            f"The {schedule} schedule has betas outside (0, 1) for {train_steps} training steps.",
            expected="ends inside (0, 1)" if ends else "train_steps above 20",
            got=f"{first:g} to {last:g}",
            next_step='take schedule "cosine" or more training steps',
        )
    if schedule == "linear":
        return np.linspace(first, last, train_steps, dtype=np.float64)
    if schedule == "scaled_linear":
        roots: npt.NDArray[np.float64] = np.linspace(math.sqrt(first), math.sqrt(last), train_steps)
        return roots**2
    steep: npt.NDArray[np.float64] = 1 / (1 + np.exp(-np.linspace(-6.0, 6.0, train_steps)))
    return steep * (last - first) + first


def _alpha_bar(t: float) -> float:
    return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2


def count_steps(steps: int | str) -> int:
    """How many timesteps a number or spec of steps keeps: 20 for 20 and "ddim20", 45 for "10,15,20".

    Raises:
        UsageError: a spec that cannot be read.
    """
    if not isinstance(steps, str):
        return steps
    if not re.fullmatch(r"(ddim)?[0-9]{1,9}|[0-9]{1,9}( *, *[0-9]{1,9})+", steps):
        raise UsageError(
            "the number of sampling steps cannot be read",
            expected='N, "A,B,..." or "ddimN"',
            got=repr(steps),
        )
    return sum(map(int, steps.removeprefix("ddim").split(",")))


def spaced_timesteps(
    train_steps: int, steps: int | str | None, spacing: Spacing, offset: int = 0
) -> npt.NDArray[np.int64]:
    """The training timesteps that a sampler keeps, by the spacing its process asks for.

    Args:
        spacing: "respaced": guided-diffusion's, see `space_timesteps`. The others are those of diffusers'
            schedulers (Lin et al. 2023, table 2) for a plain number of steps N: "leading": i (T // N) +
            offset; "linspace": evenly over [0, T - 1]; "trailing": T - i T / N - 1. Where steps is None or
            a spec such as "ddim20", they are "respaced".
        offset: of "leading".

    Returns, raises: as `space_timesteps`; UsageError also where the offset leads beyond T - 1.
    """
    kept: npt.NDArray[Any] = space_timesteps(train_steps, steps)
    if spacing == "respaced" or not isinstance(steps, int):
        return kept
    if spacing == "leading":
        kept = np.arange(steps) * (train_steps // steps) + offset
    elif spacing == "linspace":
        kept = np.linspace(0, train_steps - 1, steps).round()
    else:
        kept = np.round(np.arange(train_steps, 0, -(train_steps / steps)))[:steps][::-1] - 1
    if kept[-1] >= train_steps:
        raise UsageError(
            "the offset of the sampling steps leads beyond the last timestep",
            expected=f"timesteps up to {train_steps - 1}",
            got=str(int(kept[-1])),
            next_step="take fewer steps",
        )
    return kept.astype(np.int64)


def space_timesteps(train_steps: int, steps: int | str | None) -> npt.NDArray[np.int64]:
    """The training timesteps that a respaced process keeps: guided-diffusion's `space_timesteps`.

    Args:
        train_steps: T.
        steps: None for all of them; N for N timesteps spread over [0, T - 1] with both ends kept (N = 1 keeps
            timestep 0, as the original does); "A,B,..." for T cut into equal sections with A, B, ...
            timesteps; "ddimN" for the DDIM paper's integer stride from 0, where one gives exactly N.

    Returns:
        int64, strictly ascending, each in [0, T).

    Raises:
        UsageError: a spec that cannot be read, a count outside 1..T (or its section), a ddim count
            that no stride gives.
    """
    if steps is None:
        return np.arange(train_steps, dtype=np.int64)
    count = count_steps(steps)
    if isinstance(steps, str) and steps.startswith("ddim"):
        return _strided(train_steps, count)
    counts = [int(part) for part in steps.split(",")] if isinstance(steps, str) else [count]
    size_per, extra = divmod(train_steps, len(counts))
    kept: list[int] = []
    start = 0
    for section, count in enumerate(counts):
        size = size_per + (1 if section < extra else 0)
        if not 1 <= count <= size:
            where = "" if len(counts) == 1 else f" in section {section + 1} of {len(counts)}"
            raise UsageError(
                f"the number of sampling steps{where} is out of range",
                expected=f"1 to {size}",
                got=str(count),
            )
        stride = (size - 1) / (count - 1) if count > 1 else 1.0
        position = 0.0  # summed up, not multiplied: rounding ties must fall as in the original
        for _ in range(count):
            kept.append(start + round(position))
            position += stride
        start += size
    return np.array(kept, dtype=np.int64)


def _strided(train_steps: int, count: int) -> npt.NDArray[np.int64]:
    strides = {len(range(0, train_steps, stride)): stride for stride in range(train_steps - 1, 0, -1)}
    if count in strides:
        return np.arange(0, train_steps, strides[count], dtype=np.int64)
    near = sorted(strides, key=lambda n: abs(n - count))[:2]
    raise UsageError(
        f"no integer stride over {train_steps} timesteps gives exactly {count} DDIM steps",
        expected="a count that a stride gives, such as " + " or ".join(f"ddim{n}" for n in sorted(near)),
        got=f"ddim{count}",
        next_step=f'or take evenly spread timesteps: "{count}" in place of "ddim{count}"',
    )
