"""Several processes of one launch, for tests: started as torchrun starts them."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Mapping

__all__ = ["launch"]


def launch(
    program: list[str], *, count: int = 2, environment: Mapping[str, str] | None = None
) -> list[tuple[int, str, str]]:
    """Runs the program in `count` processes; the exit code, stdout and stderr of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(count):
        variables = os.environ | {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
        } | dict(environment or {})  # fmt: skip
        processes.append(
            subprocess.Popen(
                program, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    try:
        said = [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *both) for process, both in zip(processes, said, strict=True)]
