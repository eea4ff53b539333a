"""`flatq demo` end to end on tiny settings: table, sentences and page agree."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from command_line import Cli

from flatq import demo

NUMBER = r"[+-]\d+\.\d+"
INTERVAL = re.compile(rf"({NUMBER}) to ({NUMBER})")


def drifts(table: list[str]) -> dict[tuple[str, str], tuple[str, str, str]]:
    """From the printed table: (bits, method) to drift, low and high as they are printed."""
    found = {}
    for line in table:
        method, _, bits, _, _, drift, interval, *_ = re.split(r"\s{2,}", line)
        low, high = INTERVAL.fullmatch(interval).groups()  # type: ignore[union-attr]
        found[bits, method] = drift, low, high
    return found


def expected(bits: str, found: dict[tuple[str, str], tuple[str, str, str]]) -> str:
    """The sentence that the numbers of the table call for."""
    moved = []
    for method in ("ADM", "SAM"):
        drift, low, high = found[bits, method]
        verb = "rises" if float(low) > 0 else "falls" if float(high) < 0 else "shows no change"
        moved.append(f"{method}'s FID {verb} ({drift}, {low} to {high})")
    (_, adm_low, adm_high), (_, sam_low, sam_high) = found[bits, "ADM"], found[bits, "SAM"]
    if float(sam_high) < float(adm_low):
        verdict = "SAM drifts less than ADM."
    elif float(sam_low) > float(adm_high):
        verdict = "SAM drifts more than ADM."
    else:
        verdict = "The intervals overlap: no difference between SAM and ADM is shown."
    return f"{bits}: {'; '.join(moved)}. {verdict}"


@pytest.mark.slow
def test_the_sentences_agree_with_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(demo._NETWORK, "channels", (8,))
    monkeypatch.setattr(demo, "_CALIBRATION", demo._CALIBRATION.model_copy(update={"images": 1, "steps": 2}))
    out = tmp_path / "demo"
    flatq = Cli(monkeypatch, capsys, "demo")
    assert flatq("-o", out, "--steps", 3, "-n", 150, "--threads", 1) == 0
    table, sentences, notes, page = flatq.out.split("\n\n")
    found = drifts(table.splitlines()[1:])
    widths = ["W8A8", "W4A8", "W4A4 plain"]
    assert list(found) == [(bits, method) for method in ("ADM", "SAM") for bits in widths]
    assert sentences.splitlines() == [expected(bits, found) for bits in widths]
    assert "One training run for each method" in notes
    assert page == f"Pictures and plot: {out / 'index.html'}\n"

    html = (out / "index.html").read_text(encoding="utf-8").replace("\N{MINUS SIGN}", "-")
    for line in sentences.splitlines():
        assert line.replace("'", "&#39;") in html
    for drift, low, high in found.values():
        assert f">{drift}</td>" in html
        assert f">{low} to {high}</td>" in html
    stages = [line for line in flatq.err.splitlines() if ": " in line]
    assert len(stages) == len(set(stages)) <= 20  # stderr is no terminal: a line for each stage, no bar
