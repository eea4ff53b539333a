"""Opening and sampling the ladder's two middle rungs: the float export on the runtime, the lowered graph in
torch.

The other two are what every evaluation samples; what the ladder says is `flatq.evaluate.ladder`'s.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from flatq.backends import RuntimeSettings, target_of
from flatq.deployment import FloatPrecision, read_deployment
from flatq.errors import UsageError
from flatq.evaluate.growing import Growing
from flatq.evaluate.ladder import Ladder, Rung, climb
from flatq.evaluate.moments import Reference
from flatq.models import Model, deployment_folder, kind_of, open_model

__all__ = ["Rungs", "check_ladder"]


def check_ladder(
    baseline: Path, baseline_runtime: RuntimeSettings, models: tuple[Path, ...], runtime: RuntimeSettings
) -> None:
    """Refuse what has no ladder, before anything is sampled.

    Raises:
        UsageError: a baseline that is no checkpoint in torch, a model that is no artifact, or runs in torch.
    """
    if kind_of(baseline) != "checkpoint" or baseline_runtime.runtime not in (None, "torch"):
        raise UsageError(
            "the ladder starts at the float model in torch",
            expected="a checkpoint as the baseline, in torch",
            got=f"{baseline}, on {baseline_runtime.runtime or 'its default'}",
        )
    for path in models:
        if kind_of(path) != "artifact" or runtime.runtime == "torch":
            raise UsageError(
                f"{path} has no ladder",
                expected="an artifact on a deployment runtime: its graph runs in torch too",
                got=f"a {kind_of(path)}" + (" in torch" if runtime.runtime == "torch" else ""),
                next_step="name the artifact that `flatq quantize` wrote, or leave --ladder out",
            )


class Rungs:
    """The ladders of several artifacts over one float model; a context manager, as it holds float exports."""

    def __init__(
        self,
        checkpoint: Path,
        weights: str,
        float_side: Growing,
        grow: Callable[[Model], Growing],
        runtime: RuntimeSettings,
        *,
        scratch: Path | None = None,
    ) -> None:
        """Args:
        checkpoint, weights, float_side: rung A.
        grow: what samples a model from the same noise.
        runtime: how the artifacts' rung D runs.
        scratch: a folder for the float exports; the system's by default.
        """
        self._checkpoint, self._weights, self._float_side, self._grow = checkpoint, weights, float_side, grow
        self._runtime, self._target, self._scratch = runtime, target_of(runtime), scratch
        self._exports: dict[FloatPrecision, Growing] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def ladder(
        self, artifact: Path, quantized: Growing, n: int, reference: Reference, confidence: float
    ) -> Ladder | None:
        """Of the first n images; None where a rung's samples are not finite.

        Raises:
            ModelError, MissingRuntimeError: the float model cannot be exported for the target.
        """
        floats = read_deployment(deployment_folder(artifact, self._target))[0].float_precision
        exported = self._exported(floats)
        exported.grow(n)
        model = open_model(
            artifact, RuntimeSettings("torch", threads=self._runtime.threads), lowered_for=self._target
        )
        with model.runtime:
            lowered = self._grow(model)
            lowered.grow(n)
        rungs: dict[Rung, Growing] = {
            "A": self._float_side,
            "B": exported,
            "C": lowered,
            "D": quantized,
        }
        if not all(rung.finite for rung in rungs.values()):
            return None
        return climb(
            {name: rung.side(n) for name, rung in rungs.items()},
            {name: rung.identity for name, rung in rungs.items()},
            reference,
            confidence,
        )

    def _exported(self, floats: FloatPrecision) -> Growing:
        if floats not in self._exports:
            from flatq.checkpoint import load_checkpoint
            from flatq.export import export_checkpoint

            folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(dir=self._scratch))) / "float"
            export_checkpoint(
                load_checkpoint(self._checkpoint),
                self._target,
                folder,
                average=self._weights,
                float_precision=floats,
            )
            model = open_model(folder, self._runtime)
            self._stack.enter_context(model.runtime)
            self._exports[floats] = self._grow(model)
        return self._exports[floats]
