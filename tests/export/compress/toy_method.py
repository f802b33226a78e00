"""Weight-only int8 in the plainest form, so that what each layer loses can be planted: a stand-in for a real method."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeclip.errors import CheckFailed
from edgeclip.export.linears import constant, linears
from edgeclip.export.passes import PassReport
from edgeclip.export.precision import Request

LEVELS = 127
asked: list[Request] = []
bad: dict[str, int] = {}  # layer -> its levels, in place of LEVELS


def apply(model: ir.Model, request: Request) -> list[PassReport]:
    """Round the weights of the layers that were asked for."""
    assert request.inputs is not None
    asked.append(request)
    if "refuse" in bad or (f"refuse {request.inputs.dtype}" in bad):
        raise CheckFailed("toy: the result is not finite")
    layers = [layer for layer in linears(model) if request.layers is None or layer.name in request.layers]
    for layer in layers:
        levels = bad.get(layer.name, LEVELS)
        scale = np.array(np.abs(layer.weight).max() / levels, np.float32)
        q = constant(model.graph, f"{layer.name}.q", np.rint(layer.weight / scale).astype(np.int8))
        up = ir.node("DequantizeLinear", [q, constant(model.graph, f"{layer.name}.s", scale)])
        up.outputs[0].shape, up.outputs[0].type = q.shape, ir.TensorType(ir.DataType.FLOAT)
        product = ir.node("MatMul", [layer.x, up.outputs[0]])
        node_output = layer.node.outputs[0]
        new: list[ir.Node] = [up, product]
        output = product.outputs[0]
        if layer.node.op_type == "Gemm" and layer.bias is not None:
            add = ir.node("Add", [output, layer.bias])
            new.append(add)
            output = add.outputs[0]
        output.shape, output.type = node_output.shape, node_output.type
        model.graph.insert_before(layer.node, new)
        node_output.replace_all_uses_with(output, replace_graph_outputs=True)
    return [PassReport("toy", len(layers))]
