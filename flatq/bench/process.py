"""The hold on a process of `flatq.bench.worker`: start it, let it run, end it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from types import TracebackType
from typing import Any, Self

from flatq import errors
from flatq.bench.timing import Timing
from flatq.errors import FlatqError, ModelError

__all__ = ["Worker"]


class Worker:
    """A model that is open in a process of its own.

    Args:
        label: for messages.
        wanted: `path`, `runtime` and `seed`, and further arguments of `flatq.models.open_model`.

    Raises:
        FlatqError: whatever opening the model raised there; `ModelError` where the process died.
    """

    def __init__(self, label: str, wanted: dict[str, Any]) -> None:
        self._label = label
        self._said = tempfile.TemporaryFile(mode="w+b")  # noqa: SIM115  (closed with the process)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "flatq.bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
        )
        try:
            self.opened = self._ask(wanted)
        except BaseException:
            self.close()
            raise

    def call(self, batch: int) -> Timing:
        """Run it once; at its first call with a batch size it runs once more before, unmeasured."""
        answer = self._ask({"batch": batch})
        return Timing(answer["wall_ms"], answer["cpu_ms"])

    def memory(self) -> tuple[int, int] | None:
        """(bytes before the model was opened, high-water mark since), or None where the system tells none."""
        answer = self._ask({"memory": True})["memory"]
        return None if answer is None else (answer[0], answer[1])

    def close(self) -> None:
        """End the process."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()
        self._said.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        asked, answers = self._process.stdin, self._process.stdout
        assert asked is not None
        assert answers is not None
        try:
            asked.write(json.dumps(question) + "\n")
            asked.flush()
            line = answers.readline()
        except BrokenPipeError:
            line = answers.readline()
        if not line:
            raise self._died()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            kind: type[FlatqError] = getattr(errors, answer.pop("error"))
            raise kind(answer.pop("what"), **answer)
        return answer

    def _died(self) -> ModelError:
        code = self._process.wait()
        self._said.seek(0)
        words = self._said.read().decode("utf-8", "replace").split()
        return ModelError(
            f"the process that ran {self._label} ended",
            expected="answers until it is told to stop",
            got=f"exit code {code}" + (f": {' '.join(words)[-300:]}" if words else ""),
            next_step="leave that runtime out with --runtime, and check the memory of the machine",
        )
