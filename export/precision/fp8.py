"""fp8 (E4M3FN) for TensorRT: both sides of every linear layer quantised with one scale a tensor, the rest in fp16.

A float of 8 bits errs in proportion to the value, so a scale for each channel gains little over one for the tensor: 448 to
2**-9 is a range of 2**18. Zero points are 0. The convolution of the patches is no linear layer and stays, and so does the last
product, which nothing averages out. Ada GPUs and later; onnxruntime's CPU runs the graph too, slowly.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir

from edgeclip.export.linears import HEAD, Array, Linear, constant, in_heads, linears
from edgeclip.export.passes import PassReport
from edgeclip.export.precision import Request
from edgeclip.export.precision.experts import WHY, counting, expert_of, few_tokens, is_router
from edgeclip.export.precision.islands import FP16, lower, peaks
from edgeclip.export.precision.ranges import see
from edgeclip.export.precision.typed import prepare

LARGEST = 448.0  # of E4M3FN
SMALLEST_SCALE = (
    2.0**-14
)  # a normal number of fp16; what is divided by more than needed still has fp8's own exponent


def apply(model: ir.Model, request: Request) -> list[PassReport]:
    """Move the graph to fp16 and its linear layers to fp8, in place. Raises CheckFailed where fp16's output is not finite."""
    assert request.inputs is not None
    prepare(model)
    found = peaks(model, request.inputs, threads=request.threads)
    before = {one.name: one for one in linears(model)}  # weights as they are, not as fp16 rounds them
    reach = {name: found[str(one.x.name)] for name, one in before.items()}
    few = _of_experts(model, before, reach, request)
    everything = Request(inputs=request.inputs, threads=request.threads)
    reports = lower(model, everything, FP16)
    layers, missed, heads = linears(model), [], in_heads(model)
    shared: dict[ir.Value, ir.Value] = {}
    for one in layers:
        if request.layers is not None and one.name not in request.layers:
            continue
        if one.node in heads or is_router(one):
            missed.append(f"{one.name}: {WHY if is_router(one) else HEAD}")
        elif one.name in few:
            missed.append(f"{one.name}: {few[one.name]}")
        elif not _feeds_another(one, layers):
            missed.append(f"{one.name}: the last product stays {one.node.outputs[0].dtype}")
        elif not 0 < reach[one.name] < np.inf:
            missed.append(f"{one.name}: its input was {reach[one.name]} throughout")
        else:
            _quantise(model, one, before[one.name].weight, reach[one.name], shared)
    changed = len({node for value in shared.values() for node in value.consumers()})
    return [*reports, PassReport("fp8", changed, tuple(missed))]


def _of_experts(
    model: ir.Model, layers: dict[str, Linear], reach: dict[str, float], request: Request
) -> dict[str, str]:
    """Set the reach of experts' layers to that of the tokens that took them; those that too few took -> why they stay."""
    assert request.inputs is not None
    names = {str(one.x.name): -1 for name, one in layers.items() if expert_of(name)}
    if not names:
        return {}
    seen = see(model, names, request.inputs, threads=request.threads, counting=counting(model))
    found = {name: seen[str(one.x.name)] for name, one in layers.items() if expert_of(name)}
    tokens: dict[str, int] = {}
    for name, known in found.items():
        reach[name] = float(known.peaks.max(initial=0)) if known.count else 0.0
        tokens[expert_of(name)] = min(known.count, tokens.get(expert_of(name), known.count))
    return {
        name: few_tokens(count, request.fewest)
        for name in found
        if (count := tokens[expert_of(name)]) < request.fewest
    }


def _feeds_another(one: Linear, layers: list[Linear]) -> bool:
    """Whether a linear layer reads what follows from this one."""
    ahead, seen = [one.output], set[ir.Value]()
    nodes = {other.node for other in layers if other is not one}
    while ahead:
        value = ahead.pop()
        for reader in value.consumers():
            if reader in nodes:
                return True
            ahead += [output for output in reader.outputs if output not in seen]
            seen.update(reader.outputs)
    return False


def _quantise(
    model: ir.Model, one: Linear, weight: Array, reach: float, shared: dict[ir.Value, ir.Value]
) -> None:
    graph, dtype = model.graph, one.x.dtype
    assert dtype is not None
    if one.x not in shared:
        scale, zero = _scale(graph, f"{one.name}.input", reach, dtype)
        down = ir.node("QuantizeLinear", [one.x, scale, zero])
        up = ir.node("DequantizeLinear", [down.outputs[0], scale, zero])
        down.outputs[0].shape, down.outputs[0].type = one.x.shape, ir.TensorType(ir.DataType.FLOAT8E4M3FN)
        up.outputs[0].shape, up.outputs[0].type = one.x.shape, ir.TensorType(dtype)
        graph.insert_before(one.node, [down, up])
        shared[one.x] = up.outputs[0]
    scale, zero = _scale(graph, f"{one.name}.weight", float(np.abs(weight).max()), dtype)
    assert scale.const_value is not None
    stored = constant(graph, f"{one.name}.fp8", as_fp8(weight, float(scale.const_value.numpy())))
    back = ir.node("DequantizeLinear", [stored, scale, zero])
    back.outputs[0].shape, back.outputs[0].type = stored.shape, ir.TensorType(dtype)
    graph.insert_before(one.node, back)
    one.node.replace_input_with(0, shared[one.x])
    one.node.replace_input_with(1, back.outputs[0])
    if one.node.op_type == "Gemm":
        one.node.attributes["transB"] = ir.AttrInt64("transB", 0)


def as_fp8(array: Array, scale: float) -> Array:
    """Round to E4M3FN after division by `scale`; what lies beyond 448 becomes 448."""
    stored: Array = np.clip(array / scale, -LARGEST, LARGEST).astype(ml_dtypes.float8_e4m3fn)
    return stored


def _scale(graph: ir.Graph, name: str, reach: float, dtype: ir.DataType) -> tuple[ir.Value, ir.Value]:
    """(scale, zero point) that lead `reach` to 448."""
    scale = np.asarray(max(reach / LARGEST, SMALLEST_SCALE), np.float32).astype(dtype.numpy())
    zero = np.zeros((), ml_dtypes.float8_e4m3fn)
    return constant(graph, f"{name}.scale", scale), constant(graph, f"{name}.zero", zero)
