"""What lies behind an error that some library raised: a full disk, too little memory, torch's compiler."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from flatq.errors import InputError, UsageError

__all__ = ["explained", "shortage"]

_DISK = tuple(os.strerror(code).lower() for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
_MEMORY = ("allocate memory", "out of memory", "bad_alloc", "bad allocation")
_COMPILER = ("torch._dynamo", "torch._inductor", "torch._functorch")


def explained(error: BaseException) -> InputError | None:
    """The error to show instead of one that is no fault of flatq's; None for any other."""
    known = shortage(error)
    compiler = next((c for c in _causes(error) if type(c).__module__.startswith(_COMPILER)), None)
    if known is not None or compiler is None:
        return known
    text = str(compiler).split("Set TORCHDYNAMO_VERBOSE")[0]  # what follows is for developers of torch
    return UsageError(
        "torch.compile failed",
        expected="a working compiler: g++ on a CPU, Triton on a GPU",
        got=f"{type(compiler).__name__}: {' '.join(text.split())[:300]}",
        next_step="leave out --set compile=true, or install the compiler",
    )


def shortage(error: BaseException) -> InputError | None:
    """The error to show where a full disk or too little memory is behind `error`; None for anything else.

    The libraries share no type for it (Python raises OSError and MemoryError, torch RuntimeError, ONNX
    Runtime and safetensors their own), so it is found by the words of the operating system and allocators.
    """
    for cause in _causes(error):
        said = " ".join(str(cause).split())[:300]
        words = said.lower()
        if any(known in words for known in _DISK):
            file = cause.filename if isinstance(cause, OSError) else None
            return InputError(
                f"the disk is full: cannot write {file or 'a file'}",
                expected="room for what is written, and for temporary files",
                got=said,
                next_step="free some space or write to another disk; TMPDIR moves the temporary files",
            )
        if isinstance(cause, MemoryError) or any(known in words for known in _MEMORY):
            return InputError(
                "out of memory",
                expected="enough memory for the model and one batch",
                got=said or type(cause).__name__,
                next_step="take a smaller batch or fewer images, or close other programs",
            )
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and what it was raised from."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or (None if found.__suppress_context__ else found.__context__)
