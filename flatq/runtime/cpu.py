"""What this machine's CPU says of itself, as far as it decides what kernels compute."""

from __future__ import annotations

import platform
from pathlib import Path

__all__ = ["cpu_flags", "instruction_set", "saturation_note"]

_CPUINFO = Path("/proc/cpuinfo")
_VNNI = {"avx512_vnni", "avx_vnni", "amx_int8"}


def cpu_flags(cpuinfo: Path = _CPUINFO) -> frozenset[str] | None:
    """The flags of an x86 CPU; None where they are not known: another CPU, another system."""
    return frozenset(_words(cpuinfo, "flags")) or None


def instruction_set(cpuinfo: Path = _CPUINFO) -> str:
    """The architecture, the CPU's vendor and its vector instructions: libraries choose kernels by these.

    Where the system lists no instructions, the processor's name stands for them.
    """
    flags = _words(cpuinfo, "flags")
    vector = {flag for flag in flags if flag.startswith(("avx", "amx", "f16c", "fma", "sse4"))}
    known = vector or set(_words(cpuinfo, "Features")) or {platform.processor()}
    return " ".join([platform.machine(), *_words(cpuinfo, "vendor_id"), *sorted(known)])


def saturation_note(cpuinfo: Path = _CPUINFO) -> str | None:
    """What to know of 8-bit weights on OpenVINO on this CPU; None where it has VNNI, or is not known.

    Without VNNI an x86 CPU adds two products of a uint8 and an int8 in 16 bits, which saturate: 2 x 255 x 127
    does not fit, 2 x 255 x 64 does. OpenVINO documents it; ONNX Runtime is told to use unsigned weights.
    """
    flags = cpu_flags(cpuinfo)
    if flags is None or flags & _VNNI:
        return None
    return (
        "this CPU has no VNNI: sums of products with 8-bit weights may saturate on OpenVINO; "
        "`flatq quantize --bits 7` avoids that"
    )


def _words(cpuinfo: Path, key: str) -> list[str]:
    """What the first line of this key lists; nothing where there is none."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    pairs = (line.partition(":") for line in lines)
    return next((value.split() for name, _, value in pairs if name.strip() == key), [])
