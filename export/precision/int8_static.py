"""int8 with scales fixed at calibration: QuantizeLinear and DequantizeLinear around linear layers, and nowhere else.

onnxruntime makes one integer product of DequantizeLinear, DequantizeLinear and MatMul; TensorRT reads the same graph where activations
are symmetric (Request.activations "int8"), which is as fast on a CPU and a fifth less exact. Sums of residuals, softmax, GELU, norms
and embeddings stay float: with those quantised, a ViT-B/16 falls from 85 % top-1 to 5 %.

onnxruntime 1.23 has no QuantizeLinear of opset 23, which the flavour with the Attention operator is written in: there the portable one
is the one to quantise.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeclip.export.linears import constant
from edgeclip.export.passes import PassReport
from edgeclip.export.precision import Request
from edgeclip.export.precision.experts import counting
from edgeclip.export.precision.int8_conv import activated, quantise, through_bytes
from edgeclip.export.precision.layers8 import choose, encode_weight, enough_seen, replace_layer, smoothed
from edgeclip.export.precision.ranges import ByteRange, byte_range, see


def apply(model: ir.Model, request: Request) -> list[PassReport]:
    """Quantise the layers that are asked for, in place. An input that several of them read is made bytes once."""
    assert request.inputs is not None, "convert() asks for them"
    chosen = choose(model, request)
    values = {str(layer.x.name): -1 for layer in chosen.linears}
    values |= {str(value.name): 1 for layer in chosen.convolutions for value in (layer.x, activated(layer))}
    seen = see(model, values, request.inputs, threads=request.threads, counting=counting(model))
    chosen = enough_seen(chosen, seen, request.fewest)
    layers, smoothing = smoothed(model, chosen, seen, request, request.activations)
    quantise(model, chosen.convolutions, seen, request)
    inputs: dict[ir.Value, tuple[ByteRange, ir.Value]] = {}
    for layer in layers:
        known = seen[str(layer.x.name)]
        if layer.x not in inputs:
            found = byte_range(known, request.ranges, request.activations)
            inputs[layer.x] = found, through_bytes(model.graph, _lifted(model.graph, layer.x), found)
        found, x = inputs[layer.x]
        bytes_, weight = encode_weight(model.graph, layer, request.saturating)
        up = ir.node("DequantizeLinear", weight, {"axis": 1})
        # The mean of a product is the product of the mean: what rounding adds on average, the bias takes away.
        drift = known.rows.mean(0) @ layer.weight - found.rounded(known.rows).mean(0) @ bytes_.floats
        new = [up, ir.node("MatMul", [x, up.outputs[0]])]
        if x.shape is not None and layer.x.shape is not None and len(x.shape) > len(layer.x.shape):
            new.append(ir.node("Squeeze", [new[-1].outputs[0], _axis(model.graph)]))
        replace_layer(model.graph, layer, new, drift)
    return [smoothing, chosen.report]


def _lifted(graph: ir.Graph, x: ir.Value) -> ir.Value:
    """(R, K) as (1, R, K): of a product of rows and its bias onnxruntime makes a Gemm, which it then computes in floats."""
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
