"""What this machine's CPU says of itself, as far as it decides what integer kernels compute."""

from __future__ import annotations

from pathlib import Path

__all__ = ["cpu_flags", "saturation_note"]

_CPUINFO = Path("/proc/cpuinfo")
_VNNI = {"avx512_vnni", "avx_vnni", "amx_int8"}


def cpu_flags(cpuinfo: Path = _CPUINFO) -> frozenset[str] | None:
    """The flags of an x86 CPU; None where they are not known: another CPU, another system."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    flags = next((line.partition(":")[2] for line in lines if line.partition(":")[0].strip() == "flags"), "")
    return frozenset(flags.split()) or None


def saturation_note(cpuinfo: Path = _CPUINFO) -> str | None:
    """What to know of 8-bit weights on this CPU; None where it has VNNI, or is not known.

    Without VNNI an x86 CPU adds two products of a uint8 and an int8 in 16 bits, which saturate: 2 x 255 x 127
    does not fit, 2 x 255 x 64 does. ONNX Runtime and OpenVINO document it.
    """
    flags = cpu_flags(cpuinfo)
    if flags is None or flags & _VNNI:
        return None
    return (
        "this CPU has no VNNI: sums of products with 8-bit weights may saturate on it; "
        "`flatq quantize --bits 7` avoids that"
    )
