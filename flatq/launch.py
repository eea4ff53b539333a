"""The processes of one launch: how many, which this is, what they tell each other.

`accelerate launch` and torchrun set the environment that is read here; what goes from process to process goes
through accelerate, and is small and plain. torch and accelerate are loaded only where there are several.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from flatq.errors import MissingRuntimeError

__all__ = ["Processes", "launched", "process_count"]

_SETTLE_S = 0.5


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
