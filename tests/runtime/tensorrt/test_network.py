"""What is counted of a parsed network, on graphs small enough to count by hand, and what is said of one that breaks its promise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import edgeclip
from edgeclip.bundle import Axes, Port, Variant
from edgeclip.export.precision import Request, convert
from edgeclip.runtime.tensorrt import network as network_module
from edgeclip.runtime.tensorrt.network import judge, read_network, remarks, word, write_out_attention
from edgeclip.runtime.tensorrt.record import EngineReport, NetworkReport
from tests.export.precision.graphs import graph, normal
from tests.mutants import broken
from tests.runtime.tensorrt.graphs import attention, parsed, plan_size, rtx

BLOCK = "(float[N,64] x) => (float[N,64] y) { n = LayerNormalization(x, g) a = MatMul(n, w) b = Gelu(a) y = MatMul(b, v) }"
FEEDS = 64 * 128 + 128 * 64  # elements of both weights


def block() -> ir.Model:
    return graph(BLOCK, g=np.ones(64, np.float32), w=normal(64, 128), v=normal(128, 64))


def counted(model: ir.Model) -> NetworkReport:
    with parsed(model) as (trt, _, network):
        return read_network(trt, network)


def lowered(method: str) -> NetworkReport:
    request = Request(inputs=normal(8, 64), activations="int8", threads=1)
    return counted(convert(block(), method, request).model)


def variant(precision: str, attention: Any = "none") -> Variant:
    port = Port("x", "float32", ("N", 64))
    return Variant("image", "image", Axes(precision, attention), ("graph.onnx",), (port,), (port,))  # type: ignore[arg-type]


# The last layer stays in float where bytes are multiplied.
EXPECTED = {
    "fp16": {"fp16": 2},
    "bf16": {"bf16": 2},
    "int8": {"int8": 1, "fp32": 1},
    "fp8": {"fp8": 1, "fp16": 1},
    "int4": {"int4": 2},
}


@pytest.mark.parametrize("method", EXPECTED)
def test_products_and_weights_count_under_the_type_they_multiply_in(method: str) -> None:
    found = lowered(method)
    assert found.products == EXPECTED[method]
    assert found.weights == {name: FEEDS * count // 2 for name, count in EXPECTED[method].items()}
    assert judge(variant(method), found, None) == ()


def test_bytes_count_only_where_both_operands_are() -> None:
    """Weights in int8 alone save memory; the product is one of floats."""
    model = graph(
        "(float[N,64] x) => (float[N,8] y) { w = DequantizeLinear(q, s) y = MatMul(x, w) }",
        q=np.ones((64, 8), np.int8), s=np.float32(0.1),
    )  # fmt: skip
    found = counted(model)
    assert (found.products, found.weights) == ({"fp32": 1}, {"fp32": 512})
    (line,) = judge(variant("int8"), found, None)
    assert line == "types: int8 was promised, for 10% of the weights at least; they multiply in 100% fp32"


def test_a_rule_that_trusts_the_weights_alone_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    mutant = broken(network_module._Graph.product, '"int4" if "int4" in types', '"int8" if "int8" in types')
    monkeypatch.setattr(network_module._Graph, "product", mutant)
    with pytest.raises(AssertionError):
        test_bytes_count_only_where_both_operands_are()


def test_convolutions_with_their_own_kernels_in_groups() -> None:
    body = (
        "(float[N,4,8,8] x) => (float[N,6,8,8] y) { a = Conv<group=2, pads=[1,1,1,1]>(x, k) y = Conv(a, l) }"
    )
    found = counted(graph(body, k=normal(6, 2, 3, 3), l=normal(6, 6, 1, 1)))
    assert (found.products, found.weights) == ({"fp32": 2}, {"fp32": 6 * 2 * 9 + 36})


def test_products_of_two_activations_have_no_weights() -> None:
    found = counted(graph("(float[N,4,4] x) => (float[N,4,4] y) { y = MatMul(x, x) }"))
    assert (found.products, found.weights) == ({"fp32": 1}, {})
    assert judge(variant("fp16"), found, None) == ()  # nothing to judge by


def test_a_fp32_graph_that_claims_to_be_fp16_is_told() -> None:
    found = counted(block())
    assert judge(variant("fp32"), found, None) == ()
    (line,) = judge(variant("fp16"), found, None)
    assert line == "types: fp16 was promised, for 50% of the weights at least; they multiply in 100% fp32"


def test_the_embedded_bundle_computes_in_fp32_whatever_it_stores() -> None:
    bundle = edgeclip.open_bundle("nano")
    for one in bundle.manifest.variants:
        found = counted(ir.load(bundle.path(one.files[0])))
        assert set(found.products) == {"fp32"}
        assert judge(replace(one, axes=replace(one.axes, precision="fp32")), found, None) == ()
        assert len(judge(one, found, None)) == 1  # its axes speak of how weights are stored


def test_islands_in_fp32_are_no_shortfall_until_they_hold_half_of_the_weights() -> None:
    report = NetworkReport(10, {"fp16": 1, "fp32": 9}, {"fp16": 50, "fp32": 50}, 0, {})
    assert judge(variant("fp16"), report, None) == ()
    worse = replace(report, weights={"fp16": 49, "fp32": 51})
    (line,) = judge(variant("fp16"), worse, None)
    assert "51% fp32, 49% fp16" in line


@pytest.mark.parametrize("mask", ["", "causal", "additive"])
def test_attention_counts_once(mask: str) -> None:
    found = counted(attention(mask=mask))
    assert (found.attention, found.unfused, found.products) == (1, 0, {})
    assert judge(variant("fp16", "op"), found, None) == ()
    (line,) = judge(variant("fp16", "op"), replace(found, attention=0), None)
    assert line == "attention: the Attention operator was promised, the network has none"


@pytest.mark.parametrize(
    ("dtype", "width", "queries"), [("float", 64, 50), ("float16", 8, 50), ("float16", 64, 1)]
)
def test_attention_without_a_kernel_is_written_out_where_it_would_be_refused(
    dtype: str, width: int, queries: int
) -> None:
    with parsed(attention(dtype, width, queries)) as (trt, builder, network):
        found = read_network(trt, network)
        assert (found.attention, found.unfused) == (1, 1)
        (line,) = judge(variant("fp16", "op"), found, None)
        assert line == "attention: 1 of 1 operators have no fused kernel"
        assert plan_size(trt, builder, network, "sm86") is None
        assert write_out_attention(trt, network) == 1
        assert plan_size(trt, builder, network, "sm86") is not None


def test_attention_with_a_kernel_is_left_to_prove_itself() -> None:
    with parsed(attention()) as (trt, _, network):
        assert write_out_attention(trt, network) == 0


ENGINE = EngineReport(layers=40, types={"fp16": 30, "fp32": 5}, fused_attention=11, reformats=5, bytes=1)
NETWORK = NetworkReport(200, {"fp16": 48}, {"fp16": 1000}, 12, {}, unfused=1)


@pytest.mark.parametrize(
    ("precision", "attention", "changes", "line"),
    [
        ("fp16", "op", {}, None),
        ("fp16", "op", {"fused_attention": 3}, "engine attention: 3 of 11 fused into one kernel"),
        ("fp16", "op", {"fused_attention": 3, "opaque": 1}, None),  # the others may be inside
        ("fp16", "op", {"fused_attention": 0}, None),  # other names: an operator without a kernel is not built
        ("fp16", "decomposed", {"fused_attention": 0, "opaque": 1, "types": {"fp32": 1}}, None),
        ("fp32", "decomposed", {"fused_attention": 0, "types": {"fp32": 35}}, None),  # there is no such kernel
        ("fp16", "decomposed", {"fused_attention": 0}, None),  # it never promised one
        ("fp16", "none", {"fused_attention": 0}, None),
        ("fp16", "op", {"types": {"fp16": 4, "fp32": 31}}, "engine types: fp16 was promised, 4 of 35 layers give it"),
        ("fp16", "op", {"reformats": 11}, "engine reformats: 11 of 40 layers only change types or layouts, 25% is the most expected"),
    ],
)  # fmt: skip
def test_engines_are_judged(
    precision: str, attention: str, changes: dict[str, Any], line: str | None
) -> None:
    network = replace(NETWORK, weights={precision: 1000})
    found = judge(variant(precision, attention), network, replace(ENGINE, **changes))
    assert found == (() if line is None else (line,))


def test_an_engine_without_the_promised_bytes() -> None:
    network = replace(NETWORK, weights={"int8": 1000})
    (line,) = judge(variant("int8", "op"), network, ENGINE)
    assert line == "engine types: int8 was promised, no layer gives it"
    assert judge(variant("int8", "op"), network, replace(ENGINE, types={"int8": 1})) == ()


def test_words_of_every_data_type() -> None:
    trt = rtx().module
    names = {name: word(dtype) for name, dtype in trt.DataType.__members__.items()}
    assert (names["FLOAT"], names["HALF"], names["BF16"]) == ("fp32", "fp16", "bf16")
    assert {names[name] for name in ("INT8", "FP8", "INT4", "INT64", "BOOL")} == {
        "int8",
        "fp8",
        "int4",
        "int64",
        "bool",
    }


def test_plain_products_that_no_known_kernel_fused_are_remarked_on() -> None:
    none = replace(ENGINE, fused_attention=0)
    plain = variant("fp16", "decomposed")
    assert remarks(plain, none) == ("engine attention: no kernel of it is known as a fused one",)
    assert remarks(plain, replace(none, fused_attention=11)) == ()
    assert remarks(plain, replace(none, opaque=1)) == remarks(variant("fp16", "op"), none) == ()
    assert remarks(variant("fp32", "decomposed"), none) == ()
    assert remarks(plain, None) == ("engine: its inspector told nothing, only its network is known",)
