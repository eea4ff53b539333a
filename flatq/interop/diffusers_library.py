"""The package diffusers: found or missed by name, and kept quiet while it works for flatq."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flatq.errors import MissingRuntimeError
from flatq.library_logs import quiet_import

__all__ = ["quiet_diffusers"]


@contextmanager
def quiet_diffusers() -> Iterator[Any]:
    """The package, its log below errors and its progress bars silenced: what it would say, flatq says itself.

    Raises:
        MissingRuntimeError: diffusers or torch is not installed, or diffusers cannot load its own parts (as
            0.36 beside torchao 0.18).
    """
    try:
        import diffusers
        import torch  # noqa: F401  (without it diffusers is imported all the same, and fails on use)
        from diffusers.utils import logging
    except ImportError as error:
        raise _missing("diffusers is not installed", error) from error
    library, talk = _as_any(diffusers), _as_any(logging)
    verbosity, bars = talk.get_verbosity(), talk.is_progress_bar_enabled()
    talk.set_verbosity_error()
    talk.disable_progress_bar()
    try:
        try:
            with quiet_import():
                _ = library.UNet2DModel, library.DDPMScheduler  # loaded on first use, which may fail
        except (ImportError, RuntimeError) as error:
            raise _missing("diffusers is installed but cannot be loaded", error) from error
        yield library
    finally:
        talk.set_verbosity(verbosity)
        if bars:
            talk.enable_progress_bar()


def _as_any(module: Any) -> Any:
    """Most of diffusers is not typed."""
    return module


def _missing(what: str, error: Exception) -> MissingRuntimeError:
    return MissingRuntimeError(
        what,
        expected="the packages torch and diffusers, of versions that fit together",
        got=" ".join(str(error).split())[:300],
        next_step='pip install "flatq[cpu]"',
    )
