"""int4 weights, fp32 activations: a scale for every 64 weights along the input, as DequantizeLinear in front of the product.

onnxruntime fuses the pair when it loads the graph (MatMulNBits); TensorRT takes blocks of 64 and 128 alone. A size tool: with
rounding to nearest each layer errs by a tenth, so what it is worth on embeddings is for the accuracy budget to say.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir

from edgeclip.export.linears import HEAD, Array, Linear, constant, in_heads, linears
from edgeclip.export.passes import PassReport
from edgeclip.export.precision import Request
from edgeclip.export.precision.experts import WHY, is_router

BLOCKS = (64, 32, 16)  # the first that divides the input's width; onnxruntime takes all three
LOWEST, HIGHEST = -8, 7
SHRINKS = np.linspace(
    1.0, 0.6, 17
)  # of the scale that clips nothing: the one with the least squared error is taken


def apply(model: ir.Model, request: Request) -> list[PassReport]:
    """Store the weights of the linear layers in 4 bits, in place."""
    changed, missed, heads = 0, [], in_heads(model)
    for one in linears(model):
        if request.layers is not None and one.name not in request.layers:
            continue
        if one.node in heads or is_router(one):
            missed.append(f"{one.name}: {WHY if is_router(one) else HEAD}")
            continue
        width, outputs = one.weight.shape
        size = next((size for size in BLOCKS if width % size == 0), None)
        if size is None or outputs % 2:
            missed.append(f"{one.name}: {width} x {outputs} is no multiple of {BLOCKS[-1]} x 2")
            continue
        if size != BLOCKS[0]:
            missed.append(
                f"{one.name}: blocks of {size}, as {width} is no multiple of {BLOCKS[0]}; not for TensorRT"
            )
        _store(model, one, size)
        changed += 1
    return [PassReport("int4", changed, tuple(missed))]


def quantise(weight: Array, size: int) -> tuple[Array, Array]:
    """Scales of least squared error for blocks along the first axis.

    Args:
        weight: (K, M) float32, K a multiple of `size`.
    Returns:
        (K, M) whole numbers from -8 to 7 as float32, and (K / size, M) float32 scales, all above 0.
    """
    blocks = weight.reshape(-1, size, weight.shape[1])
    peak = np.abs(blocks).max(axis=1, keepdims=True)
    widest = np.where(peak > 0, peak, 1) / HIGHEST
    best, least = widest, np.full_like(widest, np.inf)
    for shrink in SHRINKS:
        scale = (widest * shrink).astype(np.float32)
        error = ((np.clip(np.rint(blocks / scale), LOWEST, HIGHEST) * scale - blocks) ** 2).sum(
            axis=1, keepdims=True
        )
        best, least = np.where(error < least, scale, best), np.minimum(error, least)
    best = best.astype(np.float32)
    whole: Array = np.clip(np.rint(blocks / best), LOWEST, HIGHEST).reshape(weight.shape)
    return whole, best[:, 0]


def _store(model: ir.Model, one: Linear, size: int) -> None:
    graph = model.graph
    whole, scales = quantise(one.weight, size)
    stored = constant(graph, f"{one.name}.int4", whole.astype(ml_dtypes.int4))
    scale = constant(graph, f"{one.name}.scale", scales)
    node = ir.node("DequantizeLinear", [stored, scale], {"axis": 0, "block_size": size})
    node.outputs[0].shape, node.outputs[0].type = stored.shape, ir.TensorType(ir.DataType.FLOAT)
    graph.insert_before(one.node, node)
    one.node.replace_input_with(1, node.outputs[0])
    if one.node.op_type == "Gemm":
        one.node.attributes["transB"] = ir.AttrInt64("transB", 0)
