"""What is asked of the rounding: the method and its settings. Pure data, part of an artifact's manifest."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["DEFAULT_METHOD", "AdaRound", "Gptq", "Method", "WeightRounding"]

Method = Literal["rtn", "gptq", "adaround"]

DEFAULT_METHOD: Method = "gptq"
"""What `flatq quantize` takes where no method is named."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Gptq(_Frozen):
    """Settings of `flatq.quantize.methods.gptq`.

    Attributes:
        damping: added to the Hessian's diagonal, as a fraction of its mean. The larger it is, the less the
            weights change to make up for the rounding of others.
        act_order: columns with the largest Hessian first, in place of the order in the weight.
        block: columns between two updates of all the columns that follow; changes the speed, not the result.
    """

    damping: float = Field(default=0.3, gt=0, allow_inf_nan=False)
    act_order: bool = True
    block: int = Field(default=128, gt=0)


class AdaRound(_Frozen):
    """Settings of `flatq.quantize.methods.adaround`.

    Attributes:
        iterations: for each block.
        batch: inputs in an iteration.
        lr: of Adam, on the variables that decide the rounding.
        weight: of the term that drives the variables to 0 or 1, against the error in units of the one that
            the learning starts from.
        warmup: fraction of the iterations without that term.
        beta: its exponent, from first to last.
        bias_lr: of Adam, on biases, in units of the output that an input of mean square 1 gives; 0 leaves
            them as they are.
        range_lr: of Adam, on the logarithms of the ends of activations' ranges; 0 leaves them as observed.
    """

    iterations: int = Field(default=300, gt=0)
    batch: int = Field(default=16, gt=0)
    lr: float = Field(default=0.1, gt=0)
    weight: float = Field(default=1e4, ge=0)
    warmup: float = Field(default=0.2, ge=0, lt=1)
    beta: tuple[float, float] = (20.0, 2.0)
    bias_lr: float = Field(default=0.003, ge=0)
    range_lr: float = Field(default=0.02, ge=0)


class WeightRounding(_Frozen):
    """How integers are chosen, once the scales are.

    Attributes:
        method: `rtn` (to nearest), `gptq` or `adaround`.
        bias_correction: the mean error of each layer's output on the calibration inputs is added to its bias.
        samples: how many of the calibration inputs the method and the correction look at, drawn by the
            calibration's seed. `adaround` holds an eighth of them out.
        sensitivity: how much more an error counts on inputs where it moves the prediction further, in `gptq`
            and `adaround`: the power of the squared gradient; 0 counts all inputs alike.
        gptq, adaround: settings of a method; kept also where another one is asked for.
    """

    method: Method = "rtn"
    bias_correction: bool = False
    samples: int = Field(default=256, gt=0)
    sensitivity: float = Field(default=1.0, ge=0, le=1)
    gptq: Gptq = Gptq()
    adaround: AdaRound = AdaRound()

    @property
    def plain(self) -> bool:
        """Whether nothing is done beyond rounding to nearest."""
        return self.method == "rtn" and not self.bias_correction

    @property
    def suffix(self) -> str:
        """What follows a recipe's name, such as `-gptq+bias`; empty for plain rounding to nearest."""
        return self.suffix_beside("rtn")

    def suffix_beside(self, usual: Method) -> str:
        """The same where another method goes without saying."""
        method = "" if self.method == usual else f"-{self.method}"
        return method + ("+bias" if self.bias_correction else "")

    def describe(self) -> str:
        """One clause for readers."""
        names = {
            "rtn": "round to nearest",
            "gptq": "GPTQ",
            "adaround": "AdaRound by blocks, starting from GPTQ",
        }
        learned = "biases learned" if self.method == "adaround" and self.adaround.bias_lr else ""
        corrected = "biases corrected" if self.bias_correction else "" if learned else "biases as they were"
        return ", ".join(clause for clause in (names[self.method], learned, corrected) if clause)
