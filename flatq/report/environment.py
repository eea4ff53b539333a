"""What a report says of the machine and the packages that it was made with. Nothing is measured here."""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path

from flatq.report.model import Environment

__all__ = ["environment"]


def environment() -> Environment:
    """Python, platform, processor and the versions of the packages that move the numbers."""
    versions = {}
    for name in (
        "flatq",
        "torch",
        "torchao",
        "diffusers",
        "onnx",
        "onnxruntime",
        "openvino",
        "torch-fidelity",
        "torchvision",
        "numpy",
    ):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.split(":", 1)[1].strip()
            for line in info.read_text().splitlines()
            if line.startswith("model name")
        ]
        cpu = f"{names[0]}, {len(names)} cores" if names else cpu
    return Environment(
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        versions=versions,
        cpu=cpu,
    )
