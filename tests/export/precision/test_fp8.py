"""fp8: values against numpy's own rounding to E4M3FN, run by onnxruntime."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from edgeclip.export.observe import rows
from edgeclip.export.precision import Request, convert, fp8
from edgeclip.export.precision.typed import rounded
from edgeclip.export.tensorrt_rules import problems
from tests.export.precision.graphs import Array, check, graph, normal, types
from tests.mutants import broken

E4M3 = ml_dtypes.float8_e4m3fn
TWO = "(float[N,32] x) => (float[N,8] y) { a = MatMul(x, w) b = Add(a, c) r = Relu(b) y = MatMul(r, v) }"
W, C, V, X = normal(32, 16), normal(16, seed=1), normal(16, 8, seed=2), normal(6, 32, seed=3)


def in_fp8(model: ir.Model, inputs: Array = X, **settings: Any) -> Any:
    return convert(model, "fp8", Request(inputs=inputs, threads=1, **settings))


def by_hand(array: Array, reach: float) -> Array:
    """One scale for the tensor, as fp16 holds it."""
    scale = np.float32(np.float16(reach / 448))
    return (array / scale).astype(E4M3).astype(np.float32) * scale


def test_values_are_those_of_numpy() -> None:
    found = in_fp8(graph(TWO, w=W, c=C, v=V))
    proto = check(found.model)
    assert proto.opset_import[0].version == 20
    x = X.astype(np.float16).astype(np.float32)
    want = np.maximum(by_hand(x, np.abs(X).max()) @ by_hand(W, np.abs(W).max()) + C, 0) @ V
    noise = 4e-3 * np.abs(want).max()  # of fp16 in between; fp8 itself moves ten times that
    np.testing.assert_allclose(rows(rounded(found.model), X, threads=1), want, atol=noise)
    np.testing.assert_allclose(rows(found.model, X, threads=1), want, atol=noise)
    assert np.abs(np.maximum(X @ W + C, 0) @ V - want).max() > 5 * noise


def test_both_sides_are_quantised_and_the_last_product_is_not() -> None:
    found = in_fp8(graph(TWO, w=W, c=C, v=V))
    stored = {name: value.dtype.name for name, value in found.model.graph.initializers.items() if value.dtype}
    assert (stored["w.fp8"], stored["v"]) == ("FLOAT8E4M3FN", "FLOAT16")
    assert "w" not in stored
    assert types(found.model)["QuantizeLinear_0"] == "FLOAT8E4M3FN"
    assert found.reports[2].name == "fp8"
    assert (found.reports[2].changed, found.reports[2].near_misses) == (
        1,
        ("v: the last product stays FLOAT16",),
    )
    assert problems(found.model, "10.3") == problems(found.model, "11.4", (8, 9)) == []
    assert any("fp8 needs compute capability 8.9" in line for line in problems(found.model, "11.4", (8, 7)))


def test_one_input_is_quantised_once() -> None:
    text = "(float[N,32] x) => (float[N,8] y) { a = MatMul(x, w) b = MatMul(x, u) s = Add(a, b) y = MatMul(s, v) }"
    found = in_fp8(graph(text, w=W, u=normal(32, 16, seed=4), v=V)).model
    assert sum(node.op_type == "QuantizeLinear" for node in found.graph) == 1


def test_only_the_layers_asked_for() -> None:
    found = in_fp8(graph(TWO, w=W, c=C, v=V), layers=frozenset())
    assert found.reports[2].changed == 0
    assert types(found.model)["MatMul_0"] == "FLOAT16"


def test_a_turned_weight_and_an_input_that_is_always_zero() -> None:
    text = """(float[N,32] x) => (float[N,8] y) {
        a = Gemm<transB=1>(x, w, c)
        z = Mul(x, nothing)
        b = MatMul(z, u)
        s = Add(a, b)
        y = MatMul(s, v)
    }"""
    model = graph(
        text, w=np.ascontiguousarray(W.T), c=C, nothing=np.float32(0), u=normal(32, 16, seed=4), v=V
    )
    found = in_fp8(model)
    check(found.model)
    want = rows(model, X, threads=1)
    np.testing.assert_allclose(rows(found.model, X, threads=1), want, atol=0.1 * np.abs(want).max())
    assert "u: its input was 0.0 throughout" in found.reports[2].near_misses


def test_a_small_reach_keeps_a_scale_that_fp16_holds() -> None:
    model = graph(TWO, w=W * 1e-6, c=C * 1e-3, v=V)
    found = in_fp8(model)
    scale = found.model.graph.initializers["w.weight.scale"].const_value
    assert scale is not None
    assert float(scale.numpy()) == 2.0**-14
    assert problems(found.model, "10.3") == []


def test_beyond_the_range_is_the_largest_value() -> None:
    np.testing.assert_array_equal(
        fp8.as_fp8(np.array([1e9, -1e9, 0.5], np.float32), 1.0).astype(np.float32), [448, -448, 0.5]
    )
    wraps = broken(fp8.as_fp8, "np.clip(array / scale, -LARGEST, LARGEST)", "(array / scale)")
    assert np.isnan(wraps(np.array([1e9], np.float32), 1.0).astype(np.float32)).all()


def test_a_wrong_scale_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fp8, "LARGEST", 44.8)
    want = np.maximum(X @ W + C, 0) @ V
    good = np.abs(want).max() * 0.1
    found = in_fp8(graph(TWO, w=W, c=C, v=V)).model
    stored = found.graph.initializers["w.fp8"].const_value
    assert stored is not None
    assert np.abs(stored.numpy().astype(np.float32)).max() < 46
    assert np.abs(rows(found, X, threads=1) - want).max() < good  # a float forgives that
