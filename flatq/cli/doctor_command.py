"""`flatq doctor`."""

from __future__ import annotations

import importlib.metadata
from importlib.util import find_spec

import typer

__all__ = ["command"]


def command() -> None:
    """Say what is installed and what is missing."""
    import platform

    typer.echo(f"python {platform.python_version()} on {platform.system()} {platform.machine()}")
    packages = (
        "flatq",
        "torch",
        "torchao",
        "diffusers",
        "onnx",
        "onnxscript",
        "onnxruntime",
        "onnxruntime-gpu",
        "numpy",
    )
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    for name, version in found.items():
        typer.echo(f"{name} {version}")
    if {"onnxruntime", "onnxruntime-gpu"} <= set(found):
        typer.echo(
            "problem: onnxruntime and onnxruntime-gpu write the same folder; uninstall both, then install one"
        )
    for module, purpose in (
        ("torch", "train, quantize and export"),
        ("onnxruntime", "run deployment folders"),
    ):
        if find_spec(module) is None:
            typer.echo(f'missing: {module}, needed to {purpose}: pip install "flatq[cpu]"')
