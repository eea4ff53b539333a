"""The package diffusers: found or missed by name, its log lines below errors silenced."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flatq.errors import MissingRuntimeError, one_line
from flatq.library_logs import quiet_import

__all__ = ["quiet_diffusers"]


@contextmanager
def quiet_diffusers() -> Iterator[Any]:
    """The package, its log lines below errors silenced: what it would say, flatq says itself.

    Raises:
        MissingRuntimeError: diffusers or torch is not installed, or diffusers cannot load its own parts (as
            0.36 beside torchao 0.18).
    """
    with quiet_import():
        try:
            import diffusers
            import torch  # noqa: F401  (without it diffusers is imported all the same, and fails on use)

            library: Any = diffusers
            _ = library.UNet2DModel, library.DDPMScheduler  # loaded on first use, which may fail
        except (ImportError, RuntimeError) as error:
            raise MissingRuntimeError(
                "diffusers is not installed or cannot be loaded",
                expected="the packages torch and diffusers, of versions that fit together",
                got=one_line(error),
                next_step='pip install "flatq[cpu]"',
            ) from error
        yield library
