"""From the portable form of attention to the ONNX operator: one trace serves both flavours.

Portable: Softmax(q @ k^T [+ mask]) @ v, with the softmax scale already in q. Operator: Attention(q, k, v[, mask]), opset 23.
Shapes: N batch, h heads, Q queries, T keys, d head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeclip.export.passes import PassReport

_SWAP_TOKENS_AND_HEADS = (0, 2, 1, 3)
# A Transpose that gives k^T (N, h, d, T) -> the one that gives k (N, h, T, d) of the same input; None: the input is k.
_UNTURNED: dict[tuple[int, ...], tuple[int, ...] | None] = {
    (0, 1, 3, 2): None,
    (0, 2, 3, 1): _SWAP_TOKENS_AND_HEADS,
}


@dataclass(frozen=True)
class _Portable:
    """One attention in its portable form."""

    q: ir.Value  # (N, h, Q, d), or (1, h, Q, d) for learned queries
    turn: ir.Node  # the Transpose that gives k^T
    v: ir.Value  # (N, h, T, d)
    mask: ir.Value | None  # additive: (T, T) if causal, else (N, 1, Q or 1, T)
    last: ir.Node  # the product with v


def fuse_attention(model: ir.Model) -> PassReport:
    """Write every attention as the operator. What is no longer read is left for `remove_unused`."""
    changed, missed = 0, []
    for softmax in [node for node in model.graph if node.op_type == "Softmax"]:
        found = _match(softmax)
        if isinstance(found, str):
            missed.append(f"{softmax.name}: {found}")
            continue
        _replace(model.graph, found)
        changed += 1
    return PassReport("fuse_attention", changed, tuple(missed))


def _match(softmax: ir.Node) -> _Portable | str:
    """The attention around a Softmax, or why it is none."""
    scores, mask = softmax.inputs[0], None
    product = _made_by(scores, "Add") or _made_by(scores, "MatMul")
    if product is not None and product.op_type == "Add":
        mask, product = product.inputs[1], _made_by(product.inputs[0], "MatMul")
    if product is None or product.inputs[0] is None:
        return "its input is no product, with or without a mask"
    turn = _made_by(product.inputs[1], "Transpose")
    if turn is None or tuple(turn.attributes["perm"].as_ints()) not in _UNTURNED:
        return "its keys are not transposed by a known permutation"
    readers = softmax.outputs[0].consumers()
    if len(readers) != 1 or readers[0].op_type != "MatMul" or readers[0].inputs[1] is None:
        return "it is not read by one product alone"
    return _Portable(product.inputs[0], turn, readers[0].inputs[1], mask, readers[0])


def _made_by(value: ir.Value | None, op_type: str) -> ir.Node | None:
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op_type else None


def _replace(graph: ir.Graph, found: _Portable) -> None:
    new: list[ir.Node] = []
    k = found.turn.inputs[0]
    assert k is not None
    if (permutation := _UNTURNED[tuple(found.turn.attributes["perm"].as_ints())]) is not None:
        new.append(ir.node("Transpose", [k], {"perm": permutation}))
        k = new[-1].outputs[0]
    q, mask, causal = found.q, found.mask, False
    if q.shape is not None and q.shape[0] == 1:  # learned queries: the operator does not broadcast them
        q = _expanded(graph, new, q, like=found.v, axis=0)
    if mask is not None and mask.shape is not None and len(mask.shape) == 2:
        # The causal mask alone has no batch axis; fused kernels know it by the attribute.
        mask, causal = None, True
    elif (
        mask is not None
        and mask.shape is not None
        and found.q.shape is not None
        and mask.shape[2] != found.q.shape[2]
    ):
        mask = _expanded(graph, new, mask, like=q, axis=2)  # onnxruntime wants a row for each query
    inputs = [q, k, found.v] if mask is None else [q, k, found.v, mask]
    node = ir.node("Attention", inputs, {"is_causal": int(causal), "scale": 1.0})
    old, (result,) = found.last.outputs[0], node.outputs
    result.shape, result.type = old.shape, old.type
    graph.insert_before(found.last, [*new, node])
    old.replace_all_uses_with(result)


def _expanded(graph: ir.Graph, new: list[ir.Node], value: ir.Value, like: ir.Value, axis: int) -> ir.Value:
    """`value` (four axes) repeated along one axis, to the size that `like` has there."""
    rank = 4
    size = ir.node("Shape", [like], {"start": axis, "end": axis + 1})
    before, after = (
        [_constant(graph, f"{value.name}.ones.{i}", [1] * n)]
        if n
        else []  # TensorRT warns of empty constants
        for i, n in enumerate((axis, rank - 1 - axis))
    )
    target = ir.node("Concat", [*before, size.outputs[0], *after], {"axis": 0})
    wide = ir.node("Expand", [value, target.outputs[0]])
    wide.outputs[0].type = value.type
    new += [size, target, wide]
    return wide.outputs[0]


def _constant(graph: ir.Graph, name: str, values: list[int]) -> ir.Value:
    constant = ir.Value(name=name, const_value=ir.tensor(np.array(values, np.int64)))
    if name not in graph.initializers:
        graph.register_initializer(constant)
    return graph.initializers[name]
