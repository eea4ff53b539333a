"""What a measurement says of the machine that it was made on."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from flatq.report.environment import environment
from flatq.report.model import Environment
from flatq.runtime.base import default_threads

__all__ = ["Machine", "this_machine"]


class Machine(BaseModel):
    """Attributes:
    int8_instructions: of the processor, as the system names them; empty where it tells none.
    cores: that this process may use.
    load_average: over 1, 5 and 15 minutes when the measurement began; None where the system tells none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    environment: Environment
    int8_instructions: tuple[str, ...]
    cores: int
    load_average: tuple[float, float, float] | None


def this_machine() -> Machine:
    """The machine as it is now."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    flags = next((line.split(":")[1].split() for line in lines if line.startswith("flags")), [])
    return Machine(
        environment=environment(),
        int8_instructions=tuple(sorted(f for f in flags if "vnni" in f or "amx_int8" in f)),
        cores=default_threads(),
        load_average=os.getloadavg() if hasattr(os, "getloadavg") else None,
    )
