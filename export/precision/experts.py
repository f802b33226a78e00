"""Mixtures of experts in a graph: what stays fp32 in every precision, and which rows an expert's ranges come from.

A router decides which experts a token takes: rounded, a token near the border takes others, and its output changes by as much as they
differ. It is a thousandth of a mixture's products, so its product, the comparison and the softmax of its shares stay as they are.
An expert counts for the tokens that took it. In the dense form it computes all others, too, and in the capacity form what fills free
places; their values are multiplied by 0 and must not widen its ranges. In the gather form it may see no row at all in one call.
"""

from __future__ import annotations

import re

import onnx_ir as ir

from edgeclip.export.linears import Linear, linears

ROUTER = ".router.weight"  # how the names of routers' weights end
WHY = "a router, whose choices rounding would change"
_EXPERT = re.compile(r"(.*\.experts\.\d+)\.fc[12]\.weight")


def is_router(layer: Linear) -> bool:
    """Whether a linear layer gives a mixture's logits."""
    return layer.name.endswith(ROUTER)


def expert_of(name: str) -> str:
    """The expert that a layer belongs to, by the layer's name: "blocks.0.mlp.experts.2"; "": to none."""
    found = _EXPERT.fullmatch(name)
    return found[1] if found else ""


def few_tokens(count: int, fewest: int) -> str:
    """Why an expert's layer stays float."""
    return f"its expert took {count} tokens of the calibration inputs, {fewest} are needed"


def routing(model: ir.Model) -> set[ir.Node]:
    """Routers' products and all that follows from them up to the softmax of the shares, itself included."""
    found: set[ir.Node] = set()
    ahead = [layer.node for layer in linears(model) if is_router(layer)]
    while ahead:
        node = ahead.pop()
        if node not in found:
            found.add(node)
            if node.op_type != "Softmax":
                ahead += [reader for value in node.outputs for reader in value.consumers()]
    return found


def counting(model: ir.Model) -> dict[str, str]:
    """Input of an expert's layer -> the value that says which of its rows count: those where it is not 0 throughout, by names.

    Absent: every row counts, as in the gather form; or the input is read by all experts, of which every token takes one.
    """
    layers = {layer.name: layer for layer in linears(model)}
    found: dict[str, str] = {}
    for name, layer in layers.items():
        expert = expert_of(name)
        if not expert:
            continue
        first, last = layers.get(f"{expert}.fc1.weight"), layers.get(f"{expert}.fc2.weight")
        by = (last and _share(last)) or (first and _places(first))
        if by is not None and len(layer.x.consumers()) == 1:
            found[str(layer.x.name)] = str(by.name)
    return found


def _share(last: Linear) -> ir.Value | None:
    """Dense: (N, T, 1), by which what leaves the expert is multiplied."""
    for reader in last.output.consumers():
        if reader.op_type == "Mul":
            other = next((value for value in reader.inputs if value is not last.output), None)
            if other is not None and other.shape is not None and other.shape[-1] == 1:
                return other
    return None


def _places(first: Linear) -> ir.Value | None:
    """Capacity: (N, C, T), the table of 0 and 1 that brings tokens to the expert's places, times the shares that they keep."""
    maker = first.x.producer()
    table = maker.inputs[0] if maker is not None and maker.op_type == "MatMul" else None
    for reader in table.consumers() if table is not None else ():
        if reader.op_type == "Mul":
            return reader.outputs[0]
    return None
