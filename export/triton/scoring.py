"""The graphs that turn embeddings into scores: one multiplication and the family's softmax or sigmoid."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeclip.bundle import Manifest, Port, Scores
from edgeclip.export.targets import PORTABLE

OUTPUTS = ("logits", "scores")


def scoring_graph(
    facts: Manifest, scores: Scores, labels: NDArray[Any] | None = None
) -> tuple[bytes, tuple[Port, ...], tuple[Port, ...]]:
    """Unit rows in, logits and scores out.

    Args:
        scores: how logits follow from the cosines of the image variant that is served.
        labels: (P, D) unit rows that stand in the graph; None: they are its second input, `prompt_embeddings` (P, D).
    Returns:
        the ONNX file, its inputs, and its outputs `logits` (N, P) and `scores` (N, P) in 0-1.
    """
    dim, places = facts.embedding_dim, "P" if labels is None else len(labels)
    inputs = [Port("image_embeddings", "float32", ("N", dim))]
    if labels is None:
        inputs.append(Port("prompt_embeddings", "float32", ("P", dim)))
    outputs = tuple(Port(name, "float32", ("N", places)) for name in OUTPUTS)
    values = [_value(port) for port in inputs]
    constants = [_constant("bias", np.array([scores.logit_bias], np.float32))]
    if labels is not None:
        constants.append(_constant("labels", labels.astype(np.float32)))
    rows, columns = (*values, *constants[1:])
    product = ir.node("Gemm", [rows, columns, constants[0]], {"alpha": scores.logit_scale, "transB": 1})
    soft = facts.activation == "softmax"
    last = ir.node("Softmax" if soft else "Sigmoid", [product.outputs[0]], {"axis": -1} if soft else {})
    for node, port in zip((product, last), outputs, strict=True):
        _describe(node.outputs[0], port)
    graph = ir.Graph(
        values,
        [node.outputs[0] for node in (product, last)],
        nodes=[product, last],
        initializers=constants,
        opset_imports={"": PORTABLE.opset},
        name="scores",
    )
    model = ir.Model(graph, ir_version=PORTABLE.ir_version, producer_name="edgeclip")
    return ir.to_proto(model).SerializeToString(), tuple(inputs), outputs


def _value(port: Port) -> ir.Value:
    return _describe(ir.Value(), port)


def _describe(value: ir.Value, port: Port) -> ir.Value:
    value.name, value.type, value.shape = port.name, ir.TensorType(ir.DataType.FLOAT), ir.Shape(port.shape)
    return value


def _constant(name: str, array: NDArray[Any]) -> ir.Value:
    return ir.Value(name=name, const_value=ir.tensor(array, name=name))
