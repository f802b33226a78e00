"""Which layers become integer products, and what is known of them before they do: shared by every int8 method."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from edgeclip.errors import InputError
from edgeclip.export.linears import (
    HEAD,
    Array,
    Convolution,
    Linear,
    array_of,
    constant,
    convolutions,
    in_heads,
    linears,
    root,
)
from edgeclip.export.passes import PassReport
from edgeclip.export.precision import Request
from edgeclip.export.precision.experts import WHY, expert_of, few_tokens, is_router
from edgeclip.export.precision.ranges import Seen
from edgeclip.export.precision.smooth import smooth
from edgeclip.export.precision.weights8 import Bytes, encode

NARROW = 16  # inputs or outputs; a smaller product is over before its bytes are made


@dataclass(frozen=True)
class Chosen:
    """The layers to quantise."""

    linears: tuple[Linear, ...]
    convolutions: tuple[Convolution, ...]
    report: PassReport  # with why each other one is left


def choose(model: ir.Model, request: Request, *, convolved: bool = True) -> Chosen:
    """What becomes an integer product: what request.layers names, else everything except the first convolution, the last layer and a detector's heads.
    A mixture's router never does.

    Args:
        convolved: whether the method quantises convolutions.
    Raises:
        InputError: request.layers names a layer that the graph lacks.
    """
    products, kernels = linears(model), convolutions(model) if convolved else []
    layers: dict[ir.Node, Linear | Convolution] = {layer.node: layer for layer in products}
    layers |= {layer.node: layer for layer in kernels}
    names = {layer.name for layer in layers.values()}
    if unknown := (request.layers or frozenset()) - names:
        some = ", ".join(sorted(names)[:3])
        raise InputError(
            f"layers: the graph has no {min(unknown)!r}. Of its {len(names)} the first are {some}."
        )
    last = _nearest(layers, [value.producer() for value in model.graph.outputs])
    heads, left = in_heads(model), {}
    for node, layer in layers.items():
        shape = layer.weight.shape if isinstance(layer, Linear) else layer.kernel.shape
        if isinstance(layer, Linear) and is_router(layer):
            left[node] = WHY
        elif request.layers is not None and layer.name not in request.layers:
            left[node] = "not asked for"
        elif request.layers is None and node in last:
            left[node] = "the last layer, whose rounding errors would be the embedding's own"
        elif request.layers is None and node in heads:
            left[node] = HEAD
        elif isinstance(layer, Convolution) and (count := _readers(layer)) > 1:
            left[node] = f"its kernel is read {count} times, each on activations of another range"
        elif (
            request.layers is None and isinstance(layer, Convolution) and not _nearest(layers, _makers(node))
        ):
            left[node] = "the first layer, which reads pixels"
        elif layer.x.producer() is None:
            left[node] = "it reads the graph's input"
        elif min(shape[:2]) < NARROW:
            left[node] = f"its weight is {shape}, below {NARROW} nothing is gained"
    missed = tuple(f"{layers[node].name}: {reason}" for node, reason in left.items())
    report = PassReport("int8", len(layers) - len(left), missed)
    return Chosen(
        tuple(layer for layer in products if layer.node not in left),
        tuple(layer for layer in kernels if layer.node not in left),
        report,
    )


def enough_seen(chosen: Chosen, seen: dict[str, Seen], fewest: int) -> Chosen:
    """Without the experts that took too few of the calibration inputs' tokens for ranges to be known."""
    tokens: dict[str, int] = {}
    for layer in chosen.linears:
        if expert := expert_of(layer.name):
            count = seen[str(layer.x.name)].count
            tokens[expert] = min(count, tokens.get(expert, count))
    few = {
        layer.name: few_tokens(tokens[expert], fewest)
        for layer in chosen.linears
        if (expert := expert_of(layer.name)) and tokens[expert] < fewest
    }
    report = replace(
        chosen.report,
        changed=chosen.report.changed - len(few),
        near_misses=(*chosen.report.near_misses, *(f"{name}: {why}" for name, why in few.items())),
    )
    return replace(
        chosen, linears=tuple(layer for layer in chosen.linears if layer.name not in few), report=report
    )


def smoothed(
    model: ir.Model, chosen: Chosen, seen: dict[str, Seen], request: Request, kind: str
) -> tuple[list[Linear], PassReport]:
    """Smooth the chosen linear layers; they as they are afterwards."""
    nodes = {layer.node for layer in chosen.linears}
    report = smooth(
        model,
        nodes,
        seen,
        alpha=request.smoothing,
        how=request.ranges,
        kind=kind,
        saturating=request.saturating,
    )
    return [layer for layer in linears(model) if layer.node in nodes], report


def encode_weight(
    graph: ir.Graph, layer: Linear, saturating: bool
) -> tuple[Bytes, tuple[ir.Value, ir.Value, ir.Value]]:
    """A layer's weight as bytes, and its initializers: bytes, scales and zero points."""
    bytes_ = encode(layer.weight, saturating=saturating)
    return bytes_, weight_constants(graph, layer.name, bytes_)


def weight_constants(graph: ir.Graph, name: str, bytes_: Bytes) -> tuple[ir.Value, ir.Value, ir.Value]:
    """The initializers of a layer's bytes, scales and zero points. name: the layer's."""
    arrays = {"int8": bytes_.q, "scale": bytes_.scale, "zero": np.zeros_like(bytes_.scale, np.int8)}
    q, scale, zero = (constant(graph, f"{name}.{end}", array) for end, array in arrays.items())
    return q, scale, zero


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


def _readers(layer: Convolution) -> int:
    kernel = layer.node.inputs[1]
    return 0 if kernel is None else max(len(kernel.uses()), len(root(kernel).uses()))


def _nearest(layers: Collection[ir.Node], start: Sequence[ir.Node | None]) -> set[ir.Node]:
    """The layers that are met first on the way back from some nodes, themselves included."""
    found: set[ir.Node] = set()
    seen: set[ir.Node] = set()
    stack = list(start)
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in layers:
            found.add(node)
        else:
            stack += _makers(node)
    return found


def _makers(node: ir.Node) -> list[ir.Node | None]:
    return [value.producer() for value in node.inputs if value is not None]
