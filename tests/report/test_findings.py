"""The demo's sentences on planted drifts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from flatq.report.findings import MethodResult, findings

ADM = (0.30, 0.20, 0.40)


def result(method: str, interval: tuple[float, float, float] | None, bits: str = "W8A8") -> MethodResult:
    drift: Any = SimpleNamespace(corrected=None, low=None, high=None, reason="too few samples")
    if interval is not None:
        drift = SimpleNamespace(**dict(zip(("corrected", "low", "high"), interval, strict=True)))
    entry: Any = SimpleNamespace(drift=drift)
    return MethodResult(method, "EMA", bits, entry)


@pytest.mark.parametrize(
    ("adm", "sam", "sentence"),
    [
        (
            ADM,
            (0.05, -0.02, 0.12),
            "ADM's FID rises (+0.300, +0.200 to +0.400); SAM's FID shows no change (+0.050, -0.020 to +0.120)"
            ". SAM drifts less than ADM.",
        ),
        (
            ADM,
            (0.60, 0.41, 0.79),
            "ADM's FID rises (+0.300, +0.200 to +0.400); SAM's FID rises (+0.600, +0.410 to +0.790). "
            "SAM drifts more than ADM.",
        ),
        (
            ADM,
            (0.15, 0.05, 0.25),
            "ADM's FID rises (+0.300, +0.200 to +0.400); SAM's FID rises (+0.150, +0.050 to +0.250). "
            "The intervals overlap: no difference between SAM and ADM is shown.",
        ),
        (
            ADM,
            (-0.20, -0.30, -0.10),
            "ADM's FID rises (+0.300, +0.200 to +0.400); SAM's FID falls (-0.200, -0.300 to -0.100). "
            "SAM drifts less than ADM.",
        ),
        (
            ADM,
            None,
            "ADM's FID rises (+0.300, +0.200 to +0.400); SAM's drift has no interval (too few samples). "
            "SAM and ADM are not compared.",
        ),
    ],
    ids=["better", "worse", "overlapping", "negative", "no interval"],
)
def test_one_sentence_for_each_outcome(
    adm: tuple[float, float, float] | None, sam: tuple[float, float, float] | None, sentence: str
) -> None:
    assert findings([result("ADM", adm), result("SAM", sam)], "SAM", "ADM") == [f"W8A8: {sentence}"]


def test_bit_widths_are_told_apart() -> None:
    results = [result(m, d, bits) for m, d in (("ADM", ADM), ("SAM", None)) for bits in ("W8A8", "W4A8")]
    assert [line[:4] for line in findings(results, "SAM", "ADM")] == ["W8A8", "W4A8"]
