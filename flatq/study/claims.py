"""Claims and questions of a study as data: contrasts with thresholds, and a pilot's rules. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

from pydantic import BaseModel, ConfigDict, model_validator

from flatq.study.expressions import Expression

__all__ = ["ClaimConfig", "ConditionConfig", "PilotConfig", "QuestionConfig"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ConditionConfig(_Frozen):
    """A contrast and its threshold, both as `flatq.study.expressions` reads them."""

    name: str
    value: Expression
    below: Expression | None = None
    above: Expression | None = None

    @model_validator(mode="after")
    def _one_side(self) -> Self:
        if (self.below is None) == (self.above is None):
            raise ValueError("a condition needs `below` or `above`")
        if any(limit.calls for limit in (self.below, self.above) if limit is not None):
            raise ValueError("a threshold is a number")
        return self


class ClaimConfig(_Frozen):
    """A claim: the direction (weak) and the size (paper), each confirmed if all its conditions hold.

    Attributes:
        id: such as C2-raw. title: the claim in a few words.
        family: Holm's correction runs within a family and form.
        roles: names in the expressions -> models. Controls and rivals take the place of a role.
        premise: without it the claim does not apply; shown beside the verdict.
    """

    id: str
    title: str
    family: str = "main"
    roles: dict[str, str] = {}
    weak: tuple[ConditionConfig, ...] = ()
    paper: tuple[ConditionConfig, ...] = ()
    premise: ConditionConfig | None = None

    def expressions(self) -> Iterator[Expression]:
        """All that it is made of."""
        for condition in (*self.weak, *self.paper, *((self.premise,) if self.premise else ())):
            yield from (e for e in (condition.value, condition.below, condition.above) if e is not None)


class QuestionConfig(_Frozen):
    """A contrast whose mean and interval are shown, without a verdict."""

    id: str
    title: str
    roles: dict[str, str] = {}
    values: dict[str, Expression]

    def expressions(self) -> Iterator[Expression]:
        yield from self.values.values()


class PilotConfig(_Frozen):
    """What a pilot study chooses, by the rules of the page: SAM's radius, the naive quantizers, SAM's loss.

    Attributes:
        plain: the model without SAM. radii: SAM's models by radius. sigma: that of the weight noise.
        at_8, at_4: candidates for the naive quantizers, mildest first.
    """

    plain: str
    radii: dict[str, float]
    at_8: tuple[str, ...]
    at_4: tuple[str, ...]
    flatter: float = 0.65
    paper_at_8: float = 0.94
    collapse: float = 3.0
