"""The package diffusers: found or missed by name, and kept quiet while it works for flatq."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flatq.errors import MissingRuntimeError

__all__ = ["quiet_diffusers"]


@contextmanager
def quiet_diffusers() -> Iterator[Any]:
    """The package, its log below errors and its progress bars silenced: what it would say, flatq says itself.

    Raises:
        MissingRuntimeError: diffusers or torch is not installed.
    """
    try:
        import diffusers
        import torch  # noqa: F401  (without it diffusers is imported all the same, and fails on use)
        from diffusers.utils import logging
    except ImportError as error:
        raise MissingRuntimeError(
            "diffusers is not installed",
            expected="the packages torch and diffusers",
            got=str(error),
            next_step='pip install "flatq[cpu]"',
        ) from error
    talk: Any = logging
    verbosity, bars = talk.get_verbosity(), talk.is_progress_bar_enabled()
    talk.set_verbosity_error()
    talk.disable_progress_bar()
    try:
        yield diffusers
    finally:
        talk.set_verbosity(verbosity)
        if bars:
            talk.enable_progress_bar()
