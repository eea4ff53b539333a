"""The study's file, its cells as numbers, ranks, and what cells cost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from planted import STUDY, Planted, planted_cell, write_study
from scipy.stats import spearmanr

from flatq.errors import DataError, UsageError
from flatq.study.config import StudyConfig, read_config
from flatq.study.estimate import cell_cost, measured_seconds
from flatq.study.expressions import Expression, Quantity
from flatq.study.findings import find
from flatq.study.results import CellResult
from flatq.study.values import Values

MODELS = {"adm": Planted(spread=0.1), "adm-early": Planted(lpf=0.07), "sam": Planted(lpf=0.05, spread=0.1)}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyConfig:
    return write_study(tmp_path_factory.mktemp("study"), MODELS)


@pytest.fixture(scope="module")
def cells(study: StudyConfig) -> list[CellResult]:
    return [planted_cell(cell, MODELS) for cell in study.cells()]


def test_each_quantity_is_taken_from_its_place(study: StudyConfig, cells: list[CellResult]) -> None:
    values, cell = Values(study, cells), cells[0]
    main, late = cell.images[0], next(r for r in cell.images if r.steps == 100)
    drift = main.quantized["naive8"].drift
    assert drift is not None
    assert drift.corrected is not None
    flat, exposure = cell.flatness[0].flatness, cell.exposure[0]
    noise = flat.noise[0]
    expected = {
        Quantity("fid", "adm", "raw"): main.fid,
        Quantity("fid", "adm", "raw", "naive8"): main.fid + drift.corrected,
        Quantity("drift", "adm", "raw", "naive8"): drift.corrected,
        Quantity("fid", "adm", "raw", steps=100): late.fid,
        Quantity("lpf", "adm", "raw"): noise.increase.overall.value,
        Quantity("lpf_error", "adm", "raw"): noise.increase.overall.standard_error,
        Quantity("lpf_total", "adm", "raw"): noise.loss.overall.value,
        Quantity("damage", "adm", "raw", "naive8"): flat.damage[0].weights.overall.value,
        Quantity("random_damage", "adm", "raw", "naive8"): flat.damage[0].random.overall.value,
        Quantity("exposure", "adm", "raw"): exposure.quantizers["float"].gap,
        Quantity("exposure", "adm", "raw", "naive8"): exposure.quantizers["naive8"].gap,
        Quantity("loss", "adm", "ema"): 0.1,
        Quantity("fid", "adm", "ema"): None,
        Quantity("fid", "adm", "raw", runtime="openvino"): None,
        Quantity("drift", "adm", "raw", "naive4", 100): None,
        Quantity("damage", "adm", "raw", "naive4"): None,
        Quantity("lpf", "adm", "ema"): None,
        Quantity("loss", "adm", "swa"): None,
        Quantity("exposure", "adm", "raw", "naive4"): None,
    }
    assert {quantity: values.value(quantity, 0) for quantity in expected} == expected
    assert values.value(Quantity("fid", "adm", "raw"), 99) is None


def test_contrasts_are_paired_by_seed(study: StudyConfig, cells: list[CellResult]) -> None:
    some = [cell for cell in cells if (cell.run, cell.seed) not in {("adm", 2), ("sam", 0)}]
    values = Values(study, some[::-1])
    contrast = values.contrast(Expression("fid(plain, raw) - fid(sam, raw)"), {"plain": "adm"})
    assert contrast.seeds == (1, 3, 4, 5)
    by_name = {(cell.run, cell.seed): cell.images[0].fid for cell in cells}
    assert contrast.values == pytest.approx([by_name["adm", s] - by_name["sam", s] for s in (1, 3, 4, 5)])
    assert values.contrast(Expression("mean(fid(adm, ema))"), {}).seeds == ()
    with pytest.raises(DataError, match="two cells hold the seed 1 of the run adm"):
        Values(study, [*cells, cells[2]])


def test_rank_agreement_is_spearmans(study: StudyConfig, cells: list[CellResult]) -> None:
    found = {a.measure: a for a in find(study, Values(study, cells)).agreement}
    flat = [result.flatness for cell in cells for result in cell.flatness]
    harm = [result.damage[0].weights.overall.value for result in flat]
    for name, agreement in found.items():
        expected = spearmanr([result.measures()[name] for result in flat], harm).statistic
        assert agreement.correlation == pytest.approx(expected)
        assert agreement.low <= agreement.correlation <= agreement.high
        assert (agreement.models, agreement.seeds) == (18, 6)
    assert found["noise absolute 0.01"].correlation > 0.9
    assert abs(found["kurtosis"].correlation) < 0.6


def test_a_question_without_a_finite_value_says_so(study: StudyConfig) -> None:
    negative = {**MODELS, "adm": replace(MODELS["adm"], lpf=-0.1)}
    text = STUDY.replace('"damage(adm, raw, naive8)"', '"log(damage(adm, raw, naive8))"')
    changed = StudyConfig.model_validate(study.model_dump() | _parsed(text))
    cells = [planted_cell(cell, negative) for cell in changed.cells()]
    (question,) = find(changed, Values(changed, cells)).questions
    assert question.values["ADM"] == "not finite at seed 0, 1, 2, 3, 4, 5"
    assert question.values["ADM with EMA"] == "not measured: no cell has damage(adm, ema, naive8)"


def _parsed(text: str) -> dict[str, object]:
    import tomllib

    return {"questions": tomllib.loads(text.replace("SEEDS", "6"))["questions"]}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('title = "A planted study"', 'titel = "x"', "titel|title"),
        ("seeds = SEEDS, models", "seeds = [0, 1, 0], models", "a seed twice"),
        ('adm-early = "loss"', 'adm-early = "later"', 'a moment is "end", "loss" or "step N"'),
        ('adm-early = "loss"', 'sam = "end"', "the model sam belongs to two runs"),
        (", snapshot_loss = 0.1", "", "has a model at a loss, but no snapshot_loss"),
        ('exposure = [{ models = ["adm"', 'exposure = [{ models = ["amd"', "names the model 'amd'"),
        ('damage = ["naive8"]', 'damage = ["naive9"]', "names the quantizer 'naive9'"),
        ('roles = { plain = "adm", flat = "sam" }', 'roles = { plain = "amd" }', "names the model 'amd'"),
        ("log(fid(flat", "log(fid(flta", "the claim C6 names the model 'flta'"),
        ('ADM = "damage(adm, raw, naive8)"', 'ADM = "damage(adm, raw, n8)"', "names the quantizer 'n8'"),
        (
            'plain = "adm-early"',
            'plian = "adm-early"',
            "the control ADM stopped at SAM's loss names the role",
        ),
        ("above = 0\n", "above = 0\nbelow = 1\n", "a condition needs `below` or `above`"),
        ("above = 0\n", 'above = "fid(sam, raw)"\n', "a threshold is a number"),
        ("steps = 100, seeds = 2", "n = 500", "of two numbers of images"),
    ],
)
def test_a_bad_study_is_refused_by_what_is_wrong(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "study.toml"
    assert old in STUDY
    path.write_text(STUDY.replace(old, new, 1).replace("SEEDS", "6"), encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        read_config(path)
    assert any(part in str(caught.value) for part in message.split("|"))


def test_costs_are_counted_by_hand(study: StudyConfig, cells: list[CellResult]) -> None:
    adm, sam = study.cells("adm-0")[0], study.cells("sam-5")[0]
    batch = study.train_config("adm", 0)
    assert batch is not None
    assert cell_cost(adm).passes == 30 * batch.batch_size
    assert cell_cost(sam).passes == 60 * batch.batch_size
    images = 1000 * 20 * 3  # float and two quantizers; the first two seeds also take 100 steps
    s = study.flatness_settings
    per_image = 2 * s.pairs * 3 + len(s.rhos) + len(s.adaptive_rhos) + s.random_draws + 2
    assert cell_cost(sam).evaluations == images + s.images * per_image + 2 * 1000 * 20 * 2
    assert cell_cost(adm).evaluations == (
        2 * images + 1000 * 100 * 2 + 2 * s.images * per_image + 2 * 1000 * 20 * 2
    )
    assert measured_seconds(sam, []) is None
    assert measured_seconds(sam, [cells[1]]) == pytest.approx(90.0)
