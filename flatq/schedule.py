"""Betas of the training process and the timesteps that a sampler keeps: numpy, float64, no torch.

Ported from guided-diffusion (`gaussian_diffusion.py`, `respace.py`; MIT, (c) 2021 OpenAI); the schedules and
spacings that diffusers adds follow its schedulers' definitions. What is done with them is `flatq.process`'s.
"""

from __future__ import annotations

import math
import operator
import re
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from flatq.errors import UsageError

__all__ = ["Schedule", "Spacing", "as_index", "beta_schedule", "space_timesteps", "spaced_timesteps"]

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
    count = int(steps) if isinstance(steps, str) and steps.strip().isdigit() else steps
    if spacing == "respaced" or count is None or isinstance(count, str):
        return space_timesteps(train_steps, steps)
    n = space_timesteps(train_steps, count).size  # checks the count
    kept: npt.NDArray[Any]
    if spacing == "leading":
        kept = np.arange(n) * (train_steps // n) + offset
    elif spacing == "linspace":
        kept = np.linspace(0, train_steps - 1, n).round()
    else:
        kept = np.round(np.arange(train_steps, 0, -(train_steps / n)))[:n][::-1] - 1
    if kept[-1] >= train_steps:
        raise UsageError(
            "The offset of the sampling steps leads beyond the last timestep.",
            expected=f"timesteps up to {train_steps - 1}",
            got=str(int(kept[-1])),
            next_step="take fewer steps",
        )
    return kept.astype(np.int64)


def space_timesteps(train_steps: int, steps: int | str | None) -> npt.NDArray[np.int64]:
    """The training timesteps that a respaced process keeps: guided-diffusion's `space_timesteps`.

    Args:
        train_steps: T.
        steps: None for all of them; N or "N" for N timesteps spread over [0, T - 1] with both ends kept
            (N = 1 keeps timestep 0, as the original does); "A,B,..." for T cut into equal sections with
            A, B, ... timesteps; "ddimN" for the DDIM paper's integer stride from 0, where
            one gives exactly N.

    Returns:
        int64, strictly ascending, each in [0, T).

    Raises:
        UsageError: a spec that cannot be read, a count outside 1..T (or its section), a ddim count
            that no stride gives.
    """
    if steps is None:
        return np.arange(train_steps, dtype=np.int64)
    spec = steps.strip() if isinstance(steps, str) else str(as_index("The number of steps", steps))
    if match := re.fullmatch(r"ddim([0-9]{1,9})", spec):
        return _strided(train_steps, int(match[1]))
    if not re.fullmatch(r"-?[0-9]{1,9}( *, *[0-9]{1,9})*", spec):
        raise UsageError(
            "The number of sampling steps cannot be read.",
            expected='N, "N", "A,B,..." or "ddimN"',
            got=repr(steps),
        )
    counts = [int(part) for part in spec.split(",")]
    size_per, extra = divmod(train_steps, len(counts))
    kept: list[int] = []
    start = 0
    for section, count in enumerate(counts):
        size = size_per + (1 if section < extra else 0)
        if not 1 <= count <= size:
            where = "" if len(counts) == 1 else f" in section {section + 1} of {len(counts)}"
            raise UsageError(
                f"The number of sampling steps{where} is out of range.",
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
    for stride in range(1, train_steps):
        if len(range(0, train_steps, stride)) == count:
            return np.arange(0, train_steps, stride, dtype=np.int64)
    offered = sorted(
        {len(range(0, train_steps, stride)) for stride in range(1, train_steps)}, key=lambda n: abs(n - count)
    )
    raise UsageError(
        f"No integer stride over {train_steps} timesteps gives exactly {count} DDIM steps.",
        expected="a count that a stride gives"
        + (f", such as {' or '.join(f'ddim{n}' for n in sorted(offered[:2]))}" if offered else ""),
        got=f"ddim{count}",
        next_step=f'or take evenly spread timesteps: "{count}" in place of "ddim{count}"',
    )


def as_index(name: str, value: int) -> int:
    """`value` as a Python int, or `UsageError` that names it."""
    try:
        if not isinstance(value, (bool, np.bool_)):
            return operator.index(value)
    except TypeError:
        pass
    raise UsageError(f"{name} is no integer.", expected="an integer", got=repr(value))
