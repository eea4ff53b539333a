"""Why activation ranges by timestep are not offered: what runtimes make of them, and what they would buy.

A scale that depends on t is a row of a table, looked up in the graph: Gather(table, t). The script builds one
convolution with its Q/DQ nodes, once with a constant scale at its input and once with a looked-up one, and
prints what each installed runtime says that it runs. With --checkpoint it also measures, in torch, the SQNR
of the network's output at w4a4 with one range for each of several groups of timesteps, against one for all.

    python benchmarks/timestep_scales.py
    python benchmarks/timestep_scales.py --checkpoint runs/digits/ckpt.pt --heldout digits:heldout --groups 4
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

__all__ = ["convolution", "main", "onnxruntime_kernels", "openvino_kernels"]

_GRAPH = """net (float[N, 8, 16, 16] x, int64[N] t) => (float[N, 8, 16, 16] out) {
    LOOKUP
    codes = QuantizeLinear (x, scale, zero)
    read = DequantizeLinear (codes, scale, zero)
    weight = DequantizeLinear <axis = 0> (weight_codes, weight_scale)
    sum = Conv <pads = [1, 1, 1, 1]> (read, weight)
    sum_codes = QuantizeLinear (sum, sum_scale, zero)
    out = DequantizeLinear (sum_codes, sum_scale, zero)
}"""
_LOOKUP = """group = Div (t, width)
    first = Gather (group, zero_index)
    scale = Gather (table, first)"""


def convolution(*, looked_up: bool, symmetric: bool = False) -> onnx.ModelProto:
    """One quantized convolution whose input's scale is a constant, or a table's row for the batch's first t.

    A scale for every sample cannot be said at all: the scale of a tensor is one number, and that by channel
    would have the batch for its axis, whose size is free.
    """
    rng = np.random.default_rng(0)
    graph = onnx.parser.parse_graph(_GRAPH.replace("LOOKUP", _LOOKUP if looked_up else ""))
    tensors = {
        "zero": np.int8(0) if symmetric else np.uint8(128),
        "weight_codes": rng.integers(-127, 128, (8, 8, 3, 3), dtype=np.int8),
        "weight_scale": np.full(8, 0.01, dtype=np.float32),
        "sum_scale": np.float32(0.1),
    }
    if looked_up:
        table = np.linspace(0.01, 0.04, 4, dtype=np.float32)
        tensors |= {"table": table, "width": np.int64(250), "zero_index": np.int64(0)}
    else:
        tensors["scale"] = np.float32(0.02)
    graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in tensors.items())
    model: onnx.ModelProto = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def onnxruntime_kernels(model: onnx.ModelProto) -> list[str]:
    """The operators of the graph that ONNX Runtime optimized."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(path)
        options.log_severity_level = 3
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return [node.op_type for node in onnx.load(path).graph.node]


def openvino_kernels(model: onnx.ModelProto) -> list[str]:
    """The operators of the model that OpenVINO compiled, with the type of their implementations."""
    import openvino

    from flatq.verify.openvino_kernels import kernels_of

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(model.SerializeToString())
        core = openvino.Core()
        compiled = core.compile_model(core.read_model(path), "CPU")
    compiled.create_infer_request().infer([np.zeros((1, 8, 16, 16), np.float32), np.zeros(1, np.int64)])
    return [kernel.describe() for kernel in kernels_of(compiled)]


def tensorrt_errors(model: onnx.ModelProto) -> list[str]:
    """What TensorRT's parser says against a model; empty where it takes it."""
    import tensorrt as trt

    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    parser = trt.OnnxParser(builder.create_network(0), trt.Logger(trt.Logger.ERROR))
    if parser.parse(model.SerializeToString()):
        return []
    return [str(parser.get_error(i).desc()) for i in range(parser.num_errors)]


def _sqnr(checkpoint: Path, data: str, groups: int, act_range: Any) -> dict[int, float]:
    """SQNR of the output at w4a4, dB: with one range for all timesteps, and with one for each group."""
    import torch
    from methods import _HeldOut

    from flatq.calib.inputs import CalibrationPlan, collect_inputs
    from flatq.checkpoint import load_checkpoint
    from flatq.quantize.methods.layer import quant_layers
    from flatq.quantize.methods.stream import Stream, execute
    from flatq.quantize.ranges import RangeObserver
    from flatq.quantize.rounding import quantize_checkpoint
    from flatq.quantize.trace import find_layers, trace
    from flatq.recipe import recipe_for_bits
    from flatq.runtime.torch import TorchRuntime

    loaded = load_checkpoint(checkpoint)
    recipe, plan = recipe_for_bits(4, 4, activation_range=act_range), CalibrationPlan()
    artifact = quantize_checkpoint(loaded, recipe, calibration=plan)
    network, model = loaded.network(str(artifact.manifest.parent["weights"])), loaded.model
    with TorchRuntime(network) as runtime:
        inputs = collect_inputs(runtime, loaded.process, plan, model.image_shape)
    graph = trace(network, model)
    layers = find_layers(graph)
    steps = [node for node in graph.graph.nodes if node.op == "call_function"]
    output = next(node for node in graph.graph.nodes if node.op == "output").all_input_nodes[0]
    decisions = artifact.manifest.decisions
    schemes = {d.node: d for d in decisions if d.port == "input" and d.scheme is not None}
    heldout = _HeldOut(data, model.image_shape, loaded.process, 500)
    train_steps = loaded.process.train_steps

    def run(x: Any, t: Any, replaced: Any = None) -> dict[Any, Any]:
        batch = (torch.from_numpy(x), torch.from_numpy(np.asarray(t, dtype=np.int64)))
        values = Stream(graph, [batch]).batches[0]
        with torch.no_grad():
            execute(steps, values, replaced)
        return values

    def ranges(first: float, end: float) -> dict[str, Any]:
        observers = {
            name: RangeObserver(
                scheme=d.scheme, recipe=recipe, dtype=torch.uint8, qscheme=torch.per_tensor_affine
            )
            for name, d in schemes.items()
        }
        for x, t in zip(inputs.x, inputs.t, strict=True):
            if first <= t < end:
                values = run(x, np.full(len(x), t))
                for layer in layers:
                    if layer.candidate.node in observers:
                        observers[layer.candidate.node](values[layer.node.args[0]])
        return {schemes[name].range_name: torch.tensor([o.range()]) for name, o in observers.items()}

    found = {}
    for count in (1, groups):
        signal = noise = 0.0
        edges = [train_steps * i / count for i in range(count + 1)]
        for first, end in pairwise(edges):
            rows = (heldout.t >= first) & (heldout.t < end)
            x, t = heldout.x[rows], heldout.t[rows]
            planned = quant_layers(
                graph, layers, decisions, artifact.codes, artifact.scales, ranges(first, end)
            )
            exact = run(x, t)[output].double()
            quantized = run(x, t, {node: layer.forward for node, layer in planned.items()})[output].double()
            signal += float(exact.square().sum())
            noise += float((quantized - exact).square().sum())
        found[count] = float(10 * np.log10(signal / noise))
    return found


def main() -> None:
    """Ask the runtimes, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument(
        "--heldout", default="digits:heldout", help="images that the model was not trained on"
    )
    parser.add_argument("--groups", type=int, default=4)
    options = parser.parse_args()
    for runtime, ask in (("onnxruntime", onnxruntime_kernels), ("openvino", openvino_kernels)):
        for looked_up in (False, True):
            form = "looked up by t" if looked_up else "constant"
            if importlib.util.find_spec(runtime) is None:
                print(f"{runtime}, scale {form}: not installed")
                continue
            try:
                told = ", ".join(ask(convolution(looked_up=looked_up)))
            except Exception as error:  # the runtimes raise types of their own
                told = "refused: " + " ".join(str(error).split())[:300]
            print(f"{runtime}, scale {form}: {told}")
    for looked_up in (False, True) if importlib.util.find_spec("tensorrt") else ():
        form = "looked up by t" if looked_up else "constant"
        errors = tensorrt_errors(convolution(looked_up=looked_up, symmetric=True))
        print(f"tensorrt, scale {form}: {'; '.join(errors) or 'parsed'}")
    if options.checkpoint is not None:
        for act_range in ("minmax", "mse"):
            for count, db in _sqnr(options.checkpoint, options.heldout, options.groups, act_range).items():
                print(f"w4a4 {act_range}, ranges for {count} groups of timesteps: SQNR {db:.2f} dB")


if __name__ == "__main__":
    main()
