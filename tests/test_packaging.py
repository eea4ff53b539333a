"""What is installed is what is in the checkout, and importing it stays light."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
HEAVY = ("torch", "torchao", "diffusers", "onnx", "onnxruntime", "openvino", "tensorrt", "cuda")


def run(*command: str, cwd: Path, path: Path | None = None) -> str:
    env = dict(os.environ)
    env.pop("PYTHONPATH", None)
    if path is not None:
        env["PYTHONPATH"] = str(path)
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def packages_on_disk() -> set[str]:
    names = set()
    for top, package in (
        ("flatq", "flatq"),
        ("train", "flatq.train"),
        ("calib", "flatq.calib"),
        ("export", "flatq.export"),
    ):
        for init in (ROOT / top).rglob("__init__.py"):
            names.add(".".join([package, *init.parent.relative_to(ROOT / top).parts]))
    return names


def test_every_package_is_listed() -> None:
    setuptools = PROJECT["tool"]["setuptools"]
    assert packages_on_disk() == set(setuptools["packages"])
    assert setuptools["package-dir"] == {
        "flatq.train": "train",
        "flatq.calib": "calib",
        "flatq.export": "export",
    }


def test_no_python_file_lies_outside_a_package() -> None:
    for top in ("flatq", "train", "calib", "export"):
        for file in (ROOT / top).rglob("*.py"):
            assert (file.parent / "__init__.py").is_file(), f"{file.relative_to(ROOT)} would not be installed"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built wheel. Built from a copy, so that no build/ folder is left in the checkout."""
    tmp = tmp_path_factory.mktemp("wheel")
    source = tmp / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    for name in ("flatq", "train", "calib", "export"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    try:
        modern = int(version("setuptools").split(".")[0]) >= 77
    except ModuleNotFoundError:  # importlib.metadata.PackageNotFoundError is one
        modern = False
    isolation = ["--no-build-isolation"] if modern else []
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "-q", "--no-deps"]
    run(*pip, *isolation, "-w", str(tmp / "dist"), str(source), cwd=tmp)
    (built,) = (tmp / "dist").glob("flatq-*.whl")
    return built


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_the_wheel_imports_from_another_folder(unpacked: Path, tmp_path: Path) -> None:
    for name in ("flatq", "flatq.train", "flatq.calib", "flatq.export"):
        code = f"import {name}; print({name}.__file__)"
        where = run(sys.executable, "-c", code, cwd=tmp_path, path=unpacked).strip()
        assert Path(where) == unpacked.joinpath(*name.split("."), "__init__.py")


def test_the_wheel_holds_every_module_and_no_bare_one(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for top, package in (
        ("flatq", "flatq"),
        ("train", "flatq/train"),
        ("calib", "flatq/calib"),
        ("export", "flatq/export"),
    ):
        for file in (ROOT / top).rglob("*.py"):
            assert f"{package}/{file.relative_to(ROOT / top).as_posix()}" in names
    assert {name.split("/")[0] for name in names} == {"flatq", f"flatq-{version_in_source()}.dist-info"}


def test_the_wheel_holds_networks_presets_templates_and_the_type_marker(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    networks = sorted((ROOT / "flatq" / "evaluate" / "nets").glob("*.onnx"))
    assert networks
    for network in networks:
        assert f"flatq/evaluate/nets/{network.name}" in names
        assert f"flatq/evaluate/nets/{network.stem}.json" in names
    presets = sorted((ROOT / "train" / "presets").glob("*.toml"))
    assert presets
    for preset in presets:
        assert f"flatq/train/presets/{preset.name}" in names
    templates = sorted((ROOT / "flatq" / "report" / "templates").iterdir())
    assert templates
    for template in templates:
        assert f"flatq/report/templates/{template.name}" in names
    assert "flatq/py.typed" in names


def version_in_source() -> str:
    namespace: dict[str, str] = {}
    exec((ROOT / "flatq" / "__init__.py").read_text(encoding="utf-8"), namespace)
    return namespace["__version__"]


@pytest.mark.parametrize(
    "what",
    [
        "import flatq",
        "import flatq.api",
        # What `python -m flatq --help` does, with a look at sys.modules afterwards.
        "import runpy; sys.argv = ['flatq', '--help']; runpy.run_module('flatq', run_name='__main__')",
    ],
    ids=["import", "api", "help"],
)
def test_loads_neither_torch_nor_a_runtime(what: str, tmp_path: Path) -> None:
    code = f"""
import sys
try:
    {what}
except SystemExit as end:
    assert not end.code, end.code
loaded = [name for name in {HEAVY!r} if name in sys.modules]
assert not loaded, loaded
"""
    run(sys.executable, "-c", code, cwd=tmp_path)
