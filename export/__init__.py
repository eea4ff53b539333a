"""Exporting: ONNX, OpenVINO's IR, TensorRT's engines, and the deployment folder around them.

Nothing here samples or judges. Lowering and writing ONNX needs torch, building an engine does not.
"""

from __future__ import annotations

from flatq.callable_package import make_callable

make_callable(__name__)
