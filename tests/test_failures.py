"""What lies behind a library's error: the disk, memory, torch's compiler, or none of them."""

from __future__ import annotations

import errno
import os
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import Cli

from flatq.errors import EXIT_BUG
from flatq.failures import explained, shortage


@contextmanager
def _wrapped() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise ValueError("a library's own words") from error


def _disk() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "model.onnx")


def _safetensors_disk() -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
    try:
        with tempfile.TemporaryDirectory() as folder:
            safetensors.save_file({"a": torch.zeros(9999)}, Path(folder) / "a.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)


def _torch_memory() -> None:
    torch.empty(10**15)


def _numpy_memory() -> None:
    np.empty(10**15)


def _onnxruntime_memory() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    graph = helper.make_graph(
        [helper.make_node("ConstantOfShape", ["shape"], ["y"])],
        "large",
        [helper.make_tensor_value_info("shape", onnx.TensorProto.INT64, [1])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    session.run(None, {"shape": np.array([10**14])})


def _compiler() -> None:
    def no_compiler(graph: Any, inputs: Any) -> Any:
        raise FileNotFoundError("g++")

    torch.compile(lambda x: x + 1, backend=no_compiler)(torch.zeros(2))


CASES: list[tuple[Callable[[], None], str]] = [
    (_disk, "the disk is full: cannot write model.onnx"),
    (_safetensors_disk, "the disk is full: cannot write a file"),
    (_torch_memory, "out of memory"),
    (_numpy_memory, "out of memory"),
    (_onnxruntime_memory, "out of memory"),
    (_compiler, "torch.compile failed"),
]


@pytest.mark.parametrize(("fail", "says"), CASES)
def test_the_command_line_says_which(
    fail: Callable[[], None],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(path: object) -> None:
        with _wrapped():
            fail()

    monkeypatch.setattr("flatq.report.model.read_report", run)
    cli = Cli(monkeypatch, capsys)
    assert cli("report", tmp_path) == 2
    assert f"flatq: {says}" in cli.err
    assert "next:" in cli.err
    assert "bug" not in cli.err


def test_other_errors_are_left_alone() -> None:
    for error in (
        ValueError("no"),
        OSError(errno.EACCES, "Permission denied"),
        RuntimeError("shapes differ"),
    ):
        assert explained(error) is None
        assert shortage(error) is None


def test_the_broken_pipe_of_another_process_is_no_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """typer ends a command with 1, a failed gate, at any EPIPE."""

    def run(path: object) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr("flatq.report.model.read_report", run)
    monkeypatch.setattr(sys, "argv", ["flatq", "report", str(tmp_path)])
    from flatq.cli import main

    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == EXIT_BUG
    assert "BrokenPipeError" in capsys.readouterr().err
