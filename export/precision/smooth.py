"""Spread of activations moved into the weights that read them, without changing the function.

A few channels of a LayerNorm's output are many times larger than the rest, and one scale for the whole tensor leaves the rest
nothing. Dividing channel j by s_j and multiplying row j of the next weight by it is exact: the division goes into the norm's own
scale and bias, or, where attention mixes the tokens in between, into the columns that make the values: what comes out of attention
is linear in them. So is what brings a norm's tokens to the experts that take them. Every s is a power of two, so that the float function
stays what it was, bit by bit.

Source: Xiao et al. 2023, arXiv:2211.10438: s_j = max|x_j|^a / max|w_j|^(1 - a).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeclip.export.linears import Linear, array_of, linears, replace_constant
from edgeclip.export.passes import PassReport
from edgeclip.export.precision.ranges import Seen, byte_range, joined
from edgeclip.export.precision.weights8 import encode

Array = NDArray[Any]
ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)  # what the search tries; the first stands for no smoothing at all
_ROWS, _COLUMNS = 256, 128  # of the product on which the search compares them
_HEADS = (0, 2, 1, 3)  # the permutation that brings heads before tokens, and back


@dataclass(frozen=True)
class _Site:
    """A value whose channels can be scaled where it is made."""

    values: tuple[
        ir.Value, ...
    ]  # itself, or what tokens are taken from it for experts: what the readers read
    readers: tuple[ir.Node, ...]  # all of their readers: linear layers
    maker: ir.Node  # a LayerNormalization, or the MatMul or Gemm whose columns become the value
    first: int = 0  # of those columns


def smooth(
    model: ir.Model,
    nodes: Collection[ir.Node],
    seen: dict[str, Seen],
    *,
    alpha: float | None,
    how: str,
    kind: str,
    saturating: bool,
) -> PassReport:
    """Scale what the given linear layers read, in place.

    Args:
        nodes: MatMul and Gemm nodes that will be quantised.
        seen: by name, all inputs of `nodes`; changed to what they are afterwards.
        alpha: 0-1 for all; None: for each value the one of ALPHAS with the least error of the quantised product.
        how, kind, saturating: how the layers will be quantised, see byte_range and encode.
    """
    if alpha == 0:
        return PassReport("smooth", 0)
    layers = {layer.node: layer for layer in linears(model)}
    weights = {node: layer.weight for node, layer in layers.items()}
    changed, missed = 0, []
    done: set[ir.Value] = set()
    for node in layers:
        if node not in nodes or layers[node].x in done:
            continue
        site = _site(layers[node], layers)
        if isinstance(site, str):
            missed.append(f"{node.name}: {site}")
            continue
        done.update(site.values)
        names = [str(value.name) for value in site.values if str(value.name) in seen]
        x, weight = (
            joined([seen[name] for name in names]),
            np.concatenate([weights[r] for r in site.readers], 1),
        )
        by = _factors(x, weight, alpha) if alpha is not None else _search(x, weight, how, kind, saturating)
        if (by == 1).all():
            continue
        seen.update({name: seen[name].divided(by) for name in names})
        for reader in site.readers:
            weights[reader] = weights[reader] * by[:, None]
        if site.maker in layers:
            columns = slice(site.first, site.first + len(by))
            weights[site.maker] = weights[site.maker].copy()
            weights[site.maker][:, columns] /= by
            _divide_bias(model, layers[site.maker], by, columns)
        else:
            for i in range(1, len(site.maker.inputs)):
                replace_constant(model, site.maker, i, array_of(site.maker.inputs[i]) / by)
        changed += 1
    for node, weight in weights.items():
        if weight is not layers[node].weight:
            turned = "transB" in node.attributes and node.attributes["transB"].as_int()
            replace_constant(model, node, 1, weight.T if turned else weight)
    return PassReport("smooth", changed, tuple(missed))


def _factors(x: Seen, weight: Array, alpha: float) -> Array:
    """(K,) powers of two by which the channels are divided. A channel that is always zero, or that nothing reads, stays."""
    ours, theirs = x.peaks.astype(np.float64), np.abs(weight).max(axis=1).astype(np.float64)
    alive = (ours > 0) & (theirs > 0)
    logs = np.zeros(len(ours))
    logs[alive] = alpha * np.log2(ours[alive]) - (1 - alpha) * np.log2(theirs[alive])
    if alive.any():
        logs[alive] -= np.median(logs[alive])  # only ratios matter to a scale that all share
    return np.exp2(np.rint(logs)).astype(np.float32)


def _search(x: Seen, weight: Array, how: str, kind: str, saturating: bool) -> Array:
    """The factors whose quantised product on some rows and columns is nearest to the exact one."""
    rows = np.linspace(0, len(x.rows) - 1, min(_ROWS, len(x.rows))).astype(int)
    columns = np.linspace(0, weight.shape[1] - 1, min(_COLUMNS, weight.shape[1])).astype(int)
    weight_part = weight[:, columns]
    exact = x.rows[rows] @ weight_part
    best, chosen = np.inf, np.ones(len(weight), np.float32)
    for alpha in ALPHAS:
        by = _factors(x, weight, alpha) if alpha else np.ones(len(weight), np.float32)
        scaled = x.divided(by)
        bytes_ = encode(weight_part * by[:, None], saturating=saturating)
        found = byte_range(scaled, how, kind).rounded(scaled.rows[rows]) @ bytes_.floats
        if (error := float(((found - exact) ** 2).sum())) < best:
            best, chosen = error, by
    return chosen


def _site(layer: Linear, layers: Mapping[ir.Node, Linear]) -> _Site | str:
    """Where a layer's input is made, or why it cannot be scaled there."""
    x = layer.x
    maker = x.producer()
    while maker is not None and (taken := _taken(maker)) is not None:
        x, maker = taken, taken.producer()
    found = _read(x, layers)
    if found is None:
        return "its input is read by something else, too"
    values, readers = found
    if maker is not None and maker.op_type == "LayerNormalization":
        if any(array_of(value) is None for value in maker.inputs[1:]):
            return "the norm before it has computed parameters"
        return _Site(values, readers, maker)
    return _values(x, readers, layers) if values == (x,) else "its tokens are taken from no norm"


def _taken(node: ir.Node) -> ir.Value | None:
    """(N, T, W) or rows of W that a node takes whole tokens from, or flattens; None: it does anything else."""
    data = node.inputs[0]
    if node.op_type == "Reshape":
        whole = data is not None and _wide(data) is not None and _wide(data) == _wide(node.outputs[0])
        return data if whole else None
    if node.op_type == "Gather" and data is not None and array_of(data) is None:
        rows = data.shape is not None and len(data.shape) == 2
        return data if rows and node.attributes.get_int("axis", 0) == 0 else None
    if node.op_type == "MatMul":  # by a table of 0 and 1 in front
        made_by = data.producer() if data is not None else None
        tables = made_by is not None and made_by.op_type == "Cast" and data is not None
        return (
            node.inputs[1]
            if tables and node.inputs[1] is not None and array_of(node.inputs[1]) is None
            else None
        )
    return None


def _read(
    x: ir.Value, layers: Mapping[ir.Node, Linear]
) -> tuple[tuple[ir.Value, ...], tuple[ir.Node, ...]] | None:
    """A value and those that tokens are taken from it to, as far as layers read them, with these; None: something else reads one."""
    values, readers, ahead = list[ir.Value](), list[ir.Node](), [x]
    while ahead:
        value = ahead.pop(0)
        if value.is_graph_output():
            return None
        own = [reader for reader in value.consumers() if reader in layers]
        if any(reader.inputs[0] is not value for reader in own):
            return None
        others = [reader for reader in value.consumers() if reader not in layers]
        if any(_taken(reader) is not value for reader in others):
            return None
        if own:
            values.append(value)
        readers += own
        ahead += [reader.outputs[0] for reader in others]
    return tuple(values), tuple(readers)


def _wide(value: ir.Value) -> int | None:
    """The width W of (..., W) tokens."""
    size = None if value.shape is None or len(value.shape) < 2 else value.shape[-1]
    return size if isinstance(size, int) else None


def _values(x: ir.Value, readers: tuple[ir.Node, ...], layers: Mapping[ir.Node, Linear]) -> _Site | str:
    """Attention's output, followed back to the columns that make the values."""
    other = "its input is neither a norm's nor attention's output"
    joined = _maker(x, "Reshape")
    heads = _maker(_input(joined), "Transpose")
    mixed = _maker(_input(heads), "MatMul", "Attention")
    turned = _maker(_input(mixed, 1 if mixed and mixed.op_type == "MatMul" else 2), "Transpose")
    apart = _maker(_input(turned), "Reshape")
    if heads is None or turned is None or apart is None:
        return other
    before, after = _head_sizes(_input(turned)), _head_sizes(heads.outputs[0])
    if not _perm(heads) == _perm(turned) == _HEADS or before is None or before != after:
        return other
    part, first = _input(apart), 0
    split = _maker(part, "Split")
    if part is not None and split is not None:
        sizes = [_last(output) for output in split.outputs[: split.outputs.index(part)]]
        if split.attributes["axis"].as_int() not in (-1, 2):
            return other
        part, first = _input(split), sum(sizes)
    for node, layer in layers.items():
        if layer.output is part and len(part.consumers()) == 1:
            return _Site((x,), readers, node, first)
    return other


def _input(node: ir.Node | None, index: int = 0) -> ir.Value | None:
    return None if node is None else node.inputs[index]


def _maker(value: ir.Value | None, *kinds: str) -> ir.Node | None:
    """The node of one of these kinds that makes a value for one reader; None: another, or others read it, too."""
    if value is None or len(value.consumers()) != 1 or value.is_graph_output():
        return None
    node = value.producer()
    return node if node is not None and node.op_type in kinds else None


def _head_sizes(value: ir.Value | None) -> tuple[int, int] | None:
    """(h, d) of (N, T, h, d)."""
    if value is None or value.shape is None or len(value.shape) != 4:
        return None
    h, d = value.shape[2], value.shape[3]
    return (h, d) if isinstance(h, int) and isinstance(d, int) else None


def _last(value: ir.Value) -> int:
    assert value.shape is not None
    size = value.shape[-1]
    assert isinstance(size, int), "widths are fixed"
    return size


def _perm(node: ir.Node) -> tuple[int, ...]:
    return tuple(node.attributes["perm"].as_ints())


def _divide_bias(model: ir.Model, layer: Linear, by: Array, columns: slice) -> None:
    if layer.bias is None:
        return
    bias = array_of(layer.bias)
    assert bias is not None, "linears() finds constants only"
    reader = layer.node if layer.node.op_type == "Gemm" else layer.output.producer()
    assert reader is not None
    divided = bias.astype(np.float32, copy=True)
    divided[columns] /= by
    replace_constant(model, reader, list(reader.inputs).index(layer.bias), divided)
