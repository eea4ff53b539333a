"""Class labels: what a conditional network takes, and which label an image index gets. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from flatq.errors import UsageError
from flatq.inputs import Condition, InputSpec

__all__ = ["Classes"]


class Classes(BaseModel):
    """The labels that a network knows.

    Attributes:
        count: rows of its label embedding; a label is in [0, count).
        null: the row that stands for "no label", which classifier-free guidance needs (Ho, Salimans 2022);
            None where the network was trained without one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: int = Field(gt=0)
    null: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _null_is_a_row(self) -> Self:
        if self.null is not None and self.null >= self.count:
            raise ValueError(f"the null label {self.null} is not below {self.count}")
        if self.null == 0 and self.count == 1:
            raise ValueError("the null label is the only one")
        return self

    @property
    def input(self) -> InputSpec:
        """The network's input that takes the labels."""
        return InputSpec(name="label", dtype="int64", shape=())

    def condition(self, indices: Sequence[int], label: int | None = None) -> Condition:
        """The labels of `assign`, as the network is given them."""
        return {self.input.name: self.assign(indices, label)}

    def null_condition(self, n: int) -> Condition:
        """The null label n times, as the network is given it; for networks that have one."""
        assert self.null is not None
        return {self.input.name: np.full(n, self.null, dtype=np.int64)}

    def assign(self, indices: Sequence[int], label: int | None = None) -> NDArray[np.int64]:
        """The label of each image index, int64 [n].

        Args:
            indices: global image indices.
            label: the label of all images; None assigns the labels round-robin, index modulo their number,
                the null label left out.

        Raises:
            UsageError: a label that the network does not have.
        """
        if label is not None:
            if not 0 <= label < self.count:
                raise UsageError(
                    "the label is out of range",
                    expected=f"0 to {self.count - 1}",
                    got=str(label),
                    next_step="choose another --label, or leave it out for all labels in turn",
                )
            return np.full(len(indices), label, dtype=np.int64)
        labels = [row for row in range(self.count) if row != self.null]
        return np.array([labels[index % len(labels)] for index in indices], dtype=np.int64)

    def describe(self, label: int | None = None) -> str:
        """How `assign` labels the images, for reports."""
        if label is not None:
            return f"{label} for all images"
        return f"image index modulo {self.count - (self.null is not None)} classes"
