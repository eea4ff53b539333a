"""What the cells say: claims judged, controls and questions beside them, the pilot's choices.

The tests are `flatq.study.judging`'s, the numbers `flatq.study.values`'. No files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from flatq.study.claims import ClaimConfig, ConditionConfig
from flatq.study.config import StudyConfig
from flatq.study.expressions import Expression, Quantity
from flatq.study.judging import Claim, Condition, JudgedClaim, JudgedCondition, judge_claims
from flatq.study.records import Found
from flatq.study.values import Values

__all__ = [
    "DIFFERENCES",
    "Beside",
    "Choices",
    "ClaimFinding",
    "Findings",
    "QuestionFinding",
    "RankAgreement",
    "find",
]

F64 = NDArray[np.float64]

DIFFERENCES = " (differences over the mean, as a value lies within 2 standard errors of 0)"
"""Behind the name of a contrast whose log ratio is not one."""

_RESAMPLES = 2000


class Beside(Found):
    """The same claim with another model in a role; Holm's correction runs within the claim alone."""

    name: str
    weak: JudgedClaim | None
    paper: JudgedClaim | None


class ClaimFinding(Found):
    """A claim's two verdicts.

    Attributes:
        weak, paper: None without conditions of that form, or where one of them has no seed.
        missing: what was not measured at any seed, or not together; None where every condition has a seed.
        premise: what the claim presupposes; premise_absent: whether its interval excludes it.
        seeds: of each condition, weak form first; values: the contrast at each of them.
    """

    id: str
    title: str
    family: str
    missing: str | None
    weak: JudgedClaim | None
    paper: JudgedClaim | None
    premise: JudgedCondition | None
    premise_absent: bool
    beside: tuple[Beside, ...]
    seeds: tuple[tuple[int, ...], ...]
    values: tuple[tuple[float, ...], ...]


class QuestionFinding(Found):
    """Means and intervals of contrasts, by name; where there is none, the reason."""

    id: str
    title: str
    values: dict[str, JudgedCondition | str]


class RankAgreement(Found):
    """Spearman's correlation over cells of a flatness measure with the damage of one quantizer.

    low, high: 95 % interval by resampling the seeds. models: number of (model, seed) pairs.
    """

    measure: str
    quantizer: str
    weights: str
    correlation: float
    low: float
    high: float
    models: int
    seeds: int


class Choices(Found):
    """What the pilot chooses.

    Attributes:
        ratios: radius -> mean over seeds of the LPF increase, SAM's over plain's.
        rho: the radius. loss: SAM's mean held-out loss at that radius, raw weights.
        drift_at_8: of each candidate, plain's with EMA, over plain's FID.
        fid_ratio_at_4: of each candidate, FID of plain's raw weights over that without quantization.
        naive_at_8, naive_at_4: the quantizers.
    """

    ratios: dict[str, float]
    rho: float
    loss: float
    drift_at_8: dict[str, float]
    fid_ratio_at_4: dict[str, float]
    naive_at_8: str
    naive_at_4: str


class Findings(Found):
    """All that the cells of a study say."""

    claims: tuple[ClaimFinding, ...]
    questions: tuple[QuestionFinding, ...]
    agreement: tuple[RankAgreement, ...]
    choices: Choices | None


def find(study: StudyConfig, values: Values) -> Findings:
    """Judge every claim of a study by the cells that there are.

    Raises:
        DataError: a contrast that is not finite.
    """
    forms: tuple[Literal["weak", "paper"], ...] = ("weak", "paper")
    judged = {form: _judge_form(study, values, form) for form in forms}
    claims = []
    for claim in study.claims:
        premise = _estimate(claim.premise, claim.roles, values) if claim.premise else None
        conditions = [*claim.weak, *claim.paper]
        contrasts = [values.contrast(c.value, claim.roles) for c in conditions]
        found = {form: judged[form].get(claim.id) for form in forms}
        lacking = [c for c, contrast in zip(conditions, contrasts, strict=True) if not contrast.seeds]
        claims.append(
            ClaimFinding(
                id=claim.id,
                title=claim.title,
                family=claim.family,
                missing=_missing(lacking, claim.roles, values) if lacking else None,
                weak=found["weak"],
                paper=found["paper"],
                premise=premise,
                premise_absent=_absent(premise),
                beside=tuple(_beside(claim, study.controls, values)),
                seeds=tuple(contrast.seeds for contrast in contrasts),
                values=tuple(tuple(map(float, contrast.values)) for contrast in contrasts),
            )
        )
    questions = tuple(
        QuestionFinding(
            id=question.id,
            title=question.title,
            values={
                name: _answer(
                    ConditionConfig(name=name, value=value, above=Expression(0.0)), question.roles, values
                )
                for name, value in question.values.items()
            },
        )
        for question in study.questions
    )
    return Findings(
        claims=tuple(claims),
        questions=questions,
        agreement=tuple(_agreement(study, values)),
        choices=None if study.pilot is None else _choose(study, values),
    )


def _judge_form(study: StudyConfig, values: Values, form: Literal["weak", "paper"]) -> dict[str, JudgedClaim]:
    """The verdicts of one form, Holm's correction within each family."""
    found: dict[str, JudgedClaim] = {}
    for family in dict.fromkeys(claim.family for claim in study.claims):
        claims = [
            _measured(claim.id, getattr(claim, form), claim.roles, values)
            for claim in study.claims
            if claim.family == family
        ]
        there = [claim for claim in claims if claim is not None]
        found |= {judged.name: judged for judged in judge_claims(there)} if there else {}
    return found


def _measured(
    name: str, conditions: Sequence[ConditionConfig], roles: Mapping[str, str], values: Values
) -> Claim | None:
    """A claim with its contrasts; None where there are no conditions, or one has no seed."""
    measured = [_condition(condition, roles, values) for condition in conditions]
    there = [condition for condition in measured if condition is not None]
    if not there or len(there) < len(measured):
        return None
    return Claim(name=name, conditions=tuple(there))


def _condition(config: ConditionConfig, roles: Mapping[str, str], values: Values) -> Condition | None:
    side: Literal["below", "above"] = "below" if config.below is not None else "above"
    limit = config.below if config.below is not None else config.above
    assert limit is not None
    contrast = values.contrast(config.value, roles)
    if not contrast.seeds:
        return None
    name = config.name + (DIFFERENCES if contrast.differences else "")
    return Condition(name=name, values=tuple(map(float, contrast.values)), side=side, threshold=limit.number)


def _missing(lacking: Sequence[ConditionConfig], roles: Mapping[str, str], values: Values) -> str:
    quantities = dict.fromkeys(q for condition in lacking for q in condition.value.quantities(roles))
    nowhere = [q.describe() for q in quantities if not values.seeds([q])]
    return f"no cell has {', '.join(nowhere)}" if nowhere else "no seed has all of the measurements"


def _answer(config: ConditionConfig, roles: Mapping[str, str], values: Values) -> JudgedCondition | str:
    """The mean and interval, or why there are none."""
    contrast = values.contrast(config.value, roles)
    odd = [str(seed) for seed, x in zip(contrast.seeds, contrast.values, strict=True) if not np.isfinite(x)]
    if odd:
        return f"not finite at seed {', '.join(odd)}"
    return _estimate(config, roles, values) or f"not measured: {_missing([config], roles, values)}"


def _estimate(config: ConditionConfig, roles: Mapping[str, str], values: Values) -> JudgedCondition | None:
    claim = _measured(config.name, [config], roles, values)
    return None if claim is None else judge_claims([claim])[0].conditions[0]


def _absent(premise: JudgedCondition | None) -> bool:
    """Whether the interval lies on the wrong side of the threshold."""
    if premise is None or premise.low is None or premise.high is None:
        return False
    if premise.side == "above":
        return premise.high < premise.threshold
    return premise.low > premise.threshold


def _beside(claim: ClaimConfig, controls: Mapping[str, Mapping[str, str]], values: Values) -> list[Beside]:
    found = []
    for name, roles in controls.items():
        if not set(roles) <= set(claim.roles):
            continue
        changed = {**claim.roles, **roles}
        weak, paper = (
            _measured(claim.id, conditions, changed, values) for conditions in (claim.weak, claim.paper)
        )
        judged = [None if c is None else judge_claims([c])[0] for c in (weak, paper)]
        if any(judged):
            found.append(Beside(name=name, weak=judged[0], paper=judged[1]))
    return found


def _agreement(study: StudyConfig, values: Values) -> list[RankAgreement]:
    """Of every flatness measure with the damage of every quantizer, over models and seeds; measures that are
    the same in all cells are left out."""
    keys = dict.fromkeys(
        (weights, quantizer)
        for spec in study.flatness
        for weights in spec.weights
        for quantizer in spec.damage
    )
    models = [model for run in study.models_of.values() for model in run]
    found = []
    for weights, quantizer in keys:
        rows: list[tuple[int, dict[str, float], float]] = []
        for model in models:
            for seed, cell in values.cells_of(model).items():
                flat = values.flatness(cell, model, weights)
                damage = values.value(Quantity("damage", model, weights, quantizer), seed)
                if flat is not None and damage is not None:
                    rows.append((seed, flat.flatness.measures(), damage))
        at_seed = np.array([seed for seed, _, _ in rows])
        seeds = np.unique(at_seed)
        if len(seeds) < 3:
            continue
        harm = np.array([h for _, _, h in rows])
        draws = np.random.default_rng(0).multinomial(
            len(seeds), np.full(len(seeds), 1 / len(seeds)), _RESAMPLES
        )
        times = draws[:, np.searchsorted(seeds, at_seed)].astype(np.float64)
        for measure in rows[0][1]:
            x = np.array([m[measure] for _, m, _ in rows])
            (correlation,) = _spearman(x, harm, np.ones((1, len(rows))))
            if np.isnan(correlation):
                continue
            low, high = np.nanpercentile(_spearman(x, harm, times), [2.5, 97.5])
            found.append(
                RankAgreement(
                    measure=measure,
                    quantizer=quantizer,
                    weights=weights,
                    correlation=float(correlation),
                    low=float(low),
                    high=float(high),
                    models=len(rows),
                    seeds=len(seeds),
                )
            )
    return found


def _spearman(x: F64, y: F64, times: F64) -> F64:
    """Spearman's correlation of x and y [n], each pair taken so many times: float64 [resamples].

    NaN where x or y is constant.

    Args:
        times: [resamples, n], whole numbers.
    """
    a, b = (_ranks(values, times) for values in (x, y))
    size = times.sum(1, keepdims=True)
    a, b = (ranks - (times * ranks).sum(1, keepdims=True) / size for ranks in (a, b))
    spread = np.sqrt((times * a * a).sum(1) * (times * b * b).sum(1))
    with np.errstate(invalid="ignore"):
        return np.asarray((times * a * b).sum(1) / np.where(spread > 0, spread, np.nan))


def _ranks(values: F64, times: F64) -> F64:
    """Mean ranks of values [n], ties included, up to a constant: float64 [resamples, n]."""
    below = (values[:, None] < values) + 0.5 * (values[:, None] == values)
    return np.asarray(times @ below)


def _choose(study: StudyConfig, values: Values) -> Choices | None:
    """By the rules fixed beforehand; None while a cell is missing."""
    pilot = study.pilot
    assert pilot is not None
    seeds = study.runs[next(run for run, models in study.models_of.items() if pilot.plain in models)].seeds

    def mean(quantity: Quantity) -> float | None:
        found = [values.value(quantity, seed) for seed in seeds]
        return None if None in found else float(np.mean([x for x in found if x is not None]))

    flat = {name: mean(Quantity("lpf", name, "raw")) for name in (pilot.plain, *pilot.radii)}
    loss = {name: mean(Quantity("loss", name, "raw")) for name in pilot.radii}
    fid = mean(Quantity("fid", pilot.plain, "ema"))
    fid_raw = mean(Quantity("fid", pilot.plain, "raw"))
    at_8 = {q: mean(Quantity("drift", pilot.plain, "ema", q)) for q in pilot.at_8}
    at_4 = {q: mean(Quantity("fid", pilot.plain, "raw", q)) for q in pilot.at_4}
    known = [*flat.values(), *loss.values(), fid, fid_raw, *at_8.values(), *at_4.values()]
    if None in known:
        return None
    base = flat[pilot.plain]
    assert fid is not None
    assert base is not None
    assert fid_raw is not None
    ratios = {name: (flat[name] or 0.0) / base for name in pilot.radii}
    by_radius = sorted(pilot.radii, key=lambda name: pilot.radii[name])
    chosen = next((name for name in by_radius if ratios[name] <= pilot.flatter), by_radius[-1])
    drifts = {q: (x or 0.0) / fid for q, x in at_8.items()}
    growth = {q: (x or 0.0) / fid_raw for q, x in at_4.items()}
    return Choices(
        ratios={f"{pilot.radii[name]:g}": ratios[name] for name in by_radius},
        rho=pilot.radii[chosen],
        loss=loss[chosen] or 0.0,
        drift_at_8=drifts,
        fid_ratio_at_4=growth,
        naive_at_8=min(drifts, key=lambda q: abs(drifts[q] - pilot.paper_at_8)),
        naive_at_4=next(
            (q for q in sorted(growth, key=lambda q: growth[q]) if growth[q] >= pilot.collapse),
            max(growth, key=lambda q: growth[q]),
        ),
    )
