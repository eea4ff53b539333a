"""A file or a folder is whole or not there, and what killed processes leave is removed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flatq.files import replacing

_WRITER = """
import sys
from pathlib import Path
from flatq.files import replacing

with replacing(Path(sys.argv[1])) as temporary:
    temporary.mkdir()
    (temporary / "part").write_text("whole")
    print("written", flush=True)
    sys.stdin.readline()
"""


def _writer(folder: Path) -> subprocess.Popen[str]:
    """A process that has written `folder` but for the last step, which it makes when told."""
    process = subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "written\n"
    return process


def test_leftovers_of_a_killed_process_are_removed_and_a_living_ones_work_is_not(tmp_path: Path) -> None:
    with _writer(tmp_path / "killed") as killed, _writer(tmp_path / "living") as living:
        killed.kill()
        killed.wait()
        assert len(list(tmp_path.iterdir())) == 2
        with replacing(tmp_path / "file") as temporary:
            temporary.write_text("x")
        (left,) = (path for path in tmp_path.iterdir() if path.name != "file")
        assert (left / "living" / "part").read_text() == "whole"
        living.communicate("\n")
        assert living.returncode == 0
    assert (tmp_path / "living" / "part").read_text() == "whole"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "living"]


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), replacing(path) as temporary:
        temporary.with_name("other").write_text("new")
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "old"


def test_a_folder_has_the_permissions_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with replacing(tmp_path / "folder") as temporary:
            temporary.mkdir()
    finally:
        os.umask(before)
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o750
