"""What a benchmark says for the plot of latency against drift in a report."""

from __future__ import annotations

from flatq.bench.result import BenchResult
from flatq.report.html.scatter import Speed

__all__ = ["speeds_of"]


def speeds_of(result: BenchResult) -> list[Speed]:
    """One for each entry, with the median for an image at each batch size."""
    return [
        Speed(
            label=entry.label,
            digest=entry.digest,
            runtime=str(entry.runtime.get("runtime")),
            is_float=entry.precision in ("fp32", "fp16", "bf16"),
            per_image_ms={measured.batch: measured.per_image_ms for measured in entry.measured},
        )
        for entry in result.entries
    ]
