"""A linear layer written as an integer product: what every graph with static int8 layers is made of."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeclip.export.linears import Array, Linear, constant
from edgeclip.export.precision.int8_conv import through_bytes
from edgeclip.export.precision.layers8 import replace_layer, weight_constants
from edgeclip.export.precision.ranges import ByteRange
from edgeclip.export.precision.weights8 import Bytes


class Inputs:
    """What layers read, as bytes: a value that several of them read is made bytes once."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._made: dict[ir.Value, tuple[ByteRange, ir.Value]] = {}

    def known(self, x: ir.Value) -> ByteRange | None:
        """The range that x has already."""
        return self._made[x][0] if x in self._made else None

    def through_bytes(self, x: ir.Value, found: ByteRange) -> ir.Value:
        """x behind its bytes, in this range or in the one that it has already."""
        if x not in self._made:
            given = _lifted(self._graph, x) if found.zero.dtype == np.uint8 else x
            self._made[x] = found, through_bytes(self._graph, given, found)
        return self._made[x][1]


def integer_product(
    graph: ir.Graph, layer: Linear, x: ir.Value, bytes_: Bytes, drift: Array | None = None
) -> None:
    """Put a product of bytes in a layer's place.

    Args:
        x: what the layer reads, behind its bytes.
        bytes_: the layer's weight.
        drift: see `replace_layer`.
    """
    up = ir.node("DequantizeLinear", weight_constants(graph, layer.name, bytes_), {"axis": 1})
    new = [up, ir.node("MatMul", [x, up.outputs[0]])]
    if x.shape is not None and layer.x.shape is not None and len(x.shape) > len(layer.x.shape):
        new.append(ir.node("Squeeze", [new[-1].outputs[0], _axis(graph)]))
    replace_layer(graph, layer, new, drift)


def _lifted(graph: ir.Graph, x: ir.Value) -> ir.Value:
    """(R, K) as (1, R, K): of a product of rows and its bias onnxruntime makes a Gemm, which it then computes in floats.

    Not for int8 inputs, which are TensorRT's: its sums hold what onnxruntime's kernels cut off on older processors.
    """
    if x.shape is None or len(x.shape) != 2 or (maker := x.producer()) is None:
        return x
    node = ir.node("Unsqueeze", [x, _axis(graph)])
    lifted = node.outputs[0]
    lifted.name, lifted.shape, lifted.type = f"{x.name}.lifted", ir.Shape((1, *x.shape)), x.type
    graph.insert_after(maker, node)
    return lifted


def _axis(graph: ir.Graph) -> ir.Value:
    name = "lifted.axis"
    return graph.initializers[name] if name in graph.initializers else constant(graph, name, np.array([0]))
