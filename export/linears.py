"""The layers of a graph that quantisation is about: every product with a constant weight, with what stands around it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Array = NDArray[Any]


# Why a layer of `in_heads` is never made bytes.
HEAD = "in a detector's head, whose rounding errors would be the boxes' and scores' own"


@dataclass(frozen=True)
class Linear:
    """x @ weight [+ bias], as a MatMul with an Add behind it or as a Gemm."""

    name: str  # of the weight, as in the checkpoint, e.g. "blocks.0.qkv.weight"
    node: ir.Node  # the MatMul or Gemm
    x: ir.Value  # (..., K)
    weight: Array  # (K, M) float32; a copy only where it is stored otherwise
    bias: ir.Value | None  # (M,), an initializer
    output: ir.Value  # (..., M), with the bias
    norm: ir.Node | None  # the LayerNormalization that alone makes x; None: something else does

    @property
    def parameters(self) -> int:
        """How many weights it has."""
        return int(self.weight.size)


def linears(model: ir.Model) -> list[Linear]:
    """Every linear layer of the graph, in its order. Names are unique: every weight is read once."""
    return list(_linears(model))


@dataclass(frozen=True)
class Convolution:
    """A two-dimensional convolution with a constant kernel."""

    name: str  # of the kernel, as in the checkpoint
    node: ir.Node
    x: ir.Value  # (N, C, H, W)
    kernel: Array  # (M, C, kh, kw) float32
    bias: ir.Value | None  # (M,), an initializer
    output: ir.Value  # (N, M, H', W')


def convolutions(model: ir.Model) -> list[Convolution]:
    """Every convolution of the graph that is not grouped, in its order."""
    found = []
    for node in model.graph:
        if node.op_type != "Conv" or node.inputs[0] is None or node.inputs[1] is None:
            continue
        kernel = array_of(node.inputs[1])
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        grouped = "group" in node.attributes and node.attributes["group"].as_int() != 1
        if kernel is None or kernel.ndim != 4 or grouped or (bias is not None and array_of(bias) is None):
            continue
        name = str(root(node.inputs[1]).name).removesuffix(".fp16")
        kernel = kernel.astype(np.float32, copy=False)
        found.append(Convolution(name, node, node.inputs[0], kernel, bias, node.outputs[0]))
    return found


def in_heads(model: ir.Model) -> set[ir.Node]:
    """Nodes from which some of the graph's outputs follow and others do not: a detector's heads. Of one output: none."""
    every = [_before([value]) for value in model.graph.outputs]
    shared = every[0].intersection(*every)
    return {node for nodes in every for node in nodes - shared}


def behind_layers(model: ir.Model) -> set[ir.Node]:
    """Nodes behind the last product with a constant: bias, sigmoid and corners of a box, the norm of an embedding."""
    layers = {*(layer.node for layer in linears(model)), *(layer.node for layer in convolutions(model))}
    return _before(list(model.graph.outputs), layers)


def _before(values: list[ir.Value], stop: Collection[ir.Node] = ()) -> set[ir.Node]:
    """The nodes that values follow from, those to stop at left out."""
    found: set[ir.Node] = set()
    while values:
        node = values.pop().producer()
        if node is not None and node not in found and node not in stop:
            found.add(node)
            values += [value for value in node.inputs if value is not None]
    return found


def constant(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    """A new initializer. Raises ValueError if the name is taken."""
    if name in graph.initializers:
        raise ValueError(f"the graph has an initializer {name!r} already")
    value = ir.Value(name=name, const_value=ir.tensor(np.asarray(array, order="C")))
    value.shape, value.type = ir.Shape(array.shape), ir.TensorType(value.const_value.dtype)  # type: ignore[union-attr]
    graph.register_initializer(value)
    return value


def replace_constant(model: ir.Model, node: ir.Node, index: int, array: Array) -> None:
    """Give one reader of a constant another one. It takes the name over where nothing else reads the old one."""
    old = node.inputs[index]
    assert old is not None
    first = root(old)
    name, count = f"{first.name}.{node.name}", len(model.graph.initializers)
    value = constant(model.graph, f"{name}.{count}", array)
    node.replace_input_with(index, value)
    while old is not first and not old.consumers():
        maker = old.producer()
        assert maker is not None
        old = maker.inputs[0]
        assert old is not None
        model.graph.remove(maker, safe=True)
    if not first.consumers() and not first.is_graph_output():
        del model.graph.initializers[str(first.name)]
        value.name = str(first.name).removesuffix(".fp16")


def array_of(value: ir.Value | None) -> Array | None:
    """The constant behind a value, through the Cast and Transpose that keep it small or turned; None: it is computed."""
    if value is None:
        return None
    if value.const_value is not None:
        return np.asarray(value.const_value.numpy())
    node = value.producer()
    if node is None or node.op_type not in ("Cast", "Transpose"):
        return None
    inner = array_of(node.inputs[0])
    if inner is None:
        return None
    if node.op_type == "Transpose":
        turned: Array = inner.transpose(node.attributes["perm"].as_ints())
        return turned
    return inner.astype(np.float32)


def root(value: ir.Value) -> ir.Value:
    """The initializer at the start of such a chain."""
    node = value.producer()
    while node is not None and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return value


def _linears(model: ir.Model) -> Iterator[Linear]:
    for node in model.graph:
        if node.op_type not in ("MatMul", "Gemm") or node.inputs[0] is None or node.inputs[1] is None:
            continue
        weight = array_of(node.inputs[1])
        if weight is None or weight.ndim != 2 or array_of(node.inputs[0]) is not None:
            continue
        x, output = node.inputs[0], node.outputs[0]
        bias: ir.Value | None = None
        if node.op_type == "Gemm":
            if "transB" in node.attributes and node.attributes["transB"].as_int():
                weight = weight.T
            bias = node.inputs[2] if len(node.inputs) > 2 else None
        elif (add := _bias(output)) is not None:
            bias, output = add
        made_by = x.producer()
        norm = made_by if made_by is not None and made_by.op_type == "LayerNormalization" else None
        name = str(root(node.inputs[1]).name).removesuffix(".fp16")
        yield Linear(name, node, x, weight.astype(np.float32, copy=False), bias, output, norm)


def _bias(output: ir.Value) -> tuple[ir.Value, ir.Value] | None:
    """The vector that is added to a product, and the sum; None where nothing is."""
    readers = output.consumers()
    if len(readers) != 1 or readers[0].op_type != "Add":
        return None
    for value in readers[0].inputs:
        if value is not None and value is not output:
            array = array_of(value)
            if array is not None and array.ndim == 1:
                return value, readers[0].outputs[0]
    return None
