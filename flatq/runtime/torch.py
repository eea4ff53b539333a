"""PyTorch: float networks and lowered Q/DQ graphs alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flatq.errors import MissingRuntimeError
from flatq.inputs import PLAIN_INPUTS, InputSpec
from flatq.runtime.base import CheckedRuntime, default_threads

if TYPE_CHECKING:
    import torch

__all__ = ["TorchRuntime", "move_to", "torch_threads"]


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """torch's intra-op threads, for the time of the block; None leaves them as they are."""
    import torch

    before = torch.get_num_threads()
    try:
        if count is not None:
            torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)


def move_to(module: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """The module on a device; a traced graph's own mentions of a device too, such as that of an arange."""
    import torch

    if isinstance(module, torch.fx.GraphModule):
        for node in module.graph.nodes:
            if node.kwargs.get("device") is not None:
                node.update_kwarg("device", device)
        module.recompile()
    return module.to(device)


class TorchRuntime(CheckedRuntime):
    """Runs a module `(x, t, *conditions) -> output` without gradients.

    Args:
        module: already in eval mode, or a graph that has no modes.
        inputs: those of the module, in its order.
        device: a torch device.
        threads: intra-op threads of each call, all cores by default; between calls torch's setting is the
            caller's.

    Raises:
        MissingRuntimeError: a CUDA device is asked for and there is none.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        *,
        inputs: Sequence[InputSpec] = PLAIN_INPUTS,
        device: str = "cpu",
        threads: int | None = None,
    ) -> None:
        import torch

        self._torch = torch
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise MissingRuntimeError(
                "torch has no CUDA device here",
                expected="an NVIDIA GPU, its driver, and a torch built for CUDA",
                got=f"torch {torch.__version__}",
                next_step="take --device cpu",
            )
        self._device = torch.device(device)
        self._module = move_to(module, self._device)
        self._inputs = tuple(inputs)
        self._threads = threads or default_threads()

    @property
    def identity(self) -> dict[str, Any]:
        cuda = self._device.type == "cuda"
        return {
            "runtime": "torch",
            "version": str(self._torch.__version__),
            "device": str(self._device),
            **({"gpu": self._torch.cuda.get_device_name(self._device)} if cuda else {}),
            "threads": self._threads,
        }

    def _run(self, feed: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
        torch = self._torch
        with torch_threads(self._threads), torch.no_grad():
            output = self._module(
                *(torch.from_numpy(np.ascontiguousarray(value)).to(self._device) for value in feed.values())
            )
        result: NDArray[np.float32] = output.cpu().numpy()
        return result
