"""Bytes in place of floats at the door: `pixels` becomes (N, H, W, 3) uint8 RGB, and the graph normalises.

A device then writes what its camera or decoder gives, a quarter of the bytes, and has no float pass of its own. Where the first
layer is a convolution without padding, scale and mean are in its weights and cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeclip.bundle import Port, Preprocessing
from edgeclip.export.linears import constant
from edgeclip.export.passes import PassReport

Array = NDArray[np.float64]


def uint8_port(spec: Preprocessing) -> Port:
    """The input of a variant that takes bytes."""
    return Port("pixels", "uint8", ("N", *spec.size, 3))


def take_uint8(spec: Preprocessing) -> Callable[[ir.Model], PassReport]:
    """The pass for a source's preprocessing: any image graph with `pixels` (N, 3, H, W) float32, whatever follows it.

    Raises (the pass):
        ValueError: the graph has no such input.
    """
    std = np.asarray(spec.std, np.float64)
    scale, shift = 1 / (255 * std), -np.asarray(spec.mean, np.float64) / std

    def pass_(model: ir.Model) -> PassReport:
        graph = model.graph
        (old,) = graph.inputs
        if old.dtype != ir.DataType.FLOAT or old.shape is None or len(old.shape) != 4:
            raise ValueError(f"want an input (N, 3, H, W) float32, got {old.shape} {old.dtype}")
        n, channels, height, width = old.shape
        new = ir.Value(
            name=old.name,
            shape=ir.Shape([n, height, width, channels]),
            type=ir.TensorType(ir.DataType.UINT8),
        )
        # the Cast comes first: TensorRT does nothing else with bytes
        cast = ir.node("Cast", [new], {"to": ir.DataType.FLOAT})
        turn = ir.node("Transpose", [cast.outputs[0]], {"perm": [0, 3, 1, 2]})
        nodes, planes = [cast, turn], turn.outputs[0]
        reason = _why_not_folded(old)
        if reason:
            for op, values, name in (("Mul", scale, "pixel_scale"), ("Add", shift, "pixel_shift")):
                held = constant(graph, name, values.astype(np.float32)[:, None, None])
                nodes.append(ir.node(op, [planes, held]))
                planes = nodes[-1].outputs[0]
        for node in nodes:
            node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
            node.outputs[0].shape = old.shape
        cast.outputs[0].shape = new.shape
        first = next(node for node in old.consumers() if node.op_type != "Shape")
        old.replace_all_uses_with(planes)
        graph.insert_before(graph[0], nodes)
        graph.inputs[0] = new
        if not reason:
            _fold(graph, first, scale, shift)
        return PassReport("take_uint8", 1, (f"{first.name}: {reason}",) if reason else ())

    pass_.__name__ = "take_uint8"
    return pass_


def _why_not_folded(pixels: ir.Value) -> str:
    """Why scale and shift must stand before the first layer; "" where its weights can hold them exactly."""
    readers = [node for node in pixels.consumers() if node.op_type != "Shape"]  # the shape stays the same
    if len(readers) != 1 or readers[0].op_type != "Conv":
        return f"pixels are read by {', '.join(node.op_type for node in readers)}, not by one Conv"
    (conv,) = readers
    attributes = conv.attributes
    padded = "pads" in attributes and any(attributes["pads"].as_ints())
    if padded or ("auto_pad" in attributes and attributes["auto_pad"].as_string() not in ("NOTSET", "VALID")):
        return "it pads with zeros, which are the mean colour only after normalising"
    if "group" in attributes and attributes["group"].as_int() != 1:
        return "its channels are apart"
    for value in conv.inputs[1:]:
        if value is not None and (value.const_value is None or value.dtype != ir.DataType.FLOAT):
            return f"{value.name} is not stored in fp32, and scaled down by {255} it would lose bits"
    if any(value is not None and len(value.consumers()) > 1 for value in conv.inputs[1:]):
        return "its weights are read elsewhere too"
    return ""


def _fold(graph: ir.Graph, conv: ir.Node, scale: Array, shift: Array) -> None:
    """conv(scale * x + shift) as conv(x), in float64. weight: (out, 3, h, w)."""
    held = [value for value in conv.inputs[1:] if value is not None]
    weight = _numbers(conv.inputs[1])
    bias = _numbers(conv.inputs[2]) if len(conv.inputs) > 2 and conv.inputs[2] is not None else 0
    bias = bias + np.einsum("ochw,c->o", weight, shift)
    weight = weight * scale[:, None, None]
    name = str(conv.inputs[1].name).removesuffix(".weight")  # type: ignore[union-attr]
    conv.resize_inputs(3)
    for i, (part, values) in enumerate((("weight", weight), ("bias", bias)), 1):
        conv.replace_input_with(i, constant(graph, f"{name}.uint8.{part}", values.astype(np.float32)))
    for value in held:
        del graph.initializers[str(value.name)]


def _numbers(value: ir.Value | None) -> Array:
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy().astype(np.float64)
