"""Which layers become integer products, and what is known of them before they do: shared by every int8 method."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from edgeclip.errors import InputError
from edgeclip.export.linears import Array, Linear, array_of, constant, linears
from edgeclip.export.passes import PassReport
from edgeclip.export.precision import Request
from edgeclip.export.precision.ranges import Seen, see
from edgeclip.export.precision.smooth import smooth
from edgeclip.export.precision.weights8 import Bytes, encode

NARROW = 16  # inputs or outputs; a smaller product is over before its bytes are made


def prepare(
    model: ir.Model, request: Request, kind: str
) -> tuple[list[Linear], dict[str, Seen], list[PassReport]]:
    """Choose the layers, watch their inputs and smooth them.

    Args:
        kind: bytes of the activations, see ranges.byte_range.
    Returns:
        the layers as they are now; what their inputs are, by name, empty without calibration inputs; the reports.
    Raises:
        InputError: request.layers names a layer that the graph lacks.
    """
    layers, left = _choose(model, request.layers)
    nodes = {layer.node for layer in layers}
    reports = [PassReport("int8", len(layers), tuple(left))]
    if request.inputs is None or not layers:
        return layers, {}, reports
    seen = see(model, [str(layer.x.name) for layer in layers], request.inputs, threads=request.threads)
    smoothed = smooth(
        model,
        nodes,
        seen,
        alpha=request.smoothing,
        how=request.ranges,
        kind=kind,
        saturating=request.saturating,
    )
    return [layer for layer in linears(model) if layer.node in nodes], seen, [smoothed, *reports]


def encode_weight(
    graph: ir.Graph, layer: Linear, seen: Seen | None, saturating: bool
) -> tuple[Bytes, tuple[ir.Value, ir.Value, ir.Value]]:
    """A layer's weight as bytes, and its initializers: bytes, scales and zero points."""
    bytes_ = encode(layer.weight, saturating=saturating, importance=None if seen is None else seen.importance)
    arrays = {"int8": bytes_.q, "scale": bytes_.scale, "zero": np.zeros_like(bytes_.scale, np.int8)}
    q, scale, zero = (constant(graph, f"{layer.name}.{end}", array) for end, array in arrays.items())
    return bytes_, (q, scale, zero)


def replace_layer(graph: ir.Graph, layer: Linear, new: list[ir.Node], drift: Array | None = None) -> None:
    """Put nodes in a layer's place, and its bias behind them.

    Args:
        new: nodes in order; the first output of the last is the product without bias.
        drift: (M,) mean error of the product on the calibration inputs; the bias takes it away. None: not known.
    """
    output = new[-1].outputs[0]
    if layer.bias is not None:
        bias = array_of(layer.bias)
        assert bias is not None, "linears() finds constants only"
        corrected = bias if drift is None else bias + drift
        value = constant(graph, f"{layer.name}.bias", corrected.astype(np.float32))
        new.append(ir.node("Add", [output, value]))
        output = new[-1].outputs[0]
    output.shape, output.type = layer.output.shape, layer.output.type
    graph.insert_before(layer.node, new)
    layer.output.replace_all_uses_with(output, replace_graph_outputs=True)


def _choose(model: ir.Model, wanted: frozenset[str] | None) -> tuple[list[Linear], list[str]]:
    """The layers to quantise, and why each other one is left."""
    found = linears(model)
    if wanted is not None and (unknown := wanted - {layer.name for layer in found}):
        names = ", ".join(layer.name for layer in found[:3])
        raise InputError(
            f"layers: the graph has no {min(unknown)!r}. It has {len(found)}, the first are {names}."
        )
    last = _last_layers(model, {layer.node for layer in found})
    chosen, left = [], []
    for layer in found:
        reason = ""
        if wanted is not None and layer.name not in wanted:
            reason = "not asked for"
        elif min(layer.weight.shape) < NARROW:
            reason = f"its weight is {layer.weight.shape}, below {NARROW} nothing is gained"
        elif wanted is None and layer.node in last:
            reason = "the last layer, whose rounding errors would be the embedding's own"
        if reason:
            left.append(f"{layer.name}: {reason}")
        else:
            chosen.append(layer)
    return chosen, left


def _last_layers(model: ir.Model, layers: Collection[ir.Node]) -> set[ir.Node]:
    """Those from which an output is reached without another one between."""
    found: set[ir.Node] = set()
    seen: set[ir.Node] = set()
    stack = [value.producer() for value in model.graph.outputs]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in layers:
            found.add(node)
        else:
            stack += [value.producer() for value in node.inputs if value is not None]
    return found
