"""Optional packages: imported, or missed by name."""

from __future__ import annotations

import importlib
from typing import Any

from flatq.errors import MissingRuntimeError, one_line

__all__ = ["require"]


def require(module: str, name: str, extra: str, package: str | None = None) -> Any:
    """An optional module.

    Args:
        module: dotted name of the module.
        name: of the package in the error message.
        extra: of flatq, which installs it.
        package: name on the package index, where it is not the module's.

    Raises:
        MissingRuntimeError: it is not installed, or the libraries behind it are not.
    """
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:
        raise MissingRuntimeError(
            f"{name} is not installed",
            expected=f"the package {package or module}",
            got=one_line(error),
            next_step=f'pip install "flatq[{extra}]"',
        ) from error
