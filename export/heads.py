"""Heads, as a few nodes behind a graph that gives embeddings: labels that stand in the graph, or prompts that are an input.

An image tower's rows are compared once a picture, a detector's once a region, each with its own scale and bias. No PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeclip.bundle import Port, Scores
from edgeclip.export.linears import constant
from edgeclip.export.passes import number_nodes
from edgeclip.runtime.verify_heads import MASKED

Array = NDArray[Any]
Activation = Literal["softmax", "sigmoid"]
Ports = tuple[Port, ...]


def add_labels(model: ir.Model, vectors: Array, scores: Scores, activation: Activation) -> Ports:
    """Put a head of fixed labels behind a graph's `embeddings`, in place. The scale stands in the label matrix.

    Args:
        vectors: (P, D) unit rows.
    Returns:
        the outputs: `logits` (N, P), and `scores` (N, P) in 0-1.
    """
    graph, rows = model.graph, model.graph.outputs[0]
    matrix = constant(
        graph, "head.labels", (vectors.astype(np.float64).T * scores.logit_scale).astype(np.float32)
    )
    nodes = [ir.node("MatMul", [rows, matrix])]
    if scores.logit_bias:
        bias = constant(graph, "head.bias", np.array(scores.logit_bias, np.float32))
        nodes.append(ir.node("Add", [nodes[-1].outputs[0], bias]))
    logits = nodes[-1].outputs[0]
    nodes.append(
        ir.node("Softmax", [logits], {"axis": -1})
        if activation == "softmax"
        else ir.node("Sigmoid", [logits])
    )
    return _finish(model, nodes, {"logits": logits, "scores": nodes[-1].outputs[0]}, ("N", len(vectors)))


def add_prompts(model: ir.Model, dim: int, scores: Scores, places: int | None) -> tuple[Ports, Ports]:
    """Put a head that takes prompts behind a graph's `embeddings`, in place.

    Returns:
        the added inputs: `prompt_embeddings` (B, P, D) float32 unit rows and `prompt_mask` (B, P) bool, B being N or 1;
        the outputs: `logits` (N, P), -1e4 where masked.
    """
    graph, rows = model.graph, model.graph.outputs[0]
    ports, (embeddings, mask) = _take_prompts(graph, dim, places)
    last = constant(graph, "head.axis", np.array([2], np.int64))
    scale = constant(graph, "head.scale", np.array(scores.logit_scale, np.float32))
    masked = constant(graph, "head.masked", np.array(MASKED, np.float32))
    # (B, P, D) @ (N, D, 1): the prompts are read as they lie, and one set serves all pictures
    nodes = [ir.node("Unsqueeze", [rows, last])]
    nodes.append(ir.node("MatMul", [embeddings, nodes[-1].outputs[0]]))
    nodes.append(ir.node("Squeeze", [nodes[-1].outputs[0], last]))
    nodes.append(ir.node("Mul", [nodes[-1].outputs[0], scale]))
    if scores.logit_bias:
        bias = constant(graph, "head.bias", np.array(scores.logit_bias, np.float32))
        nodes.append(ir.node("Add", [nodes[-1].outputs[0], bias]))
    nodes.append(ir.node("Where", [mask, nodes[-1].outputs[0], masked]))
    return ports, _finish(model, nodes, {"logits": nodes[-1].outputs[0]}, ("N", places or "P"))


def detect_labels(model: ir.Model, vectors: Array) -> Ports:
    """Put a head of fixed labels behind a detector's graph, in place.

    Args:
        vectors: (P, D) unit rows.
    Returns:
        the outputs: `boxes`, `logits` (N, Q, P) and what else the graph says of a region by itself.
    """
    matrix = constant(model.graph, "head.labels", np.ascontiguousarray(vectors.T, np.float32))
    rows = _outputs(model)["region_embeddings"]
    return _rated(model, [ir.node("MatMul", [rows, matrix])], len(vectors), None)


def detect_prompts(model: ir.Model, dim: int, places: int | None = None) -> tuple[Ports, Ports]:
    """Put a head that takes prompts behind a detector's graph, in place.

    Returns:
        the added inputs, as `add_prompts` has them; the outputs: `boxes`, `logits` (N, Q, P), -1e4 where masked, and what else
        the graph says of a region by itself.
    """
    ports, (embeddings, mask) = _take_prompts(model.graph, dim, places)
    rows = _outputs(model)["region_embeddings"]
    turned = ir.node("Transpose", [embeddings], {"perm": [0, 2, 1]})  # (B, D, P)
    products = [turned, ir.node("MatMul", [rows, turned.outputs[0]])]
    return ports, _rated(model, products, places or "P", mask)


def _rated(model: ir.Model, nodes: list[ir.Node], size: int | str, mask: ir.Value | None) -> Ports:
    """Behind cosines (N, Q, P): each region's scale and bias, and what is masked (B, P)."""
    graph, outputs = model.graph, _outputs(model)
    last = constant(graph, "head.last_axis", np.array([2], np.int64))
    for op, name in (("Mul", "logit_scales"), ("Add", "logit_biases")):
        wide = ir.node("Unsqueeze", [outputs[name], last])
        nodes += [wide, ir.node(op, [nodes[-1].outputs[0], wide.outputs[0]])]
    if mask is not None:
        regions = constant(graph, "head.region_axis", np.array([1], np.int64))
        shown = ir.node("Unsqueeze", [mask, regions])
        masked = constant(graph, "head.masked", np.array(MASKED, np.float32))
        nodes += [shown, ir.node("Where", [shown.outputs[0], nodes[-1].outputs[0], masked])]
    boxes = outputs["boxes"]
    assert boxes.shape is not None
    count = boxes.shape[1]
    assert isinstance(count, int)
    kept = {name: outputs[name] for name in ("objectness",) if name in outputs}
    ports = [Port("boxes", "float32", ("N", count, 4)), Port("logits", "float32", ("N", count, size))]
    ports += [Port(name, "float32", ("N", count)) for name in kept]
    graph.extend(nodes)
    graph.outputs.clear()
    for name in ("region_embeddings", "logit_scales", "logit_biases"):
        outputs[name].name = f"inner.{name}"  # number_nodes gives it its place's
    logits = nodes[-1].outputs[0]
    logits.name, logits.type = "logits", ir.TensorType(ir.DataType.FLOAT)
    logits.shape = ir.Shape(ports[1].shape)
    graph.outputs.extend([boxes, logits, *kept.values()])
    number_nodes(model)
    return tuple(ports)


def _outputs(model: ir.Model) -> dict[str, ir.Value]:
    return {str(value.name): value for value in model.graph.outputs}


def _take_prompts(graph: ir.Graph, dim: int, places: int | None) -> tuple[Ports, list[ir.Value]]:
    """Add the inputs `prompt_embeddings` (B, P, D) and `prompt_mask` (B, P)."""
    size: int | str = places or "P"
    ports = (
        Port("prompt_embeddings", "float32", ("B", size, dim)),
        Port("prompt_mask", "bool", ("B", size)),
    )
    values = [
        ir.Value(name=port.name, shape=ir.Shape(port.shape), type=ir.TensorType(_TYPES[port.dtype]))
        for port in ports
    ]
    graph.inputs.extend(values)
    return ports, values


_TYPES = {"float32": ir.DataType.FLOAT, "bool": ir.DataType.BOOL}


def _finish(
    model: ir.Model, nodes: Sequence[ir.Node], outputs: dict[str, ir.Value], shape: tuple[int | str, ...]
) -> Ports:
    """Append nodes and make their values the graph's outputs; `embeddings` becomes an inner value."""
    rows = model.graph.outputs[0]
    model.graph.extend(nodes)
    model.graph.outputs.clear()
    rows.name = "rows"  # number_nodes gives it its place's
    for name, value in outputs.items():
        value.name, value.type, value.shape = name, ir.TensorType(ir.DataType.FLOAT), ir.Shape(shape)
        model.graph.outputs.append(value)
    number_nodes(model)
    return tuple(Port(name, "float32", shape) for name in outputs)
