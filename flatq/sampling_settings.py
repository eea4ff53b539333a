"""How images are sampled: steps, sampler, seed, labels and guidance. No torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from flatq.errors import UsageError
from flatq.samplers import SAMPLERS
from flatq.schedule import count_steps

__all__ = ["SamplingSettings"]


class SamplingSettings(BaseModel):
    """How images are drawn; part of every report.

    Attributes:
        steps: number of timesteps kept, or guided-diffusion's "ddimN" and section counts such as "10,15,20",
            see `flatq.schedule.space_timesteps`.
        sampler: one of `flatq.samplers.SAMPLERS`.
        eta: DDIM's eta; 0 is deterministic.
        seed: random seed of the noise.
        clip: False leaves the predicted x0 as it is even where the process clips it.
        label: class of all images; None assigns the classes of the network round-robin.
        guidance: w of classifier-free guidance (Ho, Salimans 2022, with their w + 1): the network's output
            is null + w (labelled - null), a learned variance that of the label. 1 takes the labelled output
            alone; any other w takes two evaluations a step.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: Annotated[int, Field(gt=0)] | str = 20
    sampler: Literal["ancestral", "ddim"] = "ancestral"
    eta: float = Field(default=0.0, ge=0.0, le=1.0)
    seed: int = Field(default=0, ge=0)
    clip: bool = True
    label: int | None = Field(default=None, ge=0)
    guidance: float = Field(default=1.0, ge=0.0, allow_inf_nan=False)

    @field_validator("steps", mode="before")
    @classmethod
    def _plain_number(cls, steps: Any) -> Any:
        return int(steps) if isinstance(steps, str) and steps.isascii() and steps.isdigit() else steps

    @field_validator("steps")
    @classmethod
    def _readable(cls, steps: int | str) -> int | str:
        try:
            count_steps(steps)
        except UsageError as error:
            raise ValueError(f"a number of steps: {error.expected}") from error
        return steps

    @property
    def timestep_count(self) -> int:
        """How many timesteps are kept."""
        return count_steps(self.steps)

    @property
    def evaluations(self) -> int:
        """Network evaluations for an image; with guidance each is one with the label and one without."""
        return SAMPLERS[self.sampler].evaluations(self.timestep_count)

    @property
    def update(self) -> str:
        """The sampler in words, such as `ddim with eta 0.5`."""
        return self.sampler if self.sampler == "ancestral" else f"{self.sampler} with eta {self.eta:g}"
