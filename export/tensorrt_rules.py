"""What TensorRT's ONNX parser takes, as a table, and a checker that holds a graph to it without TensorRT.

    problems(model, "10.3")  ->  ["Attention_0: Attention is read from TensorRT 10.14 on"]

Sources, read for the versions named:
 operators  onnx-tensorrt docs/operators.md at 9.2, 10.1-GA and 10.15, docs/Changelog.md up to 10.6, and the release notes of 10.14
            (Attention) and 11.x (docs.nvidia.com/deeplearning/tensorrt/latest/reference/onnx-opset-guide.html).
 Q and DQ   onnx-tensorrt 10.1-GA, onnxOpImporters.cpp, QuantDequantLinearHelper; for block sizes and types
            docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/quantized-types-schemes.html.
 devices    quantized-types-schemes.html: fp8 products need compute capability 8.9 (Ada).

Held against the parser of TensorRT-RTX 1.7.1, which builds without a GPU: it reads every operator of the table, and every tower. It
refuses the same zero points, scales, computed axes, second outputs, reductions, DynamicQuantizeLinear, MatMulInteger and fp8 below 8.9.
It takes more than the rules do where they stand for older releases: blocks of 16 and 32 and odd sizes in int4, opsets beyond its own,
one scale a channel, uint8 (as int8). Which Attention operators it has kernels for stands in runtime/tensorrt/flavour.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeclip.errors import InputError
from edgeclip.export.linears import array_of

F32, F16, BF16 = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16
I32, I64, BOOL, U8 = ir.DataType.INT32, ir.DataType.INT64, ir.DataType.BOOL, ir.DataType.UINT8
INT8, FP8, INT4 = ir.DataType.INT8, ir.DataType.FLOAT8E4M3FN, ir.DataType.INT4
FLOATS = frozenset({F32, F16, BF16})
NUMBERS = FLOATS | {I32, I64}
ANY = NUMBERS | {BOOL}


@dataclass(frozen=True)
class Version:
    """One release of TensorRT."""

    opset: int  # the highest that its parser documents
    ir: int  # the highest of the ONNX that its parser is built against
    number: tuple[int, int]


VERSIONS: Mapping[str, Version] = {
    "10.3": Version(20, 10, (10, 3)),  # JetPack 6; ONNX 1.16
    "10.16": Version(24, 12, (10, 16)),  # opset 24 came with ONNX 1.19
    "11.4": Version(25, 13, (11, 4)),  # ONNX 1.20
}


@dataclass(frozen=True)
class Operator:
    """One operator: types of its data inputs, the first release that reads it, inputs that must be constants."""

    types: frozenset[ir.DataType]
    since: tuple[int, int] = (10, 0)
    constants: tuple[int, ...] = ()


_FLOAT, _NUMBER, _ANY = Operator(FLOATS), Operator(NUMBERS), Operator(ANY)
_AXES = Operator(NUMBERS, constants=(1,))

# The operators that towers, heads and precisions are written in. Uncertain ones are left out: not in the table is a problem.
OPERATORS: Mapping[str, Operator] = {
    **dict.fromkeys(
        (
            "Conv",
            "Gemm",
            "MatMul",
            "LayerNormalization",
            "Softmax",
            "Softplus",
            "Sigmoid",
            "Tanh",
            "Erf",
            "Clip",
            "LpNormalization",
        ),
        _FLOAT,
    ),
    **dict.fromkeys(
        (
            "AveragePool",
            "GlobalAveragePool",
            "HardSwish",
            "HardSigmoid",
            "Sqrt",
            "Pow",
            "Exp",
            "Log",
            "Reciprocal",
            "Ceil",
            "Floor",
            "Sin",
            "Cos",
        ),
        _FLOAT,
    ),
    **dict.fromkeys(
        ("Add", "Sub", "Mul", "Div", "Neg", "Abs", "Max", "Min", "Relu", "Equal", "Greater", "Less"), _NUMBER
    ),
    **dict.fromkeys(
        ("GreaterOrEqual", "LessOrEqual", "ArgMax", "TopK", "Gelu", "Range", "ScatterElements"), _NUMBER
    ),
    **dict.fromkeys(
        ("Concat", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity"), _ANY
    ),
    **dict.fromkeys(("Reshape", "Shape", "Slice", "Split", "Transpose", "Where"), _ANY),
    **dict.fromkeys(("ReduceL2", "ReduceMax", "ReduceMean", "ReduceSum"), _AXES),
    **dict.fromkeys(("Squeeze", "Unsqueeze"), Operator(ANY, constants=(1,))),
    "Cast": Operator(ANY | {U8}),
    "Not": Operator(frozenset({BOOL})),
    "And": Operator(frozenset({BOOL})),
    "Pad": Operator(NUMBERS, constants=(3,)),
    "Resize": Operator(FLOATS),
    "Attention": Operator(FLOATS | {BOOL}, since=(10, 14)),
    "QuantizeLinear": Operator(FLOATS | {INT8, FP8}),
    "DequantizeLinear": Operator(frozenset({INT8, FP8, INT4}) | FLOATS),
}
# What people try and TensorRT has not, with what to write instead.
UNSUPPORTED: Mapping[str, str] = {
    "DynamicQuantizeLinear": "write static QuantizeLinear and DequantizeLinear with calibrated scales",
    "MatMulInteger": "write DequantizeLinear in front of MatMul",
    "QLinearMatMul": "write DequantizeLinear in front of MatMul",
    "ConvInteger": "write DequantizeLinear in front of Conv",
    "QLinearConv": "write DequantizeLinear in front of Conv",
}
INT4_BLOCKS = (64, 128)
FP8_CAPABILITY = (8, 9)


def problems(model: ir.Model, version: str, capability: tuple[int, int] | None = None) -> list[str]:
    """Why a TensorRT release would not read a graph or build an engine from it.

    Args:
        version: of VERSIONS.
        capability: of the GPU, e.g. (8, 7) for an Orin; None: any that TensorRT serves.
    Returns:
        "<node>: reason", in the graph's order; [] where no rule is broken.
    Raises:
        InputError: no such version.
    """
    if version not in VERSIONS:
        raise InputError(f"TensorRT {version!r}: unknown. Choose from {', '.join(VERSIONS)}.")
    release, opset = VERSIONS[version], model.opset_imports.get("", 0)
    found = []
    if opset > release.opset:
        found.append(f"graph: opset {opset}, TensorRT {version} documents up to {release.opset}")
    if (model.ir_version or 0) > release.ir:
        found.append(f"graph: IR {model.ir_version}, the ONNX of TensorRT {version} knows up to {release.ir}")
    for value in model.graph.initializers.values():
        if value.dtype == ir.DataType.DOUBLE:
            found.append(f"{value.name}: float64 is read as float32")
    for node in model.graph:
        found += [f"{node.name}: {reason}" for reason in _of_node(node, release, capability)]
    return found


def required(model: ir.Model) -> str:
    """The oldest of VERSIONS that reads a graph, for `Variant.requires["tensorrt"]`; "none" where none does."""
    return next((version for version in VERSIONS if not problems(model, version)), "none")


def _of_node(node: ir.Node, release: Version, capability: tuple[int, int] | None) -> Iterator[str]:
    if node.domain not in ("", "ai.onnx"):
        yield f"operator of domain {node.domain}, only standard ones are read"
        return
    if node.op_type in UNSUPPORTED:
        yield f"{node.op_type} is not read; {UNSUPPORTED[node.op_type]}"
        return
    if node.op_type not in OPERATORS:
        yield f"{node.op_type} is not in the table of operators known to be read"
        return
    rule = OPERATORS[node.op_type]
    if release.number < rule.since:
        yield f"{node.op_type} is read from TensorRT {rule.since[0]}.{rule.since[1]} on"
    data = node.inputs[:1] if node.op_type in _FIRST_ONLY else node.inputs
    for value in data:
        if (
            value is not None
            and value.dtype is not None
            and value.dtype not in rule.types
            and _is_data(value, node)
        ):
            yield f"{node.op_type} of {value.dtype.name.lower()}, want one of {', '.join(sorted(t.name.lower() for t in rule.types))}"
    for i in rule.constants:
        if i < len(node.inputs) and node.inputs[i] is not None and array_of(node.inputs[i]) is None:
            yield f"{node.op_type} with computed axes, they must be constant"
    if (more := _MORE.get(node.op_type)) is not None:
        yield from more(node)
    if (
        capability is not None
        and capability < FP8_CAPABILITY
        and any(v is not None and v.dtype == FP8 for v in node.inputs)
    ):
        yield f"fp8 needs compute capability 8.9, the device has {capability[0]}.{capability[1]}"


# Their other inputs are indices, shapes, axes or a condition.
_FIRST_ONLY = {
    "Reshape", "Expand", "Slice", "Gather", "GatherElements", "GatherND", "Squeeze", "Unsqueeze", "Split", "TopK", "Pad", "Resize",
    "ReduceL2", "ReduceMax", "ReduceMean", "ReduceSum", "ScatterElements", "QuantizeLinear", "DequantizeLinear",
}  # fmt: skip


def _is_data(value: ir.Value, node: ir.Node) -> bool:
    return not (node.op_type == "Where" and value is node.inputs[0])


def _pair(node: ir.Node) -> Iterator[str]:
    """Rules of QuantizeLinear and DequantizeLinear alike."""
    data, scale = node.inputs[0], node.inputs[1]
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    if data is None or scale is None:
        return
    stored = data.dtype if node.op_type == "DequantizeLinear" else (zero.dtype if zero is not None else None)
    if stored == U8 or (
        stored is None and node.op_type == "QuantizeLinear" and "output_dtype" not in node.attributes
    ):
        yield "quantises to uint8, which is taken for int8: other numbers, and no word of it"
    scales = array_of(scale)
    if scales is None:
        yield "scale is computed, it must be a constant"
        return
    if not (scales.astype(np.float32) > 0).all():
        yield "a scale is not above 0"
    if zero is not None and (zeros := array_of(zero)) is not None and zeros.astype(np.float32).any():
        yield "zero point is not 0, only symmetric quantisation is read"
    if scales.size > 1 and node.op_type == "QuantizeLinear":
        yield "activations have one scale a channel, want one for the tensor"
    if stored == INT4:
        yield from _int4(node, data)


def _int4(node: ir.Node, data: ir.Value) -> Iterator[str]:
    if (weight := array_of(data)) is None:
        yield "int4 is for constant weights only"
        return
    shape = weight.shape
    size = node.attributes["block_size"].as_int() if "block_size" in node.attributes else 0
    if size not in INT4_BLOCKS:
        yield f"int4 in blocks of {size}, want one of {', '.join(map(str, INT4_BLOCKS))}"
    elif shape[node.attributes["axis"].as_int() if "axis" in node.attributes else 1] % size:
        yield f"int4 weight {shape} has a block that is not full"
    if shape and shape[-1] % 2:
        yield f"int4 weight {shape} has an odd last size"


def _layer_norm(node: ir.Node) -> Iterator[str]:
    if sum(bool(value.name) for value in node.outputs) > 1:
        yield "LayerNormalization with more than one output"


def _attention(node: ir.Node) -> Iterator[str]:
    if len(node.outputs) > 1 or len(node.inputs) > 4:
        yield "Attention with past keys or more than one output"


def _scatter(node: ir.Node) -> Iterator[str]:
    if "reduction" in node.attributes and node.attributes["reduction"].as_string() != "none":
        yield "ScatterElements with a reduction"


def _resize(node: ir.Node) -> Iterator[str]:
    given = {name: node.attributes[name] for name in node.attributes}
    modes = {"mode": ("nearest", "linear"), "keep_aspect_ratio_policy": ("stretch",),
             "coordinate_transformation_mode": ("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners")}  # fmt: skip
    for name, known in modes.items():
        if name in given and given[name].as_string() not in known:
            yield f"Resize with {name} {given[name].as_string()}, want one of {', '.join(known)}"
    if "antialias" in given and given["antialias"].as_int():
        yield "Resize with antialias"


_MORE: Mapping[str, Callable[[ir.Node], Iterator[str]]] = {
    "QuantizeLinear": _pair,
    "DequantizeLinear": _pair,
    "LayerNormalization": _layer_norm,
    "Attention": _attention,
    "ScatterElements": _scatter,
    "Resize": _resize,
}
