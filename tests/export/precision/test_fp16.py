"""16-bit floats: what stays in fp32 is found by measuring, and overflow that onnxruntime's CPU hides is seen."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch.nn import functional as F

from edgeclip.errors import CheckFailed, InputError
from edgeclip.export.observe import rows
from edgeclip.export.precision import Converted, Request, convert, islands, typed
from edgeclip.export.precision.islands import trim
from edgeclip.export.precision.typed import fixed, prepare, refusal, retype, rounded
from edgeclip.runtime.fidelity import relative_distance
from tests.export.precision.graphs import Array, check, graph, normal, types
from tests.export.sources import clip_source
from tests.export.traced import PIXELS, graphs, traced
from tests.mutants import broken
from tests.stress import plant_overflow, streams

HALF = ir.DataType.FLOAT16
SPREAD = np.array([1, -1, 0.5, 2, -0.25, 1.5, -2, 0.75], np.float32)
NORM = """(float[N,8] x) => (float[N,8] y) {
    s = Mul(x, big)
    m = ReduceMean<keepdims=1>(s, axes)
    d = Sub(s, m)
    p = Mul(d, d)
    v = ReduceMean<keepdims=1>(p, axes)
    r = Sqrt(v)
    n = Div(d, r)
    y = MatMul(n, w)
}"""
ONE_NORM = (
    "(float[N,8] x) => (float[N,8] y) { s = Mul(x, big) n = LayerNormalization(s, one) y = MatMul(n, w) }"
)
OVERFLOWS = "(float[N,8] x) => (float[N,8] y) { a = Mul(x, c) b = Mul(a, c) d = Div(b, c) y = Div(d, c) }"
BIG, ONES, AXES, W = np.float32(1400), np.ones(8, np.float32), np.array([1]), normal(8, 8)
INPUTS = normal(6, 8, seed=1)


def half(model: ir.Model, inputs: Array = INPUTS, method: str = "fp16", **settings: Any) -> Converted:
    return convert(model, method, Request(inputs=inputs, threads=1, **settings))


def naive(model: ir.Model) -> ir.Model:
    """All that the operators allow in fp16, as a list of operators would have it."""
    copy = model.clone()
    prepare(copy)
    retype(copy, HALF, fixed(copy, HALF).keys())
    return copy


def run(model: ir.Model, inputs: Array = INPUTS) -> Array:
    return rows(rounded(model), inputs, threads=1)


@pytest.mark.parity
def test_a_tower_in_fp16_is_typed_and_as_near_as_pytorch_in_fp16() -> None:
    source, towers = traced("openai", "image")
    model = ir.from_proto(towers["decomposed"])
    found = half(model, PIXELS)
    proto = check(found.model)
    assert (
        proto.graph.input[0].type.tensor_type.elem_type,
        proto.graph.output[0].type.tensor_type.elem_type,
    ) == (1, 1)
    kinds = types(found.model)
    assert {
        kinds[name] for name in kinds if name.startswith(("MatMul", "Conv", "Softmax", "LayerNorm", "Add"))
    } == {"FLOAT16"}
    assert {kinds[name] for name in kinds if name.startswith(("ReduceL2", "Clip", "Div"))} == {"FLOAT"}
    assert sum(len(i.raw_data) for i in proto.graph.initializer) < 0.52 * sum(
        len(i.raw_data) for i in towers["decomposed"].graph.initializer
    )
    want, got = rows(model, PIXELS, threads=1), run(found.model, PIXELS)
    rounded_for_good = deepcopy(source.model).to(torch.float16)  # the source is shared
    with torch.no_grad():
        torch_half = F.normalize(
            rounded_for_good.encode_image(torch.from_numpy(PIXELS).half()).float(), dim=-1
        )
    theirs = relative_distance(want, torch_half.numpy())
    assert 1e-4 < relative_distance(want, got) < 1.5 * theirs < 0.01
    assert relative_distance(want, ReferenceEvaluator(proto).run(None, {"pixels": PIXELS})[0]) < 0.01


def test_each_rounding_is_that_of_numpy() -> None:
    model = graph(
        "(float[N,8] x) => (float[N,8] y) { a = Mul(x, c) b = Add(a, c) y = Mul(b, b) }", c=normal(8, seed=2)
    )
    x, c = INPUTS.astype(np.float16), normal(8, seed=2).astype(np.float16)
    want = (x * c + c) * (x * c + c)  # numpy rounds each product and sum to fp16
    np.testing.assert_array_equal(run(naive(model)), want.astype(np.float32))


def test_overflow_that_onnxruntime_hides_is_seen() -> None:
    model = graph(OVERFLOWS, c=np.float32(300))
    inputs = np.full((2, 8), 3, np.float32)
    low = naive(model)
    np.testing.assert_array_equal(rows(low, inputs, threads=1), inputs)  # computed in fp32 behind the types
    assert np.isinf(run(low, inputs)).all()
    np.testing.assert_array_equal(run(half(model, inputs).model, inputs), inputs)


def test_a_norm_taken_apart_is_ruined_and_caught_and_one_operator_holds() -> None:
    apart, whole = graph(NORM, big=BIG, axes=AXES, w=W), graph(ONE_NORM, big=BIG, one=ONES, w=W)
    inputs = INPUTS * SPREAD
    want = rows(apart, inputs, threads=1)
    np.testing.assert_allclose(rows(whole, inputs, threads=1), want, atol=1e-4)
    assert not relative_distance(want, run(naive(apart), inputs)) < 0.5  # squares pass 65,504
    assert relative_distance(want, run(naive(whole), inputs)) < 0.01
    found = half(apart, inputs)
    assert relative_distance(want, run(found.model, inputs)) < 0.01
    kinds = types(found.model)
    assert (kinds["Mul_1"], kinds["MatMul_0"]) == ("FLOAT", "FLOAT16")
    assert any("Mul_1: fp32, |x| reaches" in note for note in found.reports[0].near_misses)
    assert half(whole, inputs).reports[1].changed == 0


def test_a_stream_beyond_fp16_stays_in_fp32_and_the_layers_do_not() -> None:
    source = clip_source("siglip")
    plant_overflow(source.model.image)  # type: ignore[arg-type]
    assert max(float(x.abs().max()) for x in streams(source.model.image)) > 65_504  # type: ignore[arg-type]
    model = ir.from_proto(graphs(source, "image", "decomposed")["decomposed"])
    want = rows(model, PIXELS, threads=1)
    assert not np.isfinite(run(naive(model), PIXELS)).all()
    found = half(model, PIXELS)
    check(found.model)
    assert relative_distance(want, run(found.model, PIXELS)) < 0.01
    kinds = types(found.model)
    products = [kinds[name] for name in kinds if name.startswith("MatMul")]
    assert products.count("FLOAT16") > products.count("FLOAT")


def test_without_ranges_the_search_finds_the_overflow_and_without_both_it_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    apart, inputs = graph(NORM, big=BIG, axes=AXES, w=W), INPUTS * SPREAD
    want = rows(apart, inputs, threads=1)
    monkeypatch.setattr(islands, "_out_of_range", lambda *_: {})
    assert relative_distance(want, run(half(apart, inputs).model, inputs)) < 0.01
    monkeypatch.setattr(islands._Search, "extend", lambda self, wide, limit, error: ({}, error))
    with pytest.raises(CheckFailed, match="fp16: the graph's output is not finite even with 0 nodes"):
        half(graph(OVERFLOWS, c=np.float32(300)), np.full((2, 8), 3, np.float32))


@pytest.mark.parametrize("hidden", [np.finfo(np.float32).min, -np.inf, -32752.0])
def test_masks(hidden: float) -> None:
    mask = np.triu(np.full((8, 8), hidden, np.float32), 1)
    text = "(float[8,8] x) => (float[8,8] y) { s = MatMul(x, w) m = Add(s, mask) p = Softmax(m) y = MatMul(p, w) }"
    model, inputs = graph(text, w=W, mask=mask), normal(8, 8, seed=3)
    found = half(model, inputs)
    np.testing.assert_allclose(run(found.model, inputs), rows(model, inputs, threads=1), atol=0.02)
    assert found.reports[1].changed == (0 if hidden == -32752 else 2)


def test_what_decides_on_a_place_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    text = """(int32[N,4] ids) => (float[N,4] y) {
        f = Cast<to=1>(ids)
        e = Equal(f, eos)
        g = Cast<to=1>(e)
        y = Mul(g, c)
    }"""
    model = graph(text, eos=np.float32(4097), c=np.float32(0.1))
    ids = np.array([[4097, 4096, 4098, 3], [1, 2, 3, 4097]], np.int32)  # one number in fp16
    want = rows(model, ids, threads=1)
    found = half(model, ids)
    check(found.model)
    np.testing.assert_allclose(run(found.model, ids), want, rtol=1e-3)
    monkeypatch.setattr(typed, "deciding", lambda model: set())
    with pytest.raises(Exception, match="inconsistent type"):  # and without the rule it is not even a graph
        check(naive(model))


def test_large_ids_are_no_large_values() -> None:
    table = normal(60_000, 4, scale=0.1)
    model = graph("(int32[N,2] ids) => (float[N,2,4] y) { g = Gather(t, ids) y = Tanh(g) }", t=table)
    found = half(model, np.array([[59_999, 3], [5, 6]], np.int32))
    assert found.reports[1].changed == 0
    assert types(found.model)["Gather_0"] == "FLOAT16"


CANCELS = "(float[N,8] x) => (float[N,8] y) { a = Add(x, c) r = Relu(a) b = Sub(r, c) t = MatMul(b, w) y = Tanh(t) }"


def test_rounding_that_ruins_is_found_and_only_that() -> None:
    model = graph(CANCELS, c=np.float32(3000), w=normal(8, 8, scale=0.3))  # fp16 counts in twos there
    want = rows(model, INPUTS, threads=1)
    assert relative_distance(want, run(naive(model))) > 0.1
    found = half(model)
    assert relative_distance(want, run(found.model)) < 0.01
    kinds = types(found.model)
    assert (kinds["Add_0"], kinds["MatMul_0"], kinds["Tanh_0"]) == ("FLOAT", "FLOAT16", "FLOAT16")
    assert any("its rounding: relative distance" in note for note in found.reports[0].near_misses)


def test_layers_left_out_stay_in_fp32() -> None:
    model = graph(
        "(float[N,8] x) => (float[N,8] y) { a = MatMul(x, w) y = MatMul(a, v) }", w=W, v=normal(8, 8, seed=4)
    )
    found = half(model, layers=frozenset({"v"})).model
    assert {name: value.dtype.name for name, value in found.graph.initializers.items() if value.dtype} == {
        "w": "FLOAT",
        "v": "FLOAT16",
    }
    assert types(found)["MatMul_0"] == "FLOAT"


def test_weights_stored_as_fp16_are_taken_up() -> None:
    stored = graph(
        "(float[N,8] x) => (float[N,8] y) { u = Cast<to=1>(w) y = MatMul(x, u) }",
        **{"w": W.astype(np.float16)},
    )
    found = half(stored).model
    assert [node.op_type for node in found.graph] == ["Cast", "MatMul", "Cast"]
    np.testing.assert_allclose(run(found), INPUTS @ W, atol=0.02)


def test_bf16_is_measured_though_nothing_here_runs_it() -> None:
    text = (
        "(float[N,3,4,4] x) => (float[N,8] y) { c = Conv(x, k) f = Flatten(c) t = MatMul(f, w) y = Tanh(t) }"
    )
    model, inputs = graph(text, k=normal(2, 3, 4, 4, scale=0.2), w=normal(2, 8)), normal(4, 3, 4, 4, seed=5)
    found = half(model, inputs, "bf16")
    check(found.model)  # Conv knows bf16 from opset 22 on
    assert (types(found.model)["Conv_0"], types(found.model)["MatMul_0"]) == ("FLOAT", "BFLOAT16")
    assert "Could not find an implementation" in refusal(found.model)
    assert any("does not run it" in note for note in found.reports[0].near_misses)
    want = rows(model, inputs, threads=1)
    assert 1e-3 < relative_distance(want, run(found.model, inputs)) < 0.08


def test_refusals() -> None:
    model = graph("(float[N,8] x) => (float[N,8] y) { a = Log(x) y = MatMul(a, w) }", w=W)
    with pytest.raises(CheckFailed, match="the fp32 graph's output is not finite"):
        half(model)
    with pytest.raises(InputError, match="precision fp16: needs calibration inputs"):
        convert(model, "fp16", Request())
    with pytest.raises(
        CheckFailed, match=r"w: expected constants that FLOAT16 holds, got 1e\+05; its reader must stay fp32"
    ):
        naive(
            graph("(float[N,8] x) => (float[N,8] y) { y = MatMul(x, w) }", w=np.full((8, 8), 1e5, np.float32))
        )


def test_trim_keeps_what_is_needed() -> None:
    assert trim([str(i) for i in range(16)], lambda nodes: {"3", "12"} <= set(nodes)) == ["3", "12"]
    assert trim([], lambda nodes: True) == []


def test_the_comparison_sees_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    unrounded = broken(rounded, "if node.op_type not in _MOVES:", "if False:")
    model = graph("(float[N,8] x) => (float[N,8] y) { a = Mul(x, c) y = Mul(a, c) }", c=np.float32(300))
    assert np.isfinite(rows(unrounded(naive(model)), INPUTS, threads=1)).all()
    assert not np.isfinite(run(naive(model))).all()
