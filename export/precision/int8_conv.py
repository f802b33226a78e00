"""Convolutions as integer products: bytes in, bytes out, so that a chain of them never becomes float in between.

onnxruntime has no integer convolution with a float output: what leaves one, behind its ReLU, must be made bytes as well. A value that is
bytes is read as such by all, residual sums included: the residuals of a convolutional network are behind a ReLU or a batch norm and have
no outliers, unlike those of a transformer.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeclip.export.linears import Array, Convolution, array_of, constant
from edgeclip.export.precision import Request
from edgeclip.export.precision.ranges import ByteRange, Seen, byte_range
from edgeclip.export.precision.weights8 import Bytes, encode


def activated(layer: Convolution) -> ir.Value:
    """What leaves a convolution: its output, behind a ReLU that alone reads it."""
    readers = layer.output.consumers()
    alone = len(readers) == 1 and not layer.output.is_graph_output()
    return readers[0].outputs[0] if alone and readers[0].op_type == "Relu" else layer.output


def encode_kernel(kernel: Array, *, saturating: bool) -> Bytes:
    """A kernel's bytes, q (M, C, kh, kw), and a scale for each output.

    Args:
        kernel: (M, C, kh, kw). Engines sum it with the channels innermost, so that neighbours are channels.
    """
    m, c, height, width = kernel.shape
    rows = kernel.transpose(2, 3, 1, 0).reshape(-1, m)
    encoded = encode(rows, saturating=saturating)
    q = encoded.q.reshape(height, width, c, m).transpose(3, 2, 0, 1)
    return Bytes(np.ascontiguousarray(q), encoded.scale)


def quantise(
    model: ir.Model, layers: tuple[Convolution, ...], seen: dict[str, Seen], request: Request
) -> None:
    """Quantise convolutions, in place. seen: what each reads and gives (`activated`), by name."""
    ranges: dict[ir.Value, ByteRange] = {}
    for layer in layers:
        for value in (layer.x, activated(layer)):
            if value not in ranges:
                ranges[value] = byte_range(seen[str(value.name)], request.ranges, request.activations)
    for layer in layers:
        _kernel(model.graph, layer, seen[str(layer.x.name)], ranges[layer.x], request.saturating)
    for value, found in ranges.items():
        readers = [(node, i) for node in value.consumers() for i, x in enumerate(node.inputs) if x is value]
        up = through_bytes(model.graph, value, found)
        for node, i in readers:
            node.replace_input_with(i, up)


def through_bytes(graph: ir.Graph, x: ir.Value, found: ByteRange) -> ir.Value:
    """x behind a QuantizeLinear and a DequantizeLinear, which nothing reads yet."""
    scale = constant(graph, f"{x.name}.scale", np.array(found.scale))
    zero = constant(graph, f"{x.name}.zero", found.zero)
    down = ir.node("QuantizeLinear", [x, scale, zero])
    up = ir.node("DequantizeLinear", [down.outputs[0], scale, zero])
    maker = x.producer()
    assert maker is not None, "a layer that reads the graph's input is not chosen"
    graph.insert_after(maker, [down, up])
    for value, like in ((down.outputs[0], zero), (up.outputs[0], x)):
        value.shape, value.type = x.shape, like.type
    return up.outputs[0]


def _kernel(graph: ir.Graph, layer: Convolution, known: Seen, x: ByteRange, saturating: bool) -> None:
    """Bytes for the kernel; the bias takes away what rounding adds on average, seams with the padding left aside."""
    encoded = encode_kernel(layer.kernel, saturating=saturating)
    scale = constant(graph, f"{layer.name}.scale", encoded.scale)
    zero = constant(graph, f"{layer.name}.zero", np.zeros_like(encoded.scale, np.int8))
    q = constant(graph, f"{layer.name}.int8", encoded.q)
    up = ir.node("DequantizeLinear", [q, scale, zero], {"axis": 0})
    graph.insert_before(layer.node, [up])
    layer.node.replace_input_with(1, up.outputs[0])
    if layer.bias is not None:
        bias = array_of(layer.bias)
        assert bias is not None, "convolutions() finds constants only"
        rounded = encoded.q.astype(np.float32) * encoded.scale[:, None, None, None]
        drift = layer.kernel.sum((2, 3)) @ known.rows.mean(0) - rounded.sum((2, 3)) @ x.rounded(
            known.rows
        ).mean(0)
        layer.node.replace_input_with(2, constant(graph, f"{layer.name}.bias", bias + drift))
