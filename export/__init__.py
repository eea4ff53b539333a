"""Exporting: ONNX, OpenVINO's IR, TensorRT's engines, and the deployment folder around them.

Nothing here samples or judges. The names are loaded when asked for: lowering and writing ONNX needs torch,
building an engine from a folder that is there does not.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from flatq.callable_package import make_callable

if TYPE_CHECKING:
    from flatq.export.deploy import export_artifact, export_checkpoint
    from flatq.export.engine import build_engine

__all__ = ["build_engine", "export_artifact", "export_checkpoint"]

make_callable(__name__)

_HOMES = {"export_artifact": "deploy", "export_checkpoint": "deploy", "build_engine": "engine"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
