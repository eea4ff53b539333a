"""Exporting: ONNX files and the deployment folder around them. Nothing here samples or judges."""

from __future__ import annotations

from flatq.export.deploy import export_artifact, export_checkpoint

__all__ = ["export_artifact", "export_checkpoint"]
