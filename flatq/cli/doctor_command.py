"""`flatq doctor`."""

from __future__ import annotations

import importlib
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
        "torch-fidelity",
        "torchvision",
        "pyarrow",
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


def _torchvision_problem() -> str | None:
    """Why torchvision cannot be imported; None where it can."""
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        return " ".join(str(error).split())[:200]
    return None
