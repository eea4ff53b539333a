"""An evaluation in several processes: the first one leads, the others draw whole batches for it.

Batches go from process to process as files, where a single process keeps them too (`flatq.evaluate.samples`):
so shares need not be equal, each batch is composed as a single process composes it, and what was drawn before
an interruption counts, whoever drew it. Only orders, answers and the exit code go over accelerate. So all
processes have to see the same files: models, the cache folder, and TMPDIR (without a cache, or for a ladder).
"""

from __future__ import annotations

import os
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from flatq.errors import EXIT_BUG, DataError, FlatqError
from flatq.evaluate.drawing import Drawing
from flatq.evaluate.extractor import Extractor, open_extractor
from flatq.evaluate.samples import Batch, SampleCache
from flatq.launch import Processes, launched, process_count
from flatq.models import Model, Opening, open_model
from flatq.runtime.base import default_threads
from flatq.sampler import SamplePlan

__all__ = ["ExtractorChoice", "Team", "leading"]

Range = tuple[int, int]

_PATIENCE = timedelta(hours=6)
"""A process that ends is noticed at once; this is for one that hangs. The reference may take hours too."""
_INTERRUPTED = 130


@dataclass(frozen=True)
class ExtractorChoice:
    """What `open_extractor` takes beside the shape."""

    features: str | None = None
    inception_weights: Path | None = None
    device: str = "cpu"


@dataclass(frozen=True)
class _Order:
    """A `Drawing` by value, and who draws which batches. key: what a helper has to come to by itself.

    shares: of each rank. halt: a file that stands where a process has failed.
    """

    opening: Opening
    extractor: ExtractorChoice
    plan: SamplePlan
    first: int
    batch_size: int
    rounding: Literal["round", "truncate"]
    threads: int
    key: dict[str, Any]
    folder: Path
    shares: tuple[tuple[Range, ...], ...]
    full: int
    halt: Path


class Team:
    """The processes of an evaluation, as the first one sees them; `leading` makes it.

    Attributes:
        scratch: a folder for the time of the evaluation.
        extractor: how the others open it; to be set before `draw`.
        threads: for each process, when the cores of a machine are shared.
    """

    def __init__(self, processes: Processes, scratch: Path) -> None:
        self._processes, self.scratch = processes, scratch
        self.extractor = ExtractorChoice()
        self.threads = max(1, default_threads() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))

    def draw(
        self,
        drawing: Drawing,
        cache: SampleCache,
        ranges: Sequence[Range],
        full: int,
        advance: Callable[[int], None],
    ) -> dict[int, Batch]:
        """Batches [begin, stop) that nobody has yet, in turn by the processes; by their begin.

        Args:
            advance: called with the number of batches that are likely there.

        Raises:
            FlatqError: that of the process that failed first in the order of the ranks.
            DataError: a batch of another process cannot be seen here.
        """
        assert drawing.model.opening is not None
        count = self._processes.count
        order = _Order(
            opening=drawing.model.opening,
            extractor=self.extractor,
            plan=drawing.plan,
            first=drawing.first,
            batch_size=drawing.batch_size,
            rounding=drawing.rounding,
            threads=drawing.threads,
            key=drawing.key,
            folder=cache.folder,
            shares=tuple(tuple(ranges[rank::count]) for rank in range(count)),
            full=full,
            halt=self.scratch / "halt",
        )
        self._processes.agree(order)
        found: dict[int, Batch] = {}
        try:
            for begin, batch in _drawn(drawing, order, 0):
                cache.store(drawing.key, begin, batch)
                found[begin] = batch
                advance(min(len(found) * count, len(ranges)))
        except BaseException:
            _stand(order.halt)
            with suppress(RuntimeError):  # one that has gone cannot answer
                self._processes.gather_objects(None)
            raise
        for rank, answer in enumerate(self._answers()):
            if isinstance(answer, FlatqError):
                raise answer
            if answer is not None:
                raise RuntimeError(f"process {rank} failed:\n{answer}")
        for begin, stop in ranges:
            if begin not in found:
                kept = cache.load(drawing.key, begin, stop, drawing.net.dim)
                if kept is None:
                    raise DataError(
                        f"samples that another process drew are not in {cache.folder}",
                        expected="one folder that all processes see, and may write",
                        got=f"no images {begin} to {stop - 1} of {drawing.model.name}",
                        next_step="set FLATQ_CACHE to such a folder, and leave --no-cache out",
                    )
                found[begin] = kept
        return found

    def dismiss(self, code: int) -> None:
        """Let the others end with this exit code."""
        with suppress(RuntimeError):  # one that has gone needs no leave
            self._processes.agree(code)

    def _answers(self) -> list[Any]:
        try:
            return self._processes.gather_objects(None)
        except RuntimeError as error:  # what torch.distributed raises
            raise FlatqError(
                "another process of the evaluation ended without a word, or did not answer",
                expected="an answer of each process",
                got=" ".join(str(error).split())[:300],
                next_step="look for its signal in the launcher's output: memory may have run out",
            ) from error


@contextmanager
def leading() -> Iterator[Team | None]:
    """In the first of several processes a team to lead; None where there is one process.

    In the others it does not come back: they draw what they are told to, and leave by SystemExit with the
    exit code of the first one, which is that of the error that leaves this context, or 0.

    Raises:
        MissingRuntimeError: several processes, but accelerate is not installed.
    """
    if process_count() == 1:
        yield None
        return
    _take_a_gpu()
    with launched("evaluating", cpu=True, timeout=_PATIENCE) as accelerator:
        processes = Processes(accelerator)
        if not processes.main:
            raise SystemExit(_help(processes))
        code = 0
        with tempfile.TemporaryDirectory(prefix="flatq-eval-") as scratch:
            team = Team(processes, Path(scratch))
            try:
                yield team
            except KeyboardInterrupt:
                code = _INTERRUPTED
                raise
            except BaseException as error:
                code = getattr(error, "exit_code", EXIT_BUG)  # of a FlatqError, and of typer's Exit
                raise
            finally:
                team.dismiss(code)


def _help(processes: Processes) -> int:
    """Carry out orders until dismissed; the exit code. All that is said is said by the first process."""
    with ExitStack() as stack:
        models: dict[Opening, Model] = {}
        nets: dict[tuple[ExtractorChoice, tuple[int, int, int]], Extractor] = {}
        while True:
            try:
                order = processes.agree(None)
            except RuntimeError:  # the first one has gone, and it or the launcher says why
                return EXIT_BUG
            if isinstance(order, int):
                return order
            answer: FlatqError | str | None = None
            try:
                _carry_out(order, processes.rank, models, nets, stack)
            except FlatqError as error:
                answer = error
            except Exception:
                answer = traceback.format_exc()
            if answer is not None:
                _stand(order.halt)
            with suppress(RuntimeError):  # as above
                processes.gather_objects(answer)


def _carry_out(
    order: _Order,
    rank: int,
    models: dict[Opening, Model],
    nets: dict[tuple[ExtractorChoice, tuple[int, int, int]], Extractor],
    stack: ExitStack,
) -> None:
    if not order.shares[rank]:
        return
    if order.opening not in models:
        opened = open_model(**vars(order.opening))
        stack.enter_context(opened.runtime)
        models[order.opening] = opened
    model = models[order.opening]
    wanted = order.extractor, model.image_shape
    if wanted not in nets:
        choice = order.extractor
        nets[wanted] = open_extractor(
            choice.features,
            image_shape=model.image_shape,
            inception_weights=choice.inception_weights,
            device=choice.device,
        )
    drawing = Drawing(
        model, nets[wanted], order.plan, order.first, order.batch_size, order.rounding, order.threads
    )
    differ = sorted(name for name, value in drawing.key.items() if order.key[name] != value)
    if differ:
        raise DataError(
            f"process {rank} would draw other samples of {model.name} than the first process",
            expected="the same " + ", ".join(f"{name} {order.key[name]}" for name in differ),
            got=", ".join(f"{name} {drawing.key[name]}" for name in differ),
            next_step="run all processes on the same files, versions and kind of machine",
        )
    said: list[str] = []
    cache = SampleCache(order.folder, said.append)
    for begin, batch in _drawn(drawing, order, rank):
        cache.store(drawing.key, begin, batch)
        if said:
            raise DataError(
                f"process {rank} cannot keep samples for the first process",
                expected=f"that {order.folder} can be written",
                got=said[0],
                next_step="set FLATQ_CACHE to a folder that all processes see, and may write",
            )


def _drawn(drawing: Drawing, order: _Order, rank: int) -> Iterator[tuple[int, Batch]]:
    """One's own share, until another process fails."""
    for begin, stop in order.shares[rank]:
        if order.halt.exists():
            return
        yield begin, drawing.draw(begin, stop, order.full)


def _stand(halt: Path) -> None:
    with suppress(OSError):  # it only hastens the end
        halt.touch()


def _take_a_gpu() -> None:
    """One GPU for each process of a machine; before anything looks for GPUs."""
    seen, local = os.environ.get("CUDA_VISIBLE_DEVICES"), int(os.environ.get("LOCAL_RANK", "0"))
    devices = [device for device in seen.split(",") if device.strip()] if seen is not None else None
    if devices is None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(local)
    elif devices:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[local % len(devices)]
