"""What is said of the CPU."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from flatq.runtime.cpu import cpu_flags, instruction_set, saturation_note


@pytest.mark.parametrize(
    ("text", "flags", "warned"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512_vnni\n", {"fpu", "avx2", "avx512_vnni"}, False),
        ("flags\t\t: avx2 avx_vnni\nvmx flags\t: vnmi\n", {"avx2", "avx_vnni"}, False),
        ("vmx flags\t: vnmi\nflags\t\t: fpu avx2\n", {"fpu", "avx2"}, True),
        ("processor\t: 0\nFeatures\t: fp asimd\n", None, False),
        ("", None, False),
    ],
)
def test_flags_and_what_follows_from_them(
    text: str, flags: set[str] | None, warned: bool, tmp_path: Path
) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(text)
    assert cpu_flags(path) == flags
    note = saturation_note(path)
    assert (note is not None) == warned
    assert note is None or "--bits 7" in note


def test_nothing_is_said_where_there_is_nothing_to_read(tmp_path: Path) -> None:
    assert cpu_flags(tmp_path / "none") is None
    assert saturation_note(tmp_path / "none") is None


def test_the_instruction_set_holds_what_kernels_are_chosen_by(tmp_path: Path) -> None:
    def of(text: str) -> str:
        (tmp_path / "cpuinfo").write_text(text)
        return instruction_set(tmp_path / "cpuinfo")

    machine = platform.machine()
    x86 = "vendor_id\t: GenuineIntel\nflags\t\t: fpu {} fma avx2 md_clear\n"
    assert of(x86.format("avx")) == f"{machine} GenuineIntel avx avx2 fma"
    assert of(x86.format("avx").replace("md_clear", "ibrs")) == of(x86.format("avx"))  # no kernel asks for it
    for other in ("avx avx_vnni", "avx amx_int8", "avx avx512f"):
        assert of(x86.format(other)) != of(x86.format("avx"))
    assert of(x86.format("avx").replace("GenuineIntel", "AuthenticAMD")) != of(x86.format("avx"))
    assert of("Features\t: fp asimd i8mm\n") == f"{machine} asimd fp i8mm"
    assert of("") == f"{machine} {platform.processor()}"
