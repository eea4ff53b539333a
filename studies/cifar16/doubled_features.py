"""Write cifar10-res9-doubled.onnx beside this file: the feature network for 32 x 32 images behind a doubling
of each pixel, so that it takes 16 x 16 images.

    python studies/cifar16/doubled_features.py ../shared/data/features/cifar10-res9.onnx
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

OUT = Path(__file__).with_name("cifar10-res9-doubled.onnx")


def main(source: str) -> None:
    model = onnx.load(source)
    graph = model.graph
    (images,) = graph.input
    for node in graph.node:
        node.input[:] = ["doubled" if name == images.name else name for name in node.input]
    graph.initializer.append(numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "by_two"))
    double = helper.make_node(
        "Resize",
        [images.name, "", "by_two"],
        ["doubled"],
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
    graph.node.insert(0, double)
    for place in (2, 3):
        images.type.tensor_type.shape.dim[place].dim_value = 16
    del graph.value_info[:]
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, OUT)


if __name__ == "__main__":
    main(*sys.argv[1:])
