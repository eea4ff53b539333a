"""What the gate leaves for CI: JSON and its schema, JUnit XML, Markdown, and the action's script."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from command_line import Cli
from reports import make_report

from flatq.assessment import OnInconclusive
from flatq.evaluate.gate import Tolerances
from flatq.evaluate.looks import Looks
from flatq.report.gating import regate, with_verdicts
from flatq.report.result import GateResult, gate_result, junit, summary
from flatq.report.schema import FOLDER, MODELS, schema_text

ROOT = Path(__file__).parents[2]
MODELS_OF_ALL_KINDS = {"good": 0.02, "bad": 1.0, "broken": float("nan")}


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    return Cli(monkeypatch, capsys)


def _result(
    folder: Path, on_inconclusive: OnInconclusive = "error", min_samples: int | None = None
) -> GateResult:
    report = make_report(folder, MODELS_OF_ALL_KINDS)
    tolerances = Tolerances(0.5, min_samples=min_samples)
    judged = with_verdicts(report, regate(report, tolerances), tolerances)
    return gate_result(judged, on_inconclusive, notes=["a|note\nof two lines"])


@pytest.mark.parametrize("name", list(MODELS))
def test_the_published_schema_is_that_of_the_model(name: str) -> None:
    """After a change of a model: python -m flatq.report.schema."""
    published = resources.files("flatq.report") / "schemas" / f"{name}.schema.json"
    assert published.read_text(encoding="utf-8") == schema_text(name)
    assert {path.name for path in FOLDER.iterdir()} == {f"{known}.schema.json" for known in MODELS}


def _validate(name: str, text: str) -> Any:
    jsonschema = pytest.importorskip("jsonschema")
    content = json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))
    schema = json.loads((FOLDER / f"{name}.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    errors = sorted(jsonschema.Draft202012Validator(schema).iter_errors(content), key=str)
    assert not errors, errors[0]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema).validate({**content, "unknown": 1})
    return content


def test_what_is_written_fits_the_schemas(tmp_path: Path) -> None:
    result = _result(tmp_path)
    assert _validate("gate", result.model_dump_json())["outcome"] == "fail"
    report = make_report(tmp_path, MODELS_OF_ALL_KINDS, gate=Tolerances(0.5))
    kid = report.models[0].kid
    assert kid is not None
    endless = type(kid)(**{**vars(kid), "variance_share": float("inf")})
    entry = report.models[0].model_copy(update={"looks": Looks((9, 400), 0.95, 2), "kid": endless})
    assert '"Infinity"' in entry.model_dump_json()
    _validate("report", report.model_copy(update={"models": [entry, *report.models[1:]]}).model_dump_json())


@pytest.mark.parametrize(
    ("choice", "counts"), [("error", (2, 1, 0)), ("fail", (3, 0, 0)), ("pass", (2, 0, 1))]
)
def test_junit(tmp_path: Path, choice: OnInconclusive, counts: tuple[int, int, int]) -> None:
    result = _result(tmp_path, choice)
    few = _result(tmp_path, choice, min_samples=10**6)
    mixed = result.model_copy(update={"models": [*result.models, few.models[0]]})
    suite = ElementTree.fromstring(junit(mixed))
    assert suite.tag == "testsuite"
    assert tuple(int(suite.get(key, "")) for key in ("failures", "errors", "skipped")) == counts
    assert int(suite.get("tests", "")) == len(suite.findall("testcase")) == 4
    good, bad, broken, _ = suite.findall("testcase")
    assert good.find("failure") is None
    assert "is above the tolerated 0.5" in str(bad.find("failure").get("message"))  # type: ignore[union-attr]
    assert "not finite" in str(broken.find("failure").text)  # type: ignore[union-attr]


def test_junit_of_names_that_xml_does_not_allow(tmp_path: Path) -> None:
    result = _result(tmp_path)
    odd = result.models[0].model_copy(update={"name": "a<b>&\x00\x1b"})
    suite = ElementTree.fromstring(junit(result.model_copy(update={"models": [odd]})))
    assert suite.find("testcase").get("name") == "a<b>&??"  # type: ignore[union-attr]


def test_the_summary(tmp_path: Path) -> None:
    text = summary(_result(tmp_path))
    assert text.startswith("## flatq gate: FAIL\n")
    assert "Tolerated: drift at most 0.5. Distances in the features of digits48." in text
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(table) == 5
    assert all(line.count("|") == 6 for line in table)
    assert "| ema broken | fail | - | 400 | - |" in table
    assert "- Note: a\\|note of two lines." in text


def test_the_command_writes_them_all(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_report(tmp_path / "new", {"w8": 0.02})
    make_report(tmp_path / "old", {"w8": 0.02})
    step = tmp_path / "step.md"
    step.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(step))
    files = ("--junit", tmp_path / "junit.xml", "--markdown", tmp_path / "page.md", "--json")
    assert cli("gate", tmp_path / "new", "--max-drift", 0.5, *files) == 0
    content = _validate("gate", cli.out)
    assert (content["outcome"], content["exit_code"], content["against"]) == ("pass", 0, "float model")
    page = (tmp_path / "page.md").read_text()
    assert step.read_text() == "before\n" + page
    assert ElementTree.parse(tmp_path / "junit.xml").getroot().get("failures") == "0"
    more = ("--baseline", tmp_path / "old", "--max-drift", 0.5, "--json")
    assert cli("gate", tmp_path / "new", *more) == 0
    content = _validate("gate", cli.out)
    assert content["against"] == "earlier report"
    assert content["models"][0]["difference"]["paired"]
    assert "Tolerated over the earlier report" in step.read_text()
    assert cli("gate", tmp_path / "new", "--max-drift", 0.5, "--junit", tmp_path / "no" / "a.xml") == 2


def _action(folder: Path, **inputs: str) -> tuple[int, str, dict[str, str]]:
    """Runs the action's script with `flatq` and `python` of this environment on the path."""
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    for name, arguments in (("flatq", "-m flatq "), ("python", "")):
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments}"$@"\n')
        program.chmod(0o755)
    outputs = folder / "outputs.txt"
    outputs.unlink(missing_ok=True)
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith(("FLATQ_", "GITHUB_"))},
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "GITHUB_OUTPUT": str(outputs),
        "GITHUB_STEP_SUMMARY": str(folder / "summary.md"),
        **{f"FLATQ_{key.upper()}": value for key, value in inputs.items()},
    }
    done = subprocess.run(
        ["bash", ROOT / "tools" / "action.sh"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    found = outputs.read_text().splitlines() if outputs.exists() else []
    return done.returncode, done.stderr, dict(line.split("=", 1) for line in found)


@pytest.mark.slow
def test_the_script_of_the_action(tmp_path: Path) -> None:
    make_report(tmp_path / "my report", {"w8": 0.3})
    make_report(tmp_path / "old", {"w8": 0.3})
    code, error, outputs = _action(tmp_path, report="my report", max_drift="5", junit="a b.xml")
    assert (code, outputs.get("outcome")) == (0, "pass"), error
    assert (tmp_path / "a b.xml").is_file()
    assert "flatq gate: PASS" in (tmp_path / "summary.md").read_text()
    code, error, outputs = _action(tmp_path, report="my report", max_drift="0.001", max_drift_rel="5")
    assert (code, outputs["exit-code"], outputs["outcome"]) == (1, "1", "fail"), error
    many = {"report": "my report", "max_drift": "5", "min_samples": "500"}
    code, error, outputs = _action(tmp_path, **many)
    assert (code, outputs["outcome"], outputs["report"]) == (4, "inconclusive", "my report"), error
    assert _action(tmp_path, **many, on_inconclusive="pass")[0] == 0
    code, error, _ = _action(tmp_path, report="my report", previous="old", max_drift="0.2", confidence="0.9")
    assert code == 0, error
    code, error, outputs = _action(tmp_path, report="nothing", max_drift="1")
    assert (code, outputs) == (2, {})
    assert "cannot be read" in error
    injected = "x; touch injected"
    assert _action(tmp_path, report="my report", max_drift=injected)[0] == 2
    evaluated = _action(tmp_path, max_drift="5", eval_args="no-model --fid $(touch injected)")
    assert evaluated[0] == 2, evaluated[1]
    assert not (tmp_path / "injected").exists()


def test_the_action_hands_every_input_to_its_script() -> None:
    yaml = pytest.importorskip("yaml")
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    (step,) = action["runs"]["steps"]
    assert action["runs"]["using"] == "composite"
    assert step["run"].split()[1].endswith('/tools/action.sh"')
    given = {f"FLATQ_{name.upper().replace('-', '_')}": name for name in action["inputs"]}
    for variable, name in given.items():
        assert step["env"][variable] == f"${{{{ inputs.{name} }}}}"
    script = (ROOT / "tools" / "action.sh").read_text()
    for variable in step["env"]:
        assert variable in script
    for name, output in action["outputs"].items():
        assert output["value"] == f"${{{{ steps.gate.outputs.{name} }}}}"
        assert f'echo "{name}=' in script


def test_the_worked_workflow_uses_what_the_action_offers() -> None:
    yaml = pytest.importorskip("yaml")
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    workflow = yaml.safe_load((ROOT / "examples" / "drift-gate.yml").read_text())
    steps = [step for step in workflow["jobs"]["gate"]["steps"] if "flatq@" in step.get("uses", "")]
    assert len(steps) == 2
    for step in steps:
        assert set(step["with"]) <= set(action["inputs"])


def test_the_worked_workflow_ships_no_samples() -> None:
    """Of the cache folder only the reference goes from machine to machine."""
    yaml = pytest.importorskip("yaml")
    workflow = yaml.safe_load((ROOT / "examples" / "drift-gate.yml").read_text())
    steps = workflow["jobs"]["gate"]["steps"]
    (cache,) = {step["env"]["FLATQ_CACHE"] for step in steps if "FLATQ_CACHE" in step.get("env", {})}
    shipped = {
        line.strip()
        for step in steps
        if step.get("uses", "").startswith("actions/")
        for line in step.get("with", {}).get("path", "").splitlines()
    }
    assert {path for path in shipped if path.startswith(cache)} == {f"{cache}/reference"}
    assert not shipped & {".", "./"}


def test_the_options_of_the_worked_workflow_exist(cli: Cli) -> None:
    yaml = pytest.importorskip("yaml")
    workflow = yaml.safe_load((ROOT / "examples" / "drift-gate.yml").read_text())
    used = {
        word
        for step in workflow["jobs"]["gate"]["steps"]
        for word in step.get("with", {}).get("eval-args", "").split()
        if word.startswith("--")
    }
    assert used
    assert cli("eval", "--help") == 0
    for option in used:
        assert option in cli.out
