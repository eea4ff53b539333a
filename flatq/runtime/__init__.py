"""Running models: one file for each backend, one protocol. Nothing here makes files or samples images."""

from __future__ import annotations

from flatq.runtime.base import Condition, Runtime, default_threads

__all__ = ["Condition", "Runtime", "default_threads"]
