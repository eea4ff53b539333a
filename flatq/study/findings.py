"""What the cells show: claims judged, controls and questions beside them, the pilot's choices.

The tests are `flatq.study.judging`'s, the numbers `flatq.study.values`'. No files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from flatq.report.model import Record
from flatq.study.claims import ClaimConfig, ConditionConfig
from flatq.study.config import StudyConfig
from flatq.study.expressions import FLOAT, Expression, Quantity
from flatq.study.judging import Claim, Condition, JudgedClaim, JudgedCondition, judge_claims
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


class Beside(Record):
    """The same claim with another model in a role; Holm's correction runs within the claim alone."""

    name: str
    weak: JudgedClaim | None
    paper: JudgedClaim | None


class ClaimFinding(Record):
    """A claim's two verdicts.

    Attributes:
        weak, paper: None without conditions of that form, or where one of them has no seed.
        missing: what was not measured at any seed, or not together; None where every condition has a seed.
        premise: what the claim presupposes; premise_absent: whether its interval excludes it.
        seeds: each condition's, weak form first; values: the contrast at each of them.
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


class QuestionFinding(Record):
    """Means and intervals of contrasts, by name; where there is none, the reason."""

    id: str
    title: str
    values: dict[str, JudgedCondition | str]


class RankAgreement(Record):
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


class Choices(Record):
    """What the pilot chooses.

    Attributes:
        ratios: radius -> mean over seeds of the LPF increase, SAM's over plain's.
        rho: the radius. loss: SAM's mean held-out loss at that radius, raw weights.
        drift_at_8: candidate -> drift of plain with EMA, over plain's FID.
        fid_ratio_at_4: candidate -> FID of plain's raw weights, over that without quantization.
        naive_at_8, naive_at_4: the quantizers.
    """

    ratios: dict[str, float]
    rho: float
    loss: float
    drift_at_8: dict[str, float]
    fid_ratio_at_4: dict[str, float]
    naive_at_8: str
    naive_at_4: str


class Findings(Record):
    """All findings of a study."""

    claims: tuple[ClaimFinding, ...]
    questions: tuple[QuestionFinding, ...]
    agreement: tuple[RankAgreement, ...]
    choices: Choices | None


def find(study: StudyConfig, values: Values) -> Findings:
    """Judge every claim of a study by the cells that there are.

    Raises:
        DataError: a contrast that is not finite.
    """
    weak, paper = (_judge_form(study, values, form) for form in ("weak", "paper"))
    claims = []
    for claim in study.claims:
        premise = None if claim.premise is None else _estimate(claim.premise, claim.roles, values)
        conditions = [*claim.weak, *claim.paper]
        contrasts = [values.contrast(c.value, claim.roles) for c in conditions]
        lacking = [c for c, contrast in zip(conditions, contrasts, strict=True) if not contrast.seeds]
        claims.append(
            ClaimFinding(
                id=claim.id,
                title=claim.title,
                family=claim.family,
                missing=_missing(lacking, claim.roles, values) if lacking else None,
                weak=weak.get(claim.id),
                paper=paper.get(claim.id),
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
                name: _answer(name, value, question.roles, values) for name, value in question.values.items()
            },
        )
        for question in study.questions
    )
    return Findings(
        claims=tuple(claims),
        questions=questions,
        agreement=tuple(_agreement(study, values)),
        choices=_choose(study, values),
    )


def _judge_form(study: StudyConfig, values: Values, form: str) -> dict[str, JudgedClaim]:
    """The verdicts of one form, Holm's correction within each family."""
    families: dict[str, list[Claim]] = {}
    for config in study.claims:
        claim = _measured(config.id, getattr(config, form), config.roles, values)
        if claim is not None:
            families.setdefault(config.family, []).append(claim)
    return {judged.name: judged for claims in families.values() for judged in judge_claims(claims)}


def _measured(
    name: str, configs: Sequence[ConditionConfig], roles: Mapping[str, str], values: Values
) -> Claim | None:
    """A claim with its contrasts; None where there are no conditions, or one has no seed."""
    conditions = []
    for config in configs:
        contrast = values.contrast(config.value, roles)
        limit = config.below if config.below is not None else config.above
        if not contrast.seeds or limit is None:
            return None
        conditions.append(
            Condition(
                name=config.name + (DIFFERENCES if contrast.differences else ""),
                values=tuple(map(float, contrast.values)),
                side="above" if config.below is None else "below",
                threshold=limit.number,
            )
        )
    return Claim(name=name, conditions=tuple(conditions)) if conditions else None


def _missing(lacking: Sequence[ConditionConfig], roles: Mapping[str, str], values: Values) -> str:
    quantities = dict.fromkeys(q for condition in lacking for q in condition.value.quantities(roles))
    nowhere = [q.describe() for q in quantities if not values.seeds([q])]
    return f"no cell has {', '.join(nowhere)}" if nowhere else "no seed has all of the measurements"


def _answer(name: str, value: Expression, roles: Mapping[str, str], values: Values) -> JudgedCondition | str:
    """The mean and interval, or why there are none."""
    contrast = values.contrast(value, roles)
    odd = [str(seed) for seed, x in zip(contrast.seeds, contrast.values, strict=True) if not np.isfinite(x)]
    if odd:
        return f"not finite at seed {', '.join(odd)}"
    config = ConditionConfig(name=name, value=value, above=Expression(0.0))
    return _estimate(config, roles, values) or f"not measured: {_missing([config], roles, values)}"


def _estimate(config: ConditionConfig, roles: Mapping[str, str], values: Values) -> JudgedCondition | None:
    claim = _measured(config.name, [config], roles, values)
    return None if claim is None else judge_claims([claim])[0].conditions[0]


def _absent(premise: JudgedCondition | None) -> bool:
    """Whether the interval lies on the wrong side of the threshold."""
    if premise is None or premise.low is None or premise.high is None:
        return False
    above = premise.side == "above"
    return premise.high < premise.threshold if above else premise.low > premise.threshold


def _beside(claim: ClaimConfig, controls: Mapping[str, Mapping[str, str]], values: Values) -> list[Beside]:
    found = []
    for name, roles in controls.items():
        if not set(roles) <= set(claim.roles):
            continue
        changed = {**claim.roles, **roles}
        forms = [_measured(claim.id, form, changed, values) for form in (claim.weak, claim.paper)]
        judged = [None if form is None else judge_claims([form])[0] for form in forms]
        if any(judged):
            found.append(Beside(name=name, weak=judged[0], paper=judged[1]))
    return found


def _agreement(study: StudyConfig, values: Values) -> list[RankAgreement]:
    """Rank agreement of each flatness measure with each quantizer's damage, over models and seeds;
    measures that are the same in all cells are left out."""
    keys = dict.fromkeys(
        (weights, quantizer)
        for spec in study.flatness
        for weights in spec.weights
        for quantizer in spec.damage
    )
    found = []
    for weights, quantizer in keys:
        rows: list[tuple[int, dict[str, float], float]] = []
        for model in study.models:
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
    """The choices by the rules fixed beforehand; None without rules, or while a measurement is missing."""
    pilot = study.pilot
    if pilot is None:
        return None
    seeds = study.runs[next(run for run, models in study.models_of.items() if pilot.plain in models)].seeds

    def mean(kind: str, model: str, weights: str, quantizer: str = FLOAT) -> float:
        found = [values.value(Quantity(kind, model, weights, quantizer), seed) for seed in seeds]
        return float(np.mean([np.nan if x is None else x for x in found]))

    plain = pilot.plain
    by_radius = sorted(pilot.radii, key=lambda name: pilot.radii[name])
    ratios = {name: mean("lpf", name, "raw") / mean("lpf", plain, "raw") for name in by_radius}
    losses = {name: mean("loss", name, "raw") for name in by_radius}
    drifts = {q: mean("drift", plain, "ema", q) / mean("fid", plain, "ema") for q in pilot.at_8}
    growth = {q: mean("fid", plain, "raw", q) / mean("fid", plain, "raw") for q in pilot.at_4}
    if np.isnan([*ratios.values(), *losses.values(), *drifts.values(), *growth.values()]).any():
        return None
    chosen = next((name for name in by_radius if ratios[name] <= pilot.flatter), by_radius[-1])
    by_growth = sorted(growth, key=lambda q: growth[q])
    return Choices(
        ratios={f"{pilot.radii[name]:g}": ratios[name] for name in by_radius},
        rho=pilot.radii[chosen],
        loss=losses[chosen],
        drift_at_8=drifts,
        fid_ratio_at_4=growth,
        naive_at_8=min(drifts, key=lambda q: abs(drifts[q] - pilot.paper_at_8)),
        naive_at_4=next((q for q in by_growth if growth[q] >= pilot.collapse), by_growth[-1]),
    )
