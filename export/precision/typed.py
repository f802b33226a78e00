"""Graphs whose types say what they compute in: nodes moved from fp32 to a 16-bit float, and what that does to the values.

onnxruntime's CPU has few 16-bit kernels: it widens fp16 nodes to fp32 and then drops the roundings between them, so that an
overflow which ruins the graph on a GPU does not show (3 * 300**3 / 300**2 gives 3 there, not inf). `rounded` writes the
roundings out as nodes that it keeps; what a graph really computes is measured on that.
"""

from __future__ import annotations

from collections.abc import Set
from functools import cache

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from edgeclip.errors import CheckFailed
from edgeclip.export.linears import Array, array_of, behind_layers, constant
from edgeclip.export.observe import session
from edgeclip.export.precision.experts import WHY, routing

FLOAT = ir.DataType.FLOAT
HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
# They hand values on as they are: what went in rounded comes out rounded.
_MOVES = {"Transpose", "Reshape", "Slice", "Gather", "GatherElements", "GatherND", "Concat", "Split", "Squeeze", "Unsqueeze", "Expand"}  # fmt: skip


def prepare(model: ir.Model) -> None:
    """Make every constant a plain fp32 initializer (some are stored as fp16 with a Cast) and every value's type known."""
    graph = model.graph
    for node in list(graph):
        output = node.outputs[0]
        if node.op_type == "Cast" and output.dtype == FLOAT and (array := array_of(output)) is not None:
            name = str(node.inputs[0].name)  # type: ignore[union-attr]
            del graph.initializers[name]
            output.replace_all_uses_with(constant(graph, name.removesuffix(".fp16"), array))
            graph.remove(node, safe=True)
    if any(value.dtype is None for node in graph for value in node.outputs):
        ShapeInferencePass()(model)


def fixed(model: ir.Model, dtype: ir.DataType) -> dict[str, str]:
    """Nodes that stay in fp32 whatever the values are -> why: the norm of the rows and what follows it, operators without the type.

    Of a detector all that stands behind its last layers: a box is the sigmoid of what its head says plus the grid's logits, and a step
    of that sum in fp16 moves a corner by up to 2e-4 of the side.
    """
    found: dict[str, str] = {}
    opset, places, routers = model.opset_imports[""], deciding(model), routing(model)
    last = behind_layers(model) if len(model.graph.outputs) > 1 else set()
    for node in model.graph:
        before = [value.producer() for value in node.inputs if value is not None]
        if not _makes_float(node):
            continue
        if node in routers:
            found[str(node.name)] = WHY
            continue
        if node.name in places:
            found[str(node.name)] = "decides on a place in the sequence"
            continue
        if node in last:
            found[str(node.name)] = "behind the last layer of a detector's head"
            continue
        if node.op_type == "ReduceL2" or any(
            p is not None and p.name in found and found[p.name] == _NORM for p in before
        ):
            found[str(node.name)] = _NORM
        elif not _takes(node.op_type, opset, dtype):
            found[str(node.name)] = f"{node.op_type} has no {dtype.name.lower()} at opset {opset}"
        elif node.op_type != "Cast" and not any(
            value is not None and value.dtype == FLOAT for value in node.inputs
        ):
            found[str(node.name)] = "makes fp32 from nothing"
    return found


def deciding(model: ir.Model) -> set[str]:
    """Nodes whose values become truth values or places in a sequence: rounded, an id of 49407 is another id."""
    found: set[str] = set()
    for node in reversed(list(model.graph)):
        readers = [reader for value in node.outputs for reader in value.consumers()]
        decides = any(
            reader.name in found or not _makes_float(reader)
            for reader in readers
            if reader.op_type != "Shape"
        )
        if _makes_float(node) and decides and node.op_type not in _WEIGHED:
            found.add(str(node.name))
    return found


def _makes_float(node: ir.Node) -> bool:
    return any(value.dtype == FLOAT for value in node.outputs)


_NORM = "the norm of the rows, or behind it"
_WEIGHED = {
    "MatMul",
    "Gemm",
    "Conv",
    "LayerNormalization",
    "Attention",
    "Softmax",
}  # no index lies behind these


@cache
def _takes(op_type: str, opset: int, dtype: ir.DataType) -> bool:
    schema = onnx.defs.get_schema(op_type, opset, "")
    allowed = {
        constraint.type_param_str: constraint.allowed_type_strs for constraint in schema.type_constraints
    }
    float_inputs = [
        kinds for port in schema.inputs if "tensor(float)" in (kinds := allowed.get(port.type_str, ()))
    ]
    plain = any(
        port.type_str == "tensor(float)" for port in schema.inputs
    )  # Resize's scales, whatever its data is
    return not plain and all(f"tensor({dtype.name.lower()})" in kinds for kinds in float_inputs)


def retype(model: ir.Model, dtype: ir.DataType, wide: Set[str]) -> int:
    """Move every fp32 node but the named ones to a 16-bit type, with Casts where the types meet; ports stay as they are.

    Returns:
        How many nodes were moved.
    Raises:
        CheckFailed: a constant that a moved node reads holds values beyond the type.
    """
    graph, changed = model.graph, 0
    made: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def converted(value: ir.Value, to: ir.DataType, reader: ir.Node) -> ir.Value:
        if (value, to) not in made:
            if value.const_value is not None:
                made[value, to] = constant(graph, f"{value.name}.{to.name}", _narrowed(value, to))
            else:
                node = ir.node("Cast", [value], {"to": to})
                node.outputs[0].shape, node.outputs[0].type = value.shape, ir.TensorType(to)
                graph.insert_before(reader, node)
                made[value, to] = node.outputs[0]
        return made[value, to]

    for node in list(graph):
        if not _makes_float(node):
            continue
        to = FLOAT if node.name in wide else dtype
        for i, value in enumerate(node.inputs):
            if value is not None and value.dtype in (FLOAT, dtype) and value.dtype != to:
                node.replace_input_with(i, converted(value, to, node))
        if to == dtype:
            if node.op_type == "Cast":
                node.attributes["to"] = ir.AttrInt64("to", dtype)
            for value in node.outputs:
                if value.dtype == FLOAT:
                    value.type = ir.TensorType(dtype)
            changed += 1
    _widen_outputs(graph, dtype)
    for (value, _), new in made.items():  # a constant that is now read in one type only keeps its name
        if value.is_initializer() and not value.uses() and value.name in graph.initializers:
            name = str(value.name)
            del graph.initializers[name]
            new.name = name
    return changed


def _narrowed(value: ir.Value, to: ir.DataType) -> Array:
    assert value.const_value is not None
    array = value.const_value.numpy()
    with np.errstate(over="ignore"):
        narrow: Array = array.astype(to.numpy())
    if np.isfinite(array).all() and not np.isfinite(narrow.astype(np.float32)).all():
        raise CheckFailed(
            f"{value.name}: expected constants that {to.name} holds, got {np.abs(array).max():.3g}; its reader must stay fp32."
        )
    return narrow


def _widen_outputs(graph: ir.Graph, dtype: ir.DataType) -> None:
    for i, value in enumerate(graph.outputs):
        if value.dtype == dtype:
            node = ir.node("Cast", [value], {"to": FLOAT})
            wide = node.outputs[0]
            wide.name, wide.shape, wide.type = value.name, value.shape, ir.TensorType(FLOAT)
            value.name = f"{value.name}.{dtype.name}"
            graph.append(node)
            graph.outputs[i] = wide


def rounded(model: ir.Model) -> ir.Model:
    """An fp32 copy that rounds wherever the graph's 16-bit types round, for engines that do not compute in them.

    Each node is exact up to fp32 and its output is rounded once, as in kernels that accumulate in fp32.
    """
    copy = model.clone()
    graph = copy.graph
    for value in graph.initializers.values():
        if value.dtype in HALVES and value.const_value is not None:
            value.const_value = ir.tensor(value.const_value.numpy().astype(np.float32), name=value.name)
            value.type = ir.TensorType(FLOAT)
    for node in list(graph):
        for value in list(node.outputs):
            if (half := value.dtype) not in HALVES:
                continue
            if node.op_type == "Cast":
                node.attributes["to"] = ir.AttrInt64("to", FLOAT)
            value.type = ir.TensorType(FLOAT)
            if node.op_type not in _MOVES:
                down = ir.node("Cast", [value], {"to": half})
                up = ir.node("Cast", [down.outputs[0]], {"to": FLOAT})
                up.outputs[0].shape, up.outputs[0].type = value.shape, ir.TensorType(FLOAT)
                value.replace_all_uses_with(up.outputs[0])
                down.replace_input_with(0, value)
                graph.insert_after(node, [down, up])
    return copy


def refusal(model: ir.Model) -> str:
    """Why onnxruntime's CPU engine does not open a graph, "" where it does."""
    try:
        session(model, threads=1)
    except Exception as error:  # its exceptions share no base class of their own
        return str(error).splitlines()[0].rpartition(" : ")[2]
    return ""
