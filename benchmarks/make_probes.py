"""Writes edgeclip/assets/probes: products of matrices as ONNX, whose rate is what a tower's is compared with.

    python -m benchmarks.make_probes

"direct" is one product with its operands as they are, for engines that compute in the caller's memory. "inside" is a chain of CHAIN of them
between one number in and one out, for engines that copy what they are given: that then takes no time.

The second operand is a constant, as weights are, so that an engine may reorder it ahead. It is not stored: the graph has the sine of
0, 1, 4, 9, ... computed when it is loaded, which is as irregular as weights are (zeros would let a GPU's clock rise).
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

FOLDER = Path(__file__).parent.parent / "edgeclip/assets/probes"
DIRECT_SIDES, INSIDE_SIDES = (512, 1024, 2048), (1024, 4096, 8192)
CHAIN = 8
TYPES = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
STEP = 2 / 127  # of int8


def build(form: str, precision: str, side: int) -> ModelProto:
    """A graph `x` -> `y` of products with a (side, side) constant."""
    nodes = _constant()
    if precision == "int8":
        nodes += _bytes_constant()
    else:
        nodes.append(helper.make_node("Cast", ["b32"], ["b"], to=TYPES[precision]))
    if form == "direct":
        if precision == "int8":
            kinds = TensorProto.UINT8, TensorProto.INT32
            nodes[-1:] = [helper.make_node("MatMulInteger", ["x", "b8", "middle", "zero8"], ["y"])]
        else:
            kinds = TYPES[precision], TYPES[precision]
            nodes.append(helper.make_node("MatMul", ["x", "b"], ["y"]))
        ports = (kinds[0], ["N", side]), (kinds[1], ["N", side])
    else:
        nodes += _chain(precision)
        ports = (TensorProto.FLOAT, ["N", 1, 1]), (TensorProto.FLOAT, ["N", 1, 1])
    source, target = (
        helper.make_tensor_value_info(name, *port) for name, port in zip("xy", ports, strict=True)
    )
    graph = helper.make_graph(nodes, f"{form} {precision}", [source], [target], _initializers(side, nodes))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _constant() -> list[NodeProto]:
    """`b32`: (side, side), each row of length near 1, so that a chain of products neither grows nor fades."""
    return [
        helper.make_node("Range", ["first", "count", "by"], ["numbers"]),
        helper.make_node("Mul", ["numbers", "numbers"], ["squares"]),
        helper.make_node("Sin", ["squares"], ["waves"]),
        helper.make_node("Mul", ["waves", "unit"], ["scaled"]),
        helper.make_node("Reshape", ["scaled", "square"], ["b32"]),
    ]


def _bytes_constant() -> list[NodeProto]:
    return [
        helper.make_node("QuantizeLinear", ["b32", "step_b", "zero8"], ["b8"]),
        helper.make_node("DequantizeLinear", ["b8", "step_b", "zero8"], ["b"]),
    ]


def _chain(precision: str) -> list[NodeProto]:
    """From (N, 1, 1) over CHAIN products of (N, side, side) to the largest of each."""
    nodes = [helper.make_node("Expand", ["x", "wide_shape"], ["wide"])]
    last = "wide"
    if precision != "int8":
        nodes.append(helper.make_node("Cast", ["wide"], ["typed"], to=TYPES[precision]))
        last = "typed"
    for k in range(CHAIN):
        if precision == "int8":
            nodes += [
                helper.make_node("QuantizeLinear", [last, "step", "zero8"], [f"q{k}"]),
                helper.make_node("DequantizeLinear", [f"q{k}", "step", "zero8"], [f"d{k}"]),
            ]
            last = f"d{k}"
        nodes.append(helper.make_node("MatMul", [last, "b"], [f"p{k}"]))
        last = f"p{k}"
    if precision != "int8":
        nodes.append(helper.make_node("Cast", [last], ["plain"], to=TensorProto.FLOAT))
        last = "plain"
    return [*nodes, helper.make_node("ReduceMax", [last, "axes"], ["y"], keepdims=1)]


def _initializers(side: int, nodes: list[NodeProto]) -> list[TensorProto]:
    unit = math.sqrt(2 / side)
    values = {
        "first": np.float32(0), "count": np.float32(side * side), "by": np.float32(1), "unit": np.float32(unit),
        "square": np.array([side, side]), "wide_shape": np.array([1, side, side]), "axes": np.array([1, 2]), "step": np.float32(STEP),
        "step_b": np.float32(unit / 127), "zero8": np.int8(0), "middle": np.uint8(128),
    }  # fmt: skip
    used = {name for node in nodes for name in node.input}
    return [numpy_helper.from_array(np.asarray(v), name) for name, v in values.items() if name in used]


def build_all() -> dict[str, ModelProto]:
    """File name -> graph."""
    found = {f"direct-{p}-{s}.onnx": ("direct", p, s) for p in ("fp32", "fp16", "int8") for s in DIRECT_SIDES}
    found |= {f"inside-{p}-{s}.onnx": ("inside", p, s) for p in (*TYPES, "int8") for s in INSIDE_SIDES}
    return {name: build(*what) for name, what in found.items()}


if __name__ == "__main__":
    for name, model in build_all().items():
        (FOLDER / name).write_bytes(model.SerializeToString())
