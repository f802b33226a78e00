"""Graphs of a few nodes, written as text."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import numpy_helper

from edgeclip.export.passes import number_nodes

Array = NDArray[Any]


def graph(body: str, opset: int = 20, **constants: Array) -> ir.Model:
    """E.g. graph("(float[N,4] x) => (float[N,4] y) { y = MatMul(x, w) }", w=np.eye(4, dtype=np.float32))."""
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]> g {body}')
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True))
    number_nodes(model)
    return model


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Array:
    array: Array = (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)
    return array


def check(model: ir.Model) -> onnx.ModelProto:
    """The graph as bytes see it, held to the standard."""
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def types(model: ir.Model) -> dict[str, str]:
    """Operator and count -> type of its first output, e.g. {"MatMul_0": "FLOAT16"}."""
    return {
        str(node.name): node.outputs[0].dtype.name
        for node in model.graph
        if node.outputs[0].dtype is not None
    }
