"""`flatq doctor`."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
from contextlib import suppress
from importlib.util import find_spec

import typer

from flatq.errors import MissingRuntimeError, one_line
from flatq.runtime.cpu import saturation_note

__all__ = ["command"]

_PACKAGES = (
    "flatq",
    "torch",
    "torchao",
    "diffusers",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "cuda-bindings",
    "numpy",
    "torch-fidelity",
    "torchvision",
    "pyarrow",
)
_NEEDED = (
    ("torch", "train, quantize and export", "cpu"),
    ("onnxruntime", "run deployment folders of ONNX Runtime", "cpu"),
    ("openvino", "export for OpenVINO and run it", "openvino"),
    ("tensorrt", "build and run TensorRT engines", "tensorrt"),
)


def command() -> None:
    """List installed packages, what each runtime can do on this machine, and what is missing."""
    typer.echo(f"python {platform.python_version()} on {platform.system()} {platform.machine()}")
    problem = saturation_note()
    if problem is not None:
        typer.echo(f"note: {problem}")
    found = {}
    for name in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
            typer.echo(f"{name} {found[name]}")
    if {"onnxruntime", "onnxruntime-gpu"} <= set(found):
        typer.echo(
            "problem: onnxruntime and onnxruntime-gpu write the same folder; uninstall both, then install one"
        )
    for module, purpose, extra in _NEEDED:
        if find_spec(module) is None:
            typer.echo(f'missing: {module}, needed to {purpose}: pip install "flatq[{extra}]"')
        elif abilities := _abilities(module):
            typer.echo(f"{module}: {abilities}")
    for name, purpose, pip in (
        ("torch-fidelity", "--features inception", '"flatq[fid]"'),
        ("pyarrow", "images in .parquet files", '"flatq[parquet]"'),
    ):
        if name not in found:
            typer.echo(f"optional, not installed: {name}, for {purpose}: pip install {pip}")
    if {"torch", "torchvision"} <= set(found):
        problem = _torchvision_problem()
        if problem is not None:
            typer.echo(
                f"problem: torchvision {found['torchvision']} does not fit torch {found['torch']}, and "
                f"diffusers fails with it ({problem}); install both from one index, or uninstall torchvision"
            )


def _abilities(module: str) -> str:
    """What an installed runtime says that it can do on this machine; empty for torch."""
    if module == "onnxruntime":
        from flatq.runtime.onnxruntime import import_onnxruntime

        return "providers " + ", ".join(import_onnxruntime().get_available_providers())
    if module == "openvino":
        from flatq.runtime.openvino import import_openvino

        core = import_openvino().Core()
        return "CPU with " + ", ".join(sorted(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")))
    if module == "tensorrt":
        from flatq.runtime.cuda import open_device

        try:
            device = open_device()
        except MissingRuntimeError as error:
            return f"{error.what} ({error.got})"
        return f"{device.name}, {device.architecture}"
    return ""


def _torchvision_problem() -> str | None:
    """Why torchvision cannot be imported; None where it can."""
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        return one_line(error)
    return None
