"""flatq from Python: train, quantize, export, sample, evaluate and gate, on the embedded digits.

    python examples/api.py [FOLDER]

Everything is tiny, so that it takes about a minute: the samples are noise, the steps are the real ones.
"""

from __future__ import annotations

import sys
from pathlib import Path

import flatq


def main(folder: Path) -> None:
    """Run the whole line in a new folder and print what each step found."""
    config = flatq.TrainConfig(data="digits", steps=20, batch_size=16, channels=(16, 32), patch_size=2)
    checkpoint = flatq.train(config, folder)

    settings = flatq.QuantizeSettings(
        recipe=flatq.recipe_for_bits(4),  # 4-bit weights, 8-bit activations
        calibration=flatq.CalibrationPlan(images=4, steps=4, sampler="ddim"),  # as it is sampled
    )
    quantized = flatq.quantize(checkpoint, settings)
    print(f"{quantized.folder}: {quantized.manifest.precision}")

    exported = flatq.export(quantized, flatq.ExportSettings(target="onnxruntime"))
    assert exported.parity is not None
    assert exported.audit is not None
    print(f"{len(exported.parity.layers)} layers match the PyTorch reference")
    print(f"{exported.audit.integer_share:.0%} of the multiply-accumulates run in integers")

    sampling = flatq.SamplingSettings(steps=4, sampler="ddim")
    with flatq.load(quantized, runtime=flatq.RuntimeSettings(threads=1)) as model:
        samples = flatq.sample(model, 8, sampling)
    print(f"sampled {samples.pixels.shape}, {samples.pixels.dtype}")

    report = flatq.evaluate(
        flatq.EvaluateSettings(
            models=(quantized.folder,), out=folder / "eval", sampling=sampling, images=128, cache=False
        )
    )
    result = flatq.gate(report, flatq.GateSettings(max_drift=0.5))
    print(f"{result.outcome}: {result.models[0].verdict.reason}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "flatq-api"))
