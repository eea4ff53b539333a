"""A training run's processes: the device of each, the shared gradients.

Who is who and what they tell each other is `flatq.launch`; what is done with the gradients is the loop's
work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Literal

import torch

from flatq.errors import UsageError
from flatq.launch import Processes, launched

__all__ = ["Workers", "open_workers"]


class Workers(Processes):
    """This process among those of a run; one process is a run of its own.

    Attributes:
        device: of this one. rank, count: as `Processes`.
    """

    def __init__(self, device: torch.device, accelerator: Any = None) -> None:
        super().__init__(accelerator)
        self.device = device

    def wrap(self, network: torch.nn.Module) -> torch.nn.Module:
        """The network whose backward pass averages the gradients of all processes."""
        return self._accelerator.prepare_model(network) if self._accelerator else network

    def unsynchronised(self, wrapped: torch.nn.Module) -> Callable[[], AbstractContextManager[None]]:
        """Makes contexts in which backward passes of `wrapped` leave each process its own gradients."""
        return partial(self._accelerator.no_sync, wrapped) if self._accelerator else nullcontext

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        """The values [n] of all processes, in the order of their ranks, [count * n]."""
        return self._accelerator.gather(values) if self._accelerator else values

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """The mean over all processes of values [n] that each has for its part, [n]."""
        return self.gather(values).view(self.count, -1).mean(0) if self._accelerator else values


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
    with launched("training", cpu=not cuda) as accelerator:
        own = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
        yield Workers(own if accelerator is None else accelerator.device, accelerator)
