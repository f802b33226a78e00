"""int4 weights: what is stored, what onnxruntime makes of it, and that the scales are better than the plain ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from edgeclip.export.observe import rows
from edgeclip.export.precision import Converted, Request, convert
from edgeclip.export.precision.int4 import BLOCKS, quantise
from edgeclip.export.tensorrt_rules import problems
from tests.export.precision.graphs import check, graph, normal
from tests.mutants import broken

ONE = "(float[N,128] x) => (float[N,16] y) { a = MatMul(x, w) y = Add(a, c) }"
W, C, X = normal(128, 16), normal(16, seed=1), normal(5, 128, seed=2)


def in_int4(model: ir.Model, **settings: Any) -> Converted:
    return convert(model, "int4", Request(**settings))


def test_what_fits_four_bits_comes_back_exactly() -> None:
    grid = np.random.default_rng(0).integers(-7, 8, (2, 64, 16)).astype(np.float32)
    grid[:, 0] = 7  # the widest of each block
    weight = (grid * np.array([0.5, 0.25], np.float32)[:, None, None]).reshape(128, 16)
    whole, scales = quantise(weight, 64)
    np.testing.assert_array_equal(whole, grid.reshape(128, 16))
    np.testing.assert_array_equal(scales, np.broadcast_to([[0.5], [0.25]], (2, 16)))


def test_scales_err_less_than_those_that_clip_nothing() -> None:
    def error(fitted: Any) -> float:
        whole, scales = fitted(W, 64)
        return float(((whole.reshape(2, 64, 16) * scales[:, None] - W.reshape(2, 64, 16)) ** 2).sum())

    plain = broken(quantise, "for shrink in SHRINKS:", "for shrink in SHRINKS[:1]:")
    assert error(quantise) < 0.95 * error(plain)
    assert error(plain) < 0.03 * float((W**2).sum())


def test_the_graph_computes_what_is_stored() -> None:
    found = in_int4(graph(ONE, w=W, c=C))
    proto = check(found.model)
    assert proto.opset_import[0].version == 21
    whole, scales = quantise(W, 64)
    assert whole.min() >= -8
    assert whole.max() <= 7
    want = X @ (whole.reshape(2, 64, 16) * scales[:, None]).reshape(128, 16) + C
    np.testing.assert_allclose(rows(found.model, X, threads=1), want, atol=0.02 * np.abs(want).max())
    assert 0.02 < np.linalg.norm(want - X @ W - C) / np.linalg.norm(X @ W) < 0.15
    stored = {
        name: value.const_value.nbytes
        for name, value in found.model.graph.initializers.items()
        if value.const_value
    }
    assert stored == {"w.int4": 128 * 16 // 2, "w.scale": 2 * 16 * 4, "c": 16 * 4}


def test_onnxruntime_fuses_the_pair(tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(check(in_int4(graph(ONE, w=W, c=C)).model).SerializeToString(), options)
    assert "MatMulNBits" in {node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node}


@pytest.mark.parametrize(("width", "size"), [(128, 64), (96, 32), (48, 16)])
def test_blocks_divide_the_width(width: int, size: int) -> None:
    text = f"(float[N,{width}] x) => (float[N,16] y) {{ y = MatMul(x, w) }}"
    found = in_int4(graph(text, w=normal(width, 16)))
    check(found.model)
    (node,) = (node for node in found.model.graph if node.op_type == "DequantizeLinear")
    assert node.attributes["block_size"].as_int() == size
    assert bool(problems(found.model, "11.4")) == bool(found.reports[0].near_misses) == (size != BLOCKS[0])


def test_what_does_not_divide_is_left_and_said() -> None:
    text = "(float[N,20] x) => (float[N,16] y) { y = MatMul(x, w) }"
    found = in_int4(graph(text, w=normal(20, 16)))
    assert found.reports[0].near_misses == ("w: 20 x 16 is no multiple of 16 x 2",)
    assert found.reports[0].changed == 0


def test_turned_weights_zero_blocks_and_layers() -> None:
    weight = W.copy()
    weight[:64, 3] = 0
    text = "(float[N,128] x) => (float[N,16] y) { y = Gemm<transB=1>(x, w, c) }"
    model = graph(text, w=np.ascontiguousarray(weight.T), c=C)
    want = X @ weight + C
    found = in_int4(model)
    check(found.model)
    np.testing.assert_allclose(rows(found.model, X, threads=1), want, atol=0.15 * np.abs(want).max())
    assert problems(found.model, "11.4") == []  # a block of zeros has a scale above 0
    assert in_int4(model, layers=frozenset()).reports[0].changed == 0
