"""Warnings and log lines of other libraries, which are not the user's business unless asked for."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["quiet_import", "quiet_libraries"]


@contextmanager
def quiet_import() -> Iterator[None]:
    """Keep log lines below errors off stderr while libraries are imported, unless FLATQ_DEBUG is set.

    torchao and diffusers log which of their optional parts are missing, which flatq does not use.
    """
    before = logging.root.manager.disable
    if not os.environ.get("FLATQ_DEBUG"):
        logging.disable(max(before, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep other libraries' Python warnings and log lines below errors off stderr, unless FLATQ_DEBUG is set.

    flatq itself logs nothing: what the user is to know it prints. A warning that a filter turns into an error
    is still raised.
    """
    if os.environ.get("FLATQ_DEBUG"):
        yield
        return
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # read when torch is loaded
    logging.captureWarnings(True)  # so that they are log lines too
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        logging.captureWarnings(False)
