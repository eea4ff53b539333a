"""One process or many: the device, the shared gradients, who writes. Many go through accelerate.

`accelerate launch` and torchrun set the environment that is read here. What is done with the gradients is the
loop's work.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Literal

import torch

from flatq.errors import MissingRuntimeError, UsageError

__all__ = ["Workers", "open_workers"]

_SETTLE_S = 0.5


class Workers:
    """This process among those of a run; one process is a run of its own.

    Attributes:
        rank: from 0. count: of all processes. device: of this one.
    """

    def __init__(self, device: torch.device, accelerator: Any = None) -> None:
        self._accelerator = accelerator
        self.device = device
        self.rank: int = accelerator.process_index if accelerator else 0
        self.count: int = accelerator.num_processes if accelerator else 1

    @property
    def main(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def wrap(self, network: torch.nn.Module) -> torch.nn.Module:
        """The network whose backward pass averages the gradients of all processes."""
        wrapped: torch.nn.Module = self._accelerator.prepare_model(network) if self._accelerator else network
        return wrapped

    def unsynchronised(self, wrapped: torch.nn.Module) -> Callable[[], AbstractContextManager[None]]:
        """Makes contexts in which backward passes of `wrapped` leave each process its own gradients."""
        return partial(self._accelerator.no_sync, wrapped) if self._accelerator else nullcontext

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        """The values [n] of all processes, in the order of their ranks, [count * n]."""
        gathered: torch.Tensor = self._accelerator.gather(values) if self._accelerator else values
        return gathered

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
def open_workers(device: Literal["auto", "cpu", "cuda"]) -> Iterator[Workers]:
    """This process among those that were launched.

    Args:
        device: "auto" takes a CUDA device where there is one.

    Raises:
        UsageError: CUDA is asked for and not there.
        MissingRuntimeError: several processes, but accelerate is not installed.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "there is no CUDA device",
            expected="a CUDA build of torch and a GPU",
            got=f"torch {torch.__version__}",
            next_step="leave --device out, or say --device cpu",
        )
    cuda = device != "cpu" and torch.cuda.is_available()
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Workers(torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu"))
        return
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise MissingRuntimeError(
            "training in several processes needs accelerate",
            expected="the package accelerate",
            got=str(error),
            next_step='pip install "flatq[cpu]"',
        ) from error
    accelerator = Accelerator(cpu=not cuda, mixed_precision="no")  # autocast is the loop's
    try:
        yield Workers(accelerator.device, accelerator)
    finally:
        # gloo's threads outlive the group while a DDP module does, and drop the last collective's tensors
        # under the interpreter's lock: one that ends before they did is aborted. Sleeping lends it.
        time.sleep(_SETTLE_S)
        accelerator.state.destroy_process_group()
