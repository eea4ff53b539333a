"""The processes of one launch: how many, which this is, what they tell each other.

`accelerate launch` and torchrun set the environment that is read here; what goes from process to process goes
through accelerate. torch and accelerate are loaded only where there are several.
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from flatq.errors import EXIT_BUG, FlatqError, MissingRuntimeError

__all__ = ["Processes", "evaluating_together", "launched", "process_count"]

T = TypeVar("T")

_SETTLE_S = 0.5
_PATIENCE = timedelta(hours=6)
"""A process that ends is noticed at once; this is for one that hangs. The reference may take hours too."""


def process_count() -> int:
    """How many processes were launched together, this one among them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


class Processes:
    """This process among those of a launch; one process is a launch of its own.

    Attributes:
        rank: from 0. count: of all processes.
    """

    def __init__(self, accelerator: Any = None) -> None:
        self._accelerator = accelerator
        self.rank: int = accelerator.process_index if accelerator else 0
        self.count: int = accelerator.num_processes if accelerator else 1

    @property
    def main(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def gather_objects(self, value: Any) -> list[Any]:
        """One plain value from each process, in the order of their ranks."""
        if self._accelerator is None:
            return [value]
        from accelerate.utils import gather_object

        found: list[Any] = gather_object([value])
        return found

    def agree(self, value: Any) -> Any:
        """The first process's value, for all."""
        if self._accelerator is None:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    def each(self, action: Callable[[], T]) -> T:
        """What the action returns in this process; where it fails in one, all fail.

        Raises:
            FlatqError: that of the process that failed first in the order of the ranks, or a process ended
                without reporting an error.
        """
        if self._accelerator is None:
            return action()
        error: FlatqError | str | None = None
        try:
            result = action()
        except FlatqError as failed:
            error = failed
        except Exception:
            error = traceback.format_exc()
        try:
            errors = self.gather_objects(error)
        except RuntimeError as lost:  # what torch.distributed raises
            raise FlatqError(
                "another process exited without reporting an error, or did not answer",
                expected="an answer of each process",
                got=" ".join(str(lost).split())[:300],
                next_step="look for its signal in the launcher's output: memory may have run out",
            ) from lost
        for rank, found in enumerate(errors):
            if isinstance(found, FlatqError):
                raise found
            if found is not None:
                raise RuntimeError(f"process {rank} failed:\n{found}")
        return result

    def wait(self) -> None:
        """Until all processes are here."""
        if self._accelerator is not None:
            self._accelerator.wait_for_everyone()


@contextmanager
def launched(what: str, *, cpu: bool, timeout: timedelta | None = None) -> Iterator[Any]:
    """accelerate's object for this process; None where there is but one.

    Args:
        what: is done in several processes, for the error.
        cpu: they talk by way of the CPU, also where there are GPUs.
        timeout: of each wait for the others; accelerate's by default.

    Raises:
        MissingRuntimeError: several processes, but accelerate is not installed.
    """
    if process_count() == 1:
        yield None
        return
    try:
        from accelerate import Accelerator
        from accelerate.utils import InitProcessGroupKwargs
    except ImportError as error:
        raise MissingRuntimeError(
            f"{what} in several processes needs accelerate",
            expected="the package accelerate",
            got=str(error),
            next_step='pip install "flatq[cpu]"',
        ) from error
    patience = [] if timeout is None else [InitProcessGroupKwargs(backend="gloo", timeout=timeout)]
    accelerator = Accelerator(
        cpu=cpu, mixed_precision="no", kwargs_handlers=patience
    )  # autocast is the loop's
    try:
        yield accelerator
    finally:
        # gloo's threads outlive the group while a DDP module does, and drop the last collective's tensors
        # under the interpreter's lock: one that ends before they did is aborted. Sleeping lends it.
        time.sleep(_SETTLE_S)
        accelerator.state.destroy_process_group()


@contextmanager
def evaluating_together() -> Iterator[Processes]:
    """The processes of an evaluation, each on a GPU of its own where there are any.

    All of them run the same program, of which only the first one prints; the others leave this context by
    SystemExit with the exit code of their error.

    Raises:
        MissingRuntimeError: several processes, but accelerate is not installed.
    """
    if process_count() == 1:
        yield Processes()
        return
    _take_a_gpu()
    with launched("evaluating", cpu=True, timeout=_PATIENCE) as accelerator:
        processes = Processes(accelerator)
        if processes.main:
            yield processes
            return
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            try:
                yield processes
            except Exception as error:
                raise SystemExit(getattr(error, "exit_code", EXIT_BUG)) from error


def _take_a_gpu() -> None:
    """One GPU for each process of a machine; before anything looks for GPUs."""
    seen, local = os.environ.get("CUDA_VISIBLE_DEVICES"), int(os.environ.get("LOCAL_RANK", "0"))
    devices = [device for device in seen.split(",") if device.strip()] if seen is not None else None
    if devices is None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(local)
    elif devices:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[local % len(devices)]
