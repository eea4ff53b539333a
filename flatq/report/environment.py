"""The machine, the packages and the commit of the code that results were made with."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from contextlib import suppress
from pathlib import Path

from flatq.report.model import Environment

__all__ = ["environment", "source_commit"]


_PACKAGES = "flatq torch torchao diffusers onnx onnxruntime openvino torch-fidelity torchvision numpy"


def environment() -> Environment:
    """Python, platform, processor and the versions of the packages that move the numbers."""
    versions = dict.fromkeys(_PACKAGES.split(), "not installed")
    for name in versions:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
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


def source_commit() -> str | None:
    """The commit of the checkout that flatq was imported from, "+" behind it where files differ from it;
    else the variable FLATQ_COMMIT; None without both."""
    root = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        run = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
        return run.stdout.strip()

    try:
        # of the packages alone: results that were written since are no change of the code
        changed = git("status", "--porcelain", "--", "flatq", "train", "export", "calib")
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("FLATQ_COMMIT") or None
