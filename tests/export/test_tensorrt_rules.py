"""Each rule of TensorRT's parser on a graph that breaks it alone, and our own graphs, which break none."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from edgeclip.errors import InputError
from edgeclip.export import tensorrt_rules
from edgeclip.export.precision import METHODS, Request, convert
from edgeclip.export.tensorrt_rules import OPERATORS, VERSIONS, problems, required
from edgeclip.export.uint8_input import take_uint8
from tests.export.precision.graphs import Array, graph, normal
from tests.export.sources import PREPROCESSING
from tests.export.traced import EVERY_SHAPE, KINDS, traced
from tests.mutants import broken
from tests.runtime.tensorrt.graphs import why_not_read

Q = "(float[N,8] x) => (float[N,8] y) { q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }"
S8, Z8 = np.float32(0.1), np.int8(0)


def int4(rows: int = 64, columns: int = 8) -> Array:
    array: Array = np.ones((rows, columns), ml_dtypes.int4)
    return array


@pytest.mark.parametrize(
    ("body", "constants", "reason"),
    [
        (Q, {"s": S8, "z": np.uint8(0)}, "QuantizeLinear_0: quantises to uint8"),
        (Q, {"s": S8, "z": np.int8(3)}, "QuantizeLinear_0: zero point is not 0"),
        (Q, {"s": np.float32(0), "z": Z8}, "QuantizeLinear_0: a scale is not above 0"),
        (
            "(float[N,8] x) => (float[N,8] y) { q = QuantizeLinear<axis=1>(x, s, z) y = DequantizeLinear<axis=1>(q, s, z) }",
            {"s": np.full(8, 0.1, np.float32), "z": np.zeros(8, np.int8)},
            "QuantizeLinear_0: activations have one scale a channel",
        ),
        ("(float[N,8] x, float s) => (float[N,8] y) { q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }", {"z": Z8}, "QuantizeLinear_0: scale is computed"),
        ("(float[N,8] x) => (uint8[N,8] q) { q, s, z = DynamicQuantizeLinear(x) }", {}, "DynamicQuantizeLinear_0: DynamicQuantizeLinear is not read; write static"),
        ("(uint8[N,8] x) => (int32[N,2] y) { y = MatMulInteger(x, w) }", {"w": np.ones((8, 2), np.int8)}, "MatMulInteger_0: MatMulInteger is not read"),
        ('(float[N,8] x, int64[N,2] i, float[N,2] u) => (float[N,8] y) { y = ScatterElements<axis=1, reduction="add">(x, i, u) }', {}, "ScatterElements_0: ScatterElements with a reduction"),
        ('(float[N,4,8,8] x) => (float[N,4,4,4] y) { y = Resize<mode="linear", antialias=1>(x, , s) }', {"s": np.float32([1, 1, 0.5, 0.5])}, "Resize_0: Resize with antialias"),
        ('(float[N,4,8,8] x) => (float[N,4,4,4] y) { y = Resize<mode="cubic">(x, , s) }', {"s": np.float32([1, 1, 0.5, 0.5])}, "Resize_0: Resize with mode cubic, want one of nearest, linear"),
        ("(float[N,8] x) => (float[N,8] y) { y = Sinh(x) }", {}, "Sinh_0: Sinh is not in the table"),
        ("(double[N,8] x) => (double[N,8] y) { y = Sigmoid(x) }", {}, "Sigmoid_0: Sigmoid of double, want one of bfloat16, float, float16"),
        ("(float[N,8] x, int64[1] a) => (float[N,1] y) { y = ReduceL2(x, a) }", {}, "ReduceL2_0: ReduceL2 with computed axes"),
        ("(float[N,8] x) => (float[N,8] y, float[N,1] m) { y, m = LayerNormalization(x, g) }", {"g": np.ones(8, np.float32)}, "LayerNormalization_0: LayerNormalization with more than one output"),
    ],
)  # fmt: skip
def test_each_rule(body: str, constants: dict[str, Array], reason: str) -> None:
    found = problems(graph(body, **constants), "11.4")
    assert any(line.startswith(reason) for line in found), found


def test_a_graph_that_breaks_none() -> None:
    model = graph(Q, s=S8, z=Z8)
    assert problems(model, "10.3") == problems(model, "10.16") == problems(model, "11.4") == []


BLOCK = "(float[N,64] x) => (float[N,64] y) { n = LayerNormalization(x, g) a = MatMul(n, w) b = Gelu(a) y = MatMul(b, v) }"


@pytest.mark.parametrize("method", METHODS)
def test_every_precision_is_one_graph_for_all_versions_or_says_why_not(method: str) -> None:
    model = graph(BLOCK, g=np.ones(64, np.float32), w=normal(64, 128), v=normal(128, 64))
    settings = Request(inputs=normal(8, 64), activations="int8", threads=1)
    found = {version: problems(convert(model, method, settings).model, version) for version in VERSIONS}
    if method == "int8-dynamic":  # for CPUs alone
        assert all(
            any("DynamicQuantizeLinear is not read" in line for line in lines) for lines in found.values()
        )
    elif method == "int4":
        assert found == {
            "10.3": ["graph: opset 21, TensorRT 10.3 documents up to 20"],
            "10.16": [],
            "11.4": [],
        }
    else:
        assert not any(found.values())


@pytest.mark.parametrize(
    ("size", "shape", "reason"),
    [
        (32, (64, 8), "int4 in blocks of 32, want one of 64, 128"),
        (64, (64, 7), "int4 weight (64, 7) has an odd last size"),
    ],
)
def test_int4(size: int, shape: tuple[int, int], reason: str) -> None:
    text = f"(float[N,64] x) => (float[N,{shape[1]}] y) {{ d = DequantizeLinear<axis=0, block_size={size}>(q, s) y = MatMul(x, d) }}"
    model = graph(text, 21, q=int4(*shape), s=np.ones((64 // size, shape[1]), np.float32))
    assert problems(model, "11.4") == [f"DequantizeLinear_0: {reason}"]
    assert problems(model, "10.3")[0] == "graph: opset 21, TensorRT 10.3 documents up to 20"


def test_int4_blocks_lie_along_the_second_axis_unless_it_is_named() -> None:
    text = "(float[N,4] x) => (float[N,128] y) { d = DequantizeLinear<block_size=64>(q, s) y = MatMul(x, d) }"
    model = graph(text, 21, q=int4(4, 128), s=np.ones((4, 2), np.float32))
    assert problems(model, "11.4") == []


def test_attention_and_opset_are_a_matter_of_the_version() -> None:
    towers = {name: ir.from_proto(proto) for name, proto in traced("openai", "image")[1].items()}
    for version in VERSIONS:
        assert problems(towers["decomposed"], version) == [], version
    assert problems(towers["op"], "10.16") == problems(towers["op"], "11.4") == []
    assert problems(towers["op"], "10.3") == [
        "graph: opset 23, TensorRT 10.3 documents up to 20",
        "graph: IR 11, the ONNX of TensorRT 10.3 knows up to 10",
        *(f"Attention_{i}: Attention is read from TensorRT 10.14 on" for i in range(2)),
    ]


def test_other_domains_and_versions() -> None:
    model = graph("(float[N,8] x) => (float[N,8] y) { y = Gelu(x) }")
    model.graph[0].domain = "com.microsoft"
    assert problems(model, "10.16") == [
        "Gelu_0: operator of domain com.microsoft, only standard ones are read"
    ]
    with pytest.raises(InputError, match=r"TensorRT '9': unknown\. Choose from 10\.3, 10\.16, 11\.4\."):
        problems(model, "9")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", EVERY_SHAPE)
def test_every_tower_says_what_it_needs_and_the_real_parser_reads_it(shape: str, kind: str) -> None:
    for flavour, proto in traced(shape, kind)[1].items():
        model = ir.from_proto(proto)
        assert required(model) == ("10.16" if flavour == "op" else "10.3"), flavour
        assert why_not_read(model) == "", flavour


NEEDS = {
    "fp16": "10.3",
    "bf16": "10.3",
    "int8": "10.3",
    "int8-dynamic": "none",
    "fp8": "10.3",
    "int4": "10.16",
}


@pytest.mark.parametrize("method", METHODS)
def test_every_precision_says_what_it_needs_and_the_real_parser_reads_it(method: str) -> None:
    model = graph(BLOCK, g=np.ones(64, np.float32), w=normal(64, 128), v=normal(128, 64))
    settings = Request(inputs=normal(8, 64), activations="int8", threads=1)
    converted = convert(model, method, settings).model
    assert required(converted) == NEEDS[method]
    assert (why_not_read(converted) == "") == (NEEDS[method] != "none")


def test_bytes_that_cpus_take_are_for_no_release() -> None:
    model = graph(BLOCK, g=np.ones(64, np.float32), w=normal(64, 128), v=normal(128, 64))
    unsigned = convert(model, "int8", Request(inputs=normal(8, 64), activations="uint8", threads=1)).model
    assert required(unsigned) == "none"
    assert "zero point" in why_not_read(unsigned)


def test_pictures_as_bytes_are_read_by_all() -> None:
    model = ir.from_proto(traced("openai", "image")[1]["decomposed"])
    take_uint8(PREPROCESSING)(model)
    assert model.graph.inputs[0].dtype == ir.DataType.UINT8
    assert required(model) == "10.3"
    assert why_not_read(model) == ""


def test_the_oldest_release_counts_with_its_opset_and_its_ir() -> None:
    body = "(float[N,8] x) => (float[N,8] y) { y = Relu(x) }"
    assert [required(graph(body, opset)) for opset in (18, 20, 21, 24)] == ["10.3", "10.3", "10.16", "10.16"]
    model = graph(body)
    for ir_version, want in ((10, "10.3"), (11, "10.16"), (13, "11.4"), (14, "none")):
        model.ir_version = ir_version
        assert required(model) == want


def test_a_checker_that_passes_unsigned_bytes_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    mutant = broken(tensorrt_rules._pair, "stored == U8", "stored is None")
    monkeypatch.setitem(tensorrt_rules._MORE, "QuantizeLinear", mutant)  # type: ignore[attr-defined]
    found = problems(graph(Q, s=S8, z=np.uint8(0)), "11.4")
    assert not any("uint8, which" in line for line in found if line.startswith("QuantizeLinear"))


# One node of each operator of the table, in the types that towers use it in: the real parser takes them all.
ONE = {
    "Conv": ("(float[N,4,8,8] x) => (float[N,4,8,8] y) { y = Conv(x, w) }", {"w": normal(4, 4, 1, 1)}),
    "Gemm": ("(float[N,8] x) => (float[N,8] y) { y = Gemm(x, w, b) }", {"w": normal(8, 8), "b": normal(8)}),
    "MatMul": ("(float[N,8] x) => (float[N,8] y) { y = MatMul(x, w) }", {"w": normal(8, 8)}),
    "LayerNormalization": ("(float[N,8] x) => (float[N,8] y) { y = LayerNormalization(x, w) }", {"w": normal(8)}),
    "LpNormalization": ("(float[N,8] x) => (float[N,8] y) { y = LpNormalization<axis=1, p=2>(x) }", {}),
    "Clip": ("(float[N,8] x) => (float[N,8] y) { y = Clip(x, l) }", {"l": np.float32(0)}),
    "AveragePool": ("(float[N,4,8,8] x) => (float[N,4,4,4] y) { y = AveragePool<kernel_shape=[2,2], strides=[2,2]>(x) }", {}),
    "GlobalAveragePool": ("(float[N,4,8,8] x) => (float[N,4,1,1] y) { y = GlobalAveragePool(x) }", {}),
    "Pow": ("(float[N,8] x) => (float[N,8] y) { y = Pow(x, e) }", {"e": np.float32(2)}),
    "ArgMax": ("(int32[N,8] x) => (int64[N] y) { y = ArgMax<axis=1, keepdims=0>(x) }", {}),
    "TopK": ("(float[N,8] x) => (float[N,2] y, int64[N,2] i) { y, i = TopK(x, k) }", {"k": np.array([2])}),
    "Range": ("(float[N,8] x) => (int64[M] y) { s = Shape<start=0, end=1>(x) e = Squeeze(s, a) y = Range(z, e, o) }", {"a": np.array([0]), "z": np.int64(0), "o": np.int64(1)}),
    "ScatterElements": ("(float[N,8] x, int64[N,2] i, float[N,2] u) => (float[N,8] y) { y = ScatterElements<axis=1>(x, i, u) }", {}),
    "Concat": ("(float[N,8] x) => (float[N,16] y) { y = Concat<axis=1>(x, x) }", {}),
    "Expand": ("(float[N,1] x, int64[2] s) => (float[A,B] y) { y = Expand(x, s) }", {}),
    "Flatten": ("(float[N,8,2] x) => (float[N,16] y) { y = Flatten(x) }", {}),
    "Gather": ("(int32[N,8] x) => (float[N,8,4] y) { y = Gather(w, x) }", {"w": normal(9, 4)}),
    "GatherElements": ("(float[N,8] x, int64[N,2] i) => (float[N,2] y) { y = GatherElements<axis=1>(x, i) }", {}),
    "GatherND": ("(float[N,8,4] x, int64[N,1] i) => (float[N,4] y) { y = GatherND<batch_dims=1>(x, i) }", {}),
    "Reshape": ("(float[N,8] x) => (float[N,2,4] y) { y = Reshape(x, s) }", {"s": np.array([0, 2, 4])}),
    "Shape": ("(float[N,8] x) => (int64[1] y) { y = Shape<start=0, end=1>(x) }", {}),
    "Slice": ("(float[N,8] x) => (float[N,2] y) { y = Slice(x, s, e, a) }", {"s": np.array([1]), "e": np.array([3]), "a": np.array([1])}),
    "Split": ("(float[N,8] x) => (float[N,4] y, float[N,4] z) { y, z = Split<axis=1, num_outputs=2>(x) }", {}),
    "Transpose": ("(float[N,8] x) => (float[8,N] y) { y = Transpose<perm=[1,0]>(x) }", {}),
    "Where": ("(bool[N,8] c, float[N,8] x) => (float[N,8] y) { y = Where(c, x, z) }", {"z": np.float32(0)}),
    "Cast": ("(uint8[N,8] x) => (float[N,8] y) { y = Cast<to=1>(x) }", {}),
    "Not": ("(bool[N,8] x) => (float[N,8] y) { z = Not(x) y = Cast<to=1>(z) }", {}),
    "And": ("(bool[N,8] x) => (bool[N,8] y) { y = And(x, x) }", {}),
    "Pad": ("(float[N,8] x) => (float[N,9] y) { y = Pad(x, p) }", {"p": np.array([0, 1, 0, 0])}),
    "Resize": ('(float[N,4,8,8] x) => (float[N,4,16,16] y) { y = Resize<mode="nearest", nearest_mode="floor", coordinate_transformation_mode="asymmetric">(x, , s) }', {"s": np.float32([1, 1, 2, 2])}),
}  # fmt: skip
_UNARY = (
    "Ceil",
    "Cos",
    "Floor",
    "Sin",
    "Softmax",
    "Softplus",
    "Sigmoid",
    "Tanh",
    "Erf",
    "HardSwish",
    "HardSigmoid",
    "Sqrt",
    "Exp",
    "Log",
    "Reciprocal",
    "Neg",
    "Abs",
    "Relu",
    "Gelu",
    "Identity",
)
_BINARY = ("Add", "Sub", "Mul", "Div", "Max", "Min")
_COMPARED = ("Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual")
_REDUCED = ("ReduceL2", "ReduceMax", "ReduceMean", "ReduceSum")
ONE |= {op: (f"(float[N,8] x) => (float[N,8] y) {{ y = {op}(x) }}", {}) for op in _UNARY}
ONE |= {op: (f"(float[N,8] x) => (float[N,8] y) {{ y = {op}(x, x) }}", {}) for op in _BINARY}
ONE |= {op: (f"(int32[N,8] x) => (bool[N,8] y) {{ y = {op}(x, x) }}", {}) for op in _COMPARED}
ONE |= {
    op: (f"(float[N,8] x) => (float[N,1] y) {{ y = {op}(x, a) }}", {"a": np.array([1])}) for op in _REDUCED
}
ONE["Unsqueeze"] = ("(float[N,8] x) => (float[N,8,1] y) { y = Unsqueeze(x, a) }", {"a": np.array([2])})
ONE["Squeeze"] = ("(float[N,8,1] x) => (float[N,8] y) { y = Squeeze(x, a) }", {"a": np.array([2])})
ONE |= {op: (Q, {"s": S8, "z": Z8}) for op in ("QuantizeLinear", "DequantizeLinear")}


@pytest.mark.parametrize("name", OPERATORS)
def test_the_real_parser_reads_each_operator_of_the_table(name: str) -> None:
    if name == "Attention":  # runtime/tensorrt has tests of its own for it
        return
    body, constants = ONE[name]
    model = graph(body, **constants)
    assert any(node.op_type == name for node in model.graph)
    assert problems(model, "10.3") == []
    assert why_not_read(model) == ""
