"""Portable attention rewritten as the operator; values are compared in test_towers for every made-up source."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from edgeclip.export.attention import fuse_attention

N, HEADS, QUERIES, KEYS, WIDTH = 2, 3, 4, 5, 8
RANDOM = np.random.default_rng(0)


def portable(
    mask: NDArray[np.float32] | None = None,
    queries: int = QUERIES,
    batch: int = N,
    permutation: tuple[int, ...] = (0, 1, 3, 2),
) -> tuple[ir.Model, dict[str, NDArray[np.float32]]]:
    """A graph of one attention and inputs for it."""
    arrays = {
        "q": RANDOM.normal(size=(batch, HEADS, queries, WIDTH)),
        "k": RANDOM.normal(size=(N, HEADS, KEYS, WIDTH)),
        "v": RANDOM.normal(size=(N, HEADS, KEYS, WIDTH)),
    }
    if permutation == (0, 2, 3, 1):
        arrays["k"] = arrays["k"].transpose(0, 2, 1, 3)
    nodes = [
        helper.make_node("Transpose", ["k"], ["turned"], perm=permutation),
        helper.make_node("MatMul", ["q", "turned"], ["scores"]),
    ]
    if mask is not None:
        arrays["mask"] = mask
        nodes.append(helper.make_node("Add", ["scores", "mask"], ["masked"]))
    nodes += [
        helper.make_node("Softmax", ["scores" if mask is None else "masked"], ["weights"], axis=-1),
        helper.make_node("MatMul", ["weights", "v"], ["rows"]),
        helper.make_node("Identity", ["rows"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, a.shape) for name, a in arrays.items()]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, (N, HEADS, queries, WIDTH))
    model = helper.make_model(
        helper.make_graph(nodes, "one", inputs, [output]),
        opset_imports=[helper.make_opsetid("", 23)],
        ir_version=11,
    )
    return ir.from_proto(model), {name: array.astype(np.float32) for name, array in arrays.items()}


def run(model: ir.Model, inputs: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    found: NDArray[np.float32] = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, inputs)[0]
    return found


CAUSAL = np.triu(np.full((KEYS, KEYS), -32752, np.float32), 1)
PADDING = np.where(np.arange(KEYS) < 3, 0, -32752).astype(np.float32).reshape(1, 1, 1, KEYS).repeat(N, 0)


@pytest.mark.parametrize(
    ("changes", "causal"),
    [
        ({}, 0),
        ({"permutation": (0, 2, 3, 1)}, 0),
        ({"mask": CAUSAL, "queries": KEYS}, 1),
        ({"mask": PADDING}, 0),
        ({"mask": PADDING, "queries": 1}, 0),
        ({"batch": 1}, 0),  # learned queries, the same for every row
    ],
    ids=["plain", "other permutation", "causal", "padding", "one query", "learned queries"],
)
def test_the_operator_gives_the_same(changes: dict[str, object], causal: int) -> None:
    model, inputs = portable(**changes)  # type: ignore[arg-type]
    want = run(model, inputs)
    report = fuse_attention(model)
    assert (report.changed, report.near_misses) == (1, ())
    (node,) = (node for node in model.graph if node.op_type == "Attention")
    assert node.attributes["is_causal"].as_int() == causal
    ir.passes.common.RemoveUnusedNodesPass()(model)
    assert "Softmax" not in {n.op_type for n in model.graph}
    inputs = {v.name: inputs[v.name] for v in model.graph.inputs if v.name}
    np.testing.assert_allclose(run(model, inputs), want, rtol=0, atol=1e-6)


def test_what_only_looks_like_attention_is_left_and_named() -> None:
    model, _ = portable()
    softmax = next(node for node in model.graph if node.op_type == "Softmax")
    softmax.replace_input_with(0, model.graph.inputs[0])  # a softmax of an input
    report = fuse_attention(model)
    assert report.changed == 0
    assert "its input is no product" in report.near_misses[0]

    model, _ = portable()
    turn = next(node for node in model.graph if node.op_type == "Transpose")
    turn.attributes["perm"] = ir.AttrInt64s("perm", [1, 0, 3, 2])
    assert "not transposed by a known permutation" in fuse_attention(model).near_misses[0]
