"""The state file of a run, from which `--resume` goes on: tensors and plain values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flatq.checkpoint import read_tensors, write_tensors
from flatq.errors import CheckpointError, UsageError
from flatq.train.config import TrainConfig

__all__ = ["STATE_FILE", "check_agreement", "read_state", "write_state"]

STATE_FILE = "state.pt"

_CHANGEABLE = frozenset(
    {
        "steps",
        "max_minutes",
        "stop_loss",
        "stop_weights",
        "heldout_every",
        "save_every",
        "save_minutes",
        "grid_every",
        "tensorboard",
        "threads",
        "device",
    }
)
"""Keys of the configuration that a resumed run may change; any other would make it a different run. So would
`steps` where the learning rate falls to zero at the last one."""

_FORMAT = "flatq-train-state"
_VERSION = 2


def write_state(state: Mapping[str, Any], folder: Path) -> None:
    """Writes `folder / STATE_FILE`, as `flatq.checkpoint.write_tensors`."""
    write_tensors({"format": _FORMAT, "version": _VERSION, **state}, folder / STATE_FILE)


def read_state(folder: Path) -> dict[str, Any]:
    """What `write_state` wrote, on the CPU.

    Raises:
        UsageError: there is no state.
        CheckpointError: damaged, pickled objects inside, or another format or version.
    """
    path = folder / STATE_FILE
    if not path.is_file():
        raise UsageError(
            f"there is nothing to resume in {folder}",
            expected=str(path),
            got="no such file",
            next_step="give the options of the run, and it starts anew",
        )
    state = read_tensors(path)
    if not isinstance(state, dict) or (state.get("format"), state.get("version")) != (_FORMAT, _VERSION):
        raise CheckpointError(
            f"{path} is not a state that this flatq can read",
            expected=f"format {_FORMAT!r}, version {_VERSION}",
            got=f"{state.get('format')!r}, {state.get('version')}" if isinstance(state, dict) else "no state",
            next_step="use the flatq that wrote it",
        )
    return state


def check_agreement(state: Mapping[str, Any], config: TrainConfig, digest: str, processes: int) -> None:
    """Refuses to go on with something else than what the state was written by.

    Args:
        digest: of the images.
        processes: that take part now.

    Raises:
        UsageError: another configuration (but for the keys in `_CHANGEABLE`), other images, or another number
            of processes, whose dropout would differ.
    """
    now, then = config.model_dump(mode="json"), state["config"]
    changeable = _CHANGEABLE if config.lr_schedule == "constant" else _CHANGEABLE - {"steps"}
    differing = [key for key in now if key not in changeable and now[key] != then.get(key)]
    if differing:
        key = differing[0]
        raise UsageError(
            f"this is not the run that is to be resumed: {', '.join(differing)} differ",
            expected=f"{key} = {then.get(key)}",
            got=f"{key} = {now[key]}",
            next_step="leave these options out, or train in another folder",
        )
    if state["data_digest"] != digest:
        raise UsageError(
            f"the images in {config.data} are not those that the run began with",
            expected=f"digest {state['data_digest']}",
            got=digest,
            next_step="restore the images, or train in another folder",
        )
    if len(state["rng"]) != processes:
        raise UsageError(
            "the run was begun by another number of processes",
            expected=str(len(state["rng"])),
            got=str(processes),
            next_step="launch as many processes as before",
        )
