"""Subpackages that bear the name of a verb of `flatq.api`, and can be called as that verb.

`flatq.train` is a package and a verb at once: `flatq.train(config, "run")` trains, and
`from flatq.train import TrainConfig` imports, whichever came first.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

__all__ = ["make_callable"]


class _Verb(ModuleType):
    @property
    def __wrapped__(self) -> Callable[..., Any]:
        """The verb; `inspect.signature` and `help` follow it."""
        verb: Callable[..., Any] = getattr(
            importlib.import_module("flatq.api"), self.__name__.rpartition(".")[2]
        )
        return verb

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__wrapped__(*args, **kwargs)


def make_callable(package: str) -> None:
    """Let a package be called as the function of the same name in `flatq.api`."""
    sys.modules[package].__class__ = _Verb
