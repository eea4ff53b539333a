"""The page report.html: what stands on it, and that it is safe, whole and always the same."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from pages import MODELS, SECTIONS, add_pictures, changed_entry, gated_report, page_of, parse
from reports import RUNTIME, make_report

from flatq.errors import DataError
from flatq.evaluate.drift import Contrast
from flatq.evaluate.gate import Verdict
from flatq.evaluate.ladder import ERRORS, Ladder
from flatq.report.html.latency import Speed
from flatq.report.html.page import render_html
from flatq.report.html.page_models import PageSource
from flatq.report.model import ExtractorEntry
from flatq.report.write import write_html, write_report
from flatq.verify import Audit
from flatq.verify.results import AuditEntry


def test_the_page_stands_beside_the_report_and_loads_nothing(tmp_path: Path) -> None:
    gated_report(tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    document = parse(page)
    assert page.startswith('<!DOCTYPE html>\n<html lang="en">')
    assert not {e.tag for e in document.walk()} & {"script", "link", "iframe", "object", "form", "base"}
    for element in document.walk():
        for name, value in element.attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "srcset", "xlink:href"):
                assert str(value).startswith(("#", "data:image/png;base64,"))
    assert not re.search(r"url\((?!#)|@import|https?:", page)
    (policy,) = [m for m in document.all("meta") if m.attributes.get("http-equiv")]
    assert policy.attributes["content"] == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_the_outline(tmp_path: Path) -> None:
    document = page_of(gated_report(tmp_path), tmp_path)
    headings = [e for e in document.walk() if re.fullmatch(r"h\d", e.tag)]
    levels = [int(e.tag[1]) for e in headings]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))
    assert [s.attributes["id"] for s in document.all("section")] == SECTIONS
    for section in document.all("section"):
        assert document.by_id(section.attributes["aria-labelledby"] or "").tag == "h2"
    links = [a.attributes["href"] for a in document.all("a")]
    assert links == [f"#{name}" for name in SECTIONS]
    for table in document.all("table"):
        for cell in table.all("th"):
            assert cell.attributes.get("scope") in ("row", "col")
    for image in document.all("img"):
        assert image.attributes["alt"]


def test_the_verdict_comes_first(tmp_path: Path) -> None:
    report = gated_report(tmp_path)
    document = page_of(report, tmp_path)
    (head,) = document.all("h1")
    assert head.text == "Fail. Of 3 quantized models, 2 fail and 1 passes"
    banner = next(e for e in document.all("header") if "banner" in e.classes)
    assert "fail" in banner.classes
    assert "Tolerated: a drift of at most 0.5, at 95 % confidence." in banner.text
    main = document.all("main")[0].text
    assert main.index("Fail.") < main.index("The float model float and 3 quantized versions") < 600
    assert "each drew 400 images from the same noise" in main
    cards = document.all("li", "card")
    assert [card.classes - {"card"} for card in cards] == [{"pass"}, {"fail"}, {"fail"}]
    for card, entry in zip(cards, report.models, strict=True):
        assert entry.verdict is not None
        assert entry.verdict.reason in card.text
    assert "8\N{NON-BREAKING HYPHEN}bit weights" in cards[0].text


@pytest.mark.parametrize(
    ("models", "tolerance", "title"),
    [
        ({"w8a8": 0.0}, 0.5, "Pass. ema w8a8 is within the tolerance"),
        ({"w8a8": 1.0}, 0.5, "Fail. ema w8a8 is not within the tolerance"),
        ({}, 0.5, "Not gated. No models were compared"),
    ],
)
def test_titles(tmp_path: Path, models: dict[str, float], tolerance: float, title: str) -> None:
    document = page_of(gated_report(tmp_path, models, tolerance), tmp_path)
    assert document.all("h1")[0].text == title


def test_inconclusive_says_what_would_settle_it(tmp_path: Path) -> None:
    drift = make_report(tmp_path, {"w8a8": 0.3}).models[0].drift
    assert drift is not None
    assert drift.low is not None
    assert drift.corrected is not None
    report = gated_report(tmp_path, {"w8a8": 0.3}, (drift.low + drift.corrected) / 2)
    verdict = report.models[0].verdict
    assert verdict is not None
    assert verdict.outcome == "inconclusive"
    more = verdict.samples_to_settle
    document = page_of(report, tmp_path)
    assert document.all("h1")[0].text.startswith("Inconclusive.")
    assert f"about {more:,} images (-n {more})" in document.text
    never = replace(verdict, samples_to_settle=None)
    assert "no feasible number of images" in page_of(changed_entry(report, 0, verdict=never), tmp_path).text


def test_without_a_gate_nothing_is_judged(tmp_path: Path) -> None:
    document = page_of(make_report(tmp_path, {"w8a8": 0.1}), tmp_path)
    assert document.all("h1")[0].text == "Not gated. ema w8a8 was measured, but no tolerance was set"
    assert "flatq gate report.json --max-drift X" in document.text
    assert "tolerance" not in document.by_id("drift").all("svg")[0].text


def test_the_table_holds_the_numbers(tmp_path: Path) -> None:
    report = gated_report(tmp_path)
    table = page_of(report, tmp_path).by_id("numbers").all("table")[0]
    columns = [th.text for th in table.all("thead")[0].all("th")]
    assert columns == ["Measure", "float float", "ema w8a8 w8a8", "ema w4a8 w4a8", "ema broken broken"]
    rows = {}
    for tr in table.all("tbody")[0].all("tr"):
        name = tr.all("th")[0].children[0]
        rows[name] = [td.text.replace("\N{MINUS SIGN}", "-") for td in tr.all("td")]
        assert len(rows[name]) == 4
    drift, kid = report.models[0].drift, report.models[0].kid
    assert drift is not None
    assert kid is not None
    assert rows["Corrected drift"][1] == f"{drift.corrected:+.4g} [{drift.low:+.4g}, {drift.high:+.4g}]"
    assert rows["Raw drift"][1] == f"{drift.raw:+.4g}"
    assert rows["FID float"][:2] == [f"{drift.fid_float:.4g}"] * 2
    assert rows["FID quantized"][1] == f"{drift.fid_quantized:.4g}"
    assert rows["KID"][1] == f"{kid.drift:+.4g} [{kid.low:+.4g}, {kid.high:+.4g}]"
    assert rows["Verdict"] == ["baseline", "pass", "fail", "fail"]
    assert rows["Images"][0] == "400"
    assert rows["Size"] == ["4.00 MB", "1.00 MB", "1.00 MB", "1.00 MB"]
    text = page_of(report, tmp_path).by_id("numbers").text
    assert "ema broken: 400 of 400 images were not finite and count as mid-grey" in text
    assert "Latency" not in rows  # no report's, so no empty row


def test_the_extractor_warning(tmp_path: Path) -> None:
    text = page_of(make_report(tmp_path, {"w8a8": 0.1}), tmp_path).by_id("numbers").text
    assert "Not Inception FID." in text
    assert "never with Inception FID" in text
    net = ExtractorEntry(name="inception", digest="cd" * 32, dim=2048, kind="inception", published=True)
    text = page_of(make_report(tmp_path, {"w8a8": 0.1}, extractor=net), tmp_path).by_id("numbers").text
    assert "Not Inception FID" not in text
    assert "raw FIDs are of the standard kind" in text


def test_what_a_name_holds_is_text(tmp_path: Path) -> None:
    evil = "<img src=x onerror=alert(1)>&\"'{{ 70001 * 3 }}"
    report = gated_report(tmp_path, {"w8a8": 0.1})
    entry = report.models[0]
    assert entry.verdict is not None
    audit = Audit(
        target=evil,
        model_digest=evil,
        runtime={evil: evil},
        source=evil,
        unmatched=(evil,),
        entries=(
            AuditEntry(
                layer=evil, kind="conv2d", planned=True, kernels=(evil,), precision=evil, macs=1,
                integer=False, reason=evil,
            ),
        ),
    )  # fmt: skip
    fields = {
        "name": evil, "label": evil, "digest": evil, "runtime": {evil: evil}, "audit": audit,
        "sidecar": f"{evil}.npz", "verdict": Verdict("fail", evil, "fid"), "latency_ms": 1.0,
    }  # fmt: skip
    report = changed_entry(report, 0, **fields)
    report = report.model_copy(
        update={
            "labels": evil,
            "plan": {evil: evil},
            "created_with": evil,
            "extractor": report.extractor.model_copy(update={"name": evil, "preprocessing": evil}),
            "reference": report.reference.model_copy(update={"name": evil}),
            "baseline": report.baseline.model_copy(update={"name": evil, "runtime": {evil: evil}}),
            "environment": report.environment.model_copy(update={"cpu": evil, "versions": {evil: evil}}),
        }
    )
    speed = Speed(evil, evil, False, {1: 1.0})
    page = render_html([PageSource(report, tmp_path, notes=(evil,))], [speed])
    assert "<img src=x" not in page
    assert "210003" not in page
    document = parse(page)
    assert not document.all("img")
    assert document.text.count(evil) > 15
    assert not any("onerror" in e.attributes for e in document.walk())


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    report = gated_report(tmp_path)
    add_pictures(tmp_path, "w8a8", [0, 1, 200])
    code = (
        "import sys; from flatq.report.html.page import render_html; "
        "from flatq.report.html.page_models import PageSource; from flatq.report.model import read_report; "
        "from pathlib import Path; "
        "source = PageSource(read_report(sys.argv[1]), Path(sys.argv[1])); "
        "sys.stdout.buffer.write(render_html([source]).encode())"
    )
    write_report(report, tmp_path)
    found = {
        subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, check=True).stdout
        for _ in range(2)
    }
    found.add((tmp_path / "report.html").read_bytes())
    assert len(found) == 1


def _ladder(interval: bool) -> Ladder:
    def contrast(value: float) -> Contrast:
        ends = (value - 0.1, value + 0.1) if interval else (None, None)
        return Contrast(
            weights={}, raw=value, bias_correction=0.0 if interval else None,
            corrected=value if interval else None, standard_error=0.05 if interval else None,
            half_width=0.1 if interval else None, low=ends[0], high=ends[1], confidence=0.95, n=400,
            n_over_rank=9.0, reason=None if interval else "9 are too few",
        )  # fmt: skip

    values = {"export": 0.01, "quantization": 0.25, "kernel": -0.02, "total": 0.24}
    return Ladder(
        fids=dict(zip("ABCD", (1.0, 1.01, 1.25, 1.24), strict=True)),  # type: ignore[arg-type]
        runtimes={"A": RUNTIME, "B": RUNTIME, "C": RUNTIME, "D": RUNTIME},
        **{name: contrast(values[name]) for name in ERRORS},
    )


@pytest.mark.parametrize("interval", [True, False])
def test_the_ladder(tmp_path: Path, interval: bool) -> None:
    report = make_report(tmp_path, {"w8a8": 0.1})
    assert "ladder" not in [s.attributes["id"] for s in page_of(report, tmp_path).all("section")]
    document = page_of(changed_entry(report, 0, ladder=_ladder(interval)), tmp_path)
    section = document.by_id("ladder")
    errors, rungs = section.all("table")
    cells = [[cell.text for cell in tr.all("th") + tr.all("td")] for tr in errors.all("tr")[1:]]
    ends = "[+0.15, +0.35]" if interval else "none: 9 are too few"
    assert cells[1] == [
        "Quantization",
        "C \N{MINUS SIGN} A",
        "+0.25",
        "+0.25" if interval else "\N{EN DASH}",
        ends,
    ]
    assert [tr.all("td")[1].text for tr in rungs.all("tr")[1:]] == ["1", "1.01", "1.25", "1.24"]
    wide = section.all("svg")[0]
    assert {"Export", "Quantization", "Kernels", "Total"} <= {text.text for text in wide.all("text")}
    assert ("+0.25, no interval" in wide.text) is not interval
    assert "#ladder" in [a.attributes["href"] for a in document.all("a")]


def test_the_audit(tmp_path: Path) -> None:
    def layer(name: str, macs: int, integer: bool) -> AuditEntry:
        return AuditEntry(
            layer=name, kind="conv2d", macs=macs, planned=True, stored_bits=4, integer=integer,
            kernels=("QLinearConv",) if integer else ("Conv",), precision="u8s8" if integer else "f32",
            reason=None if integer else "left in float",
        )  # fmt: skip

    audit = Audit(
        target="onnxruntime",
        model_digest="ab" * 32,
        runtime=RUNTIME,
        source="a test",
        entries=(layer("a", 600, True), layer("b", 100, False), layer("c", 300, True)),
    )
    section = page_of(changed_entry(make_report(tmp_path, MODELS), 0, audit=audit), tmp_path).by_id("kernels")
    share = "90 % of 1,000 multiply-accumulates run in integers, in 2 of 3 layers."
    assert share in section.text
    integers, floats = section.all("table")
    assert [c.text for c in integers.all("tr")[1].all("td")] == ["u8s8", "4 bit", "2", "900"]
    assert floats.all("tr")[1].text == "b 100 Conv f32 left in float"
    (bar,) = [e for e in section.all("div", "share")[0].all("div") if "style" in e.attributes]
    assert bar.attributes["style"] == "width: 90%"
    assert "ema w4a8, ema broken" in section.text


def test_several_reports_on_one_page(tmp_path: Path) -> None:
    one = make_report(tmp_path / "a", {"w8a8": 0.1})
    two = make_report(tmp_path / "b", {"w4a8": 0.3})
    add_pictures(tmp_path / "a", "w8a8", [*range(24)])
    add_pictures(tmp_path / "b", "w4a8", [*range(20)])
    sources = [PageSource(one, tmp_path / "a"), PageSource(two, tmp_path / "b")]
    document = parse(render_html(sources))
    columns = document.by_id("numbers").all("thead")[0].all("th")
    assert [th.text for th in columns] == ["Measure", "float float", "ema w8a8 w8a8", "ema w4a8 w4a8"]
    panels = document.by_id("samples").all("img")  # on the same noise: one group, the images of both
    assert [p.attributes["alt"].split(":")[1] for p in panels] == [" images 0 to 19, 6 in a row"] * 3  # type: ignore[union-attr]
    assert len(document.by_id("again").all("pre")) == 2

    other = make_report(tmp_path / "c", {"w8a8": 0.3}, seed=1)
    document = parse(render_html([*sources, PageSource(other, tmp_path / "c")]))
    assert [h.text for h in document.by_id("changed").all("h3")] == [
        "ema w8a8 w8a8 #1",
        "ema w4a8",
        "ema w8a8 w8a8 #3",
    ]
    assert len(document.by_id("samples").all("div", "part")) == 2  # another seed
    other = make_report(tmp_path / "c", {"w8a8": 0.3}, noise_version=2)
    document = parse(render_html([*sources, PageSource(other, tmp_path / "c")]))
    assert len(document.by_id("samples").all("div", "part")) == 2  # another version of the noise

    net = ExtractorEntry(name="other", digest="00" * 32, dim=6)
    odd = make_report(tmp_path / "d", {"w8a8": 0.3}, extractor=net)
    with pytest.raises(DataError, match="do not compare"):
        render_html([*sources, PageSource(odd, tmp_path / "d")])


def test_writing_into_no_folder(tmp_path: Path) -> None:
    source = PageSource(make_report(tmp_path, {"w8a8": 0.1}), tmp_path)
    with pytest.raises(DataError, match="cannot write"):
        write_html([source], tmp_path / "none" / "a.html")
    assert write_html([source], tmp_path / "a.html").read_bytes() == (tmp_path / "report.html").read_bytes()


def _luminance(colour: str) -> float:
    """Relative luminance of WCAG 2.2."""
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_every_text_has_contrast_in_light_and_dark(tmp_path: Path) -> None:
    make_report(tmp_path, {})
    style = parse((tmp_path / "report.html").read_text()).all("style")[0].text
    schemes = re.findall(r":root \{([^}]*)\}", style)
    assert len(schemes) == 3  # light, dark, print
    for scheme in schemes:
        colours = {
            name: value if len(value) == 7 else "#" + "".join(2 * c for c in value[1:])
            for name, value in re.findall(r"--([\w-]+): (#\w+)", scheme)
        }
        states = ("pass", "fail", "inconclusive", "none")
        pairs = [(ink, paper) for ink in ("ink", "soft", "accent", *states) for paper in ("paper", "panel")]
        pairs += [(ink, f"{state}-tint") for state in states for ink in ("ink", "soft", state)]
        for ink, paper in pairs:
            light, dark = sorted((_luminance(colours[ink]), _luminance(colours[paper])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, paper, colours[ink], colours[paper])
