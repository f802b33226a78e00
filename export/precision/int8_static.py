"""int8 with scales fixed at calibration: QuantizeLinear and DequantizeLinear around linear layers, and nowhere else.

onnxruntime makes one integer product of DequantizeLinear, DequantizeLinear and MatMul; TensorRT reads the same graph where activations
are symmetric (Request.activations "int8"), which is as fast on a CPU and a fifth less exact. Sums of residuals, softmax, GELU, norms
and embeddings stay float: with those quantised, a ViT-B/16 falls from 85 % top-1 to 5 %.

onnxruntime 1.23 has no QuantizeLinear of opset 23, which the flavour with the Attention operator is written in: there the portable one
is the one to quantise.
"""

from __future__ import annotations

import onnx_ir as ir

from edgeclip.export.passes import PassReport
from edgeclip.export.precision import Request, finished
from edgeclip.export.precision.experts import counting
from edgeclip.export.precision.int8_conv import activated, quantise
from edgeclip.export.precision.layers8 import choose, enough_seen, smoothed
from edgeclip.export.precision.products import Inputs, integer_product
from edgeclip.export.precision.ranges import byte_range, see
from edgeclip.export.precision.weights8 import encode


def apply(model: ir.Model, request: Request) -> list[PassReport]:
    """Quantise the layers that are asked for, in place. An input that several of them read is made bytes once."""
    if request.finished is not None:
        return finished.write(model, request.finished, request.layers, request.saturating)
    assert request.inputs is not None, "convert() asks for them"
    chosen = choose(model, request)
    values = {str(layer.x.name): -1 for layer in chosen.linears}
    values |= {str(value.name): 1 for layer in chosen.convolutions for value in (layer.x, activated(layer))}
    seen = see(model, values, request.inputs, threads=request.threads, counting=counting(model))
    chosen = enough_seen(chosen, seen, request.fewest)
    layers, smoothing = smoothed(model, chosen, seen, request, request.activations)
    quantise(model, chosen.convolutions, seen, request)
    inputs = Inputs(model.graph)
    for layer in layers:
        known = seen[str(layer.x.name)]
        found = inputs.known(layer.x) or byte_range(known, request.ranges, request.activations)
        x, bytes_ = inputs.through_bytes(layer.x, found), encode(layer.weight, saturating=request.saturating)
        # The mean of a product is the product of the mean: what rounding adds on average, the bias takes away.
        drift = known.rows.mean(0) @ layer.weight - found.rounded(known.rows).mean(0) @ bytes_.floats
        integer_product(model.graph, layer, x, bytes_, drift)
    return [smoothing, chosen.report]
