"""What `flatq.export` is asked for. Pure data, no torch."""

from __future__ import annotations

from dataclasses import dataclass

from flatq.deployment import FloatPrecision, Target

__all__ = ["ExportSettings"]


@dataclass(frozen=True)
class ExportSettings:
    """How a model is exported; the defaults are those of `flatq export`.

    Attributes:
        target: the runtime that the model is lowered for; `generic` is plain ONNX for any other consumer.
        float_precision: precision of the non-quantized operators.
        plain: leave out the graph rewrites that make the runtime faster.
        verify: compare each layer on the runtime with the PyTorch reference before the folder is put in
            place. The audit of the kernels is made in any case, where the runtime is installed.
        weights: raw, ema or swa of a checkpoint; ema if there, else raw, by default.
        batches: TensorRT optimization profile: smallest, best and largest batch size.
        require_int8: fraction of the multiply-accumulates that has to run in integers, 0 to 1; below it
            `Exported.passed` is False.
        threads: number of CPU threads of the verification, all cores by default.
    """

    target: Target = "onnxruntime"
    float_precision: FloatPrecision = "fp32"
    plain: bool = False
    verify: bool = True
    weights: str | None = None
    batches: tuple[int, int, int] = (1, 8, 64)
    require_int8: float | None = None
    threads: int | None = None
