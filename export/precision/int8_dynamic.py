"""int8 without calibration: DynamicQuantizeLinear finds the range of every activation anew, in each run.

For CPUs; TensorRT has no such operators. The range is that of the whole tensor, the batch included: **a row depends on its batch
mates**, so that the same picture gives slightly different embeddings alone and in a batch. Static scales do not have that.
With calibration inputs the weights are smoothed and rounded for what was seen, as in int8_static.
"""

from __future__ import annotations

import onnx_ir as ir

from edgeclip.export.passes import PassReport
from edgeclip.export.precision import Request
from edgeclip.export.precision.experts import counting
from edgeclip.export.precision.layers8 import choose, encode_weight, enough_seen, replace_layer, smoothed
from edgeclip.export.precision.ranges import Seen, see


def apply(model: ir.Model, request: Request) -> list[PassReport]:
    """Quantise the layers that are asked for, in place."""
    chosen = choose(model, request, convolved=False)
    layers, reports, seen = list(chosen.linears), [chosen.report], dict[str, Seen]()
    if request.inputs is not None and layers:
        names = {str(layer.x.name): -1 for layer in layers}
        seen = see(model, names, request.inputs, threads=request.threads, counting=counting(model))
        chosen = enough_seen(chosen, seen, request.fewest)
        layers, report = smoothed(model, chosen, seen, request, "uint8")
        reports = [report, chosen.report]
    inputs: dict[ir.Value, ir.Node] = {}
    for layer in layers:
        known = seen.get(str(layer.x.name))
        if layer.x not in inputs:
            inputs[layer.x] = ir.node("DynamicQuantizeLinear", [layer.x], num_outputs=3)
            maker = layer.x.producer()
            assert maker is not None, "a layer that reads the graph's input is not quantised"
            model.graph.insert_after(maker, [inputs[layer.x]])
        x, x_scale, x_zero = inputs[layer.x].outputs
        bytes_, (q, scale, zero) = encode_weight(model.graph, layer, request.saturating)
        drift = None if known is None else known.rows.mean(0) @ (layer.weight - bytes_.floats)
        # In this form, with the product of the scales behind the Cast, onnxruntime makes one operator of all, bias included.
        product = ir.node("MatMulInteger", [x, q, x_zero, zero])
        floats = ir.node("Cast", product.outputs, {"to": ir.DataType.FLOAT})
        scales = ir.node("Mul", [x_scale, scale])
        new = [product, floats, scales, ir.node("Mul", [floats.outputs[0], scales.outputs[0]])]
        replace_layer(model.graph, layer, new, drift)
    return reports
