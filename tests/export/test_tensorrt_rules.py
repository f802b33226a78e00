"""Each rule of TensorRT's parser on a graph that breaks it alone, and our own graphs, which break none."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from edgeclip.errors import InputError
from edgeclip.export.precision import METHODS, Request, convert
from edgeclip.export.tensorrt_rules import VERSIONS, problems
from tests.export.precision.graphs import Array, graph, normal
from tests.export.traced import traced

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


def test_attention_and_opset_are_a_matter_of_the_version() -> None:
    towers = {name: ir.from_proto(proto) for name, proto in traced("openai", "image")[1].items()}
    for version in VERSIONS:
        assert problems(towers["decomposed"], version) == [], version
    assert problems(towers["op"], "10.16") == problems(towers["op"], "11.4") == []
    assert problems(towers["op"], "10.3") == [
        "graph: opset 23, TensorRT 10.3 documents up to 20",
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
