"""Scales of activations, against onnx's own reference and against brute force."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import helper
from onnx.reference import ReferenceEvaluator

from edgeclip.export.precision import ranges
from edgeclip.export.precision.ranges import RANGES, ByteRange, Seen, byte_range, see
from tests.mutants import broken

RANDOM = np.random.default_rng(7)
GELU = (x := RANDOM.normal(size=(1000, 32)).astype(np.float32)) / (1 + np.exp(-1.702 * x))  # from -0.17 to 4
TAILED = RANDOM.standard_t(3, size=(1000, 32)).astype(np.float32)


def seen(rows: NDArray[np.float32]) -> Seen:
    return Seen(rows.min(axis=0), rows.max(axis=0), rows)


def error(found: ByteRange, rows: NDArray[np.float32]) -> float:
    return float(((found.rounded(rows) - rows) ** 2).mean())


@pytest.mark.parametrize("kind", ["uint8", "int8"])
@pytest.mark.parametrize("how", RANGES)
def test_rounding_is_what_the_operators_do(how: str, kind: str) -> None:
    for rows in (GELU, TAILED, -np.abs(TAILED)):
        found = byte_range(seen(rows), how, kind)
        assert found.zero.dtype == kind
        assert kind == "uint8" or found.zero == 0
        down = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"])
        up = helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"])
        feed = {"x": rows, "s": np.array(found.scale), "z": found.zero}
        feed["q"] = ReferenceEvaluator(down).run(None, feed)[0]  # type: ignore[arg-type]
        np.testing.assert_array_equal(ReferenceEvaluator(up).run(None, feed)[0], found.rounded(rows))  # type: ignore[arg-type]
        assert found.rounded(np.zeros(1, np.float32)) == 0


def test_ends_worked_by_hand() -> None:
    rows = np.array([[-1.0, 0.5], [0.25, 4.1]], np.float32)
    found = byte_range(seen(rows), "min-max", "uint8")
    assert found.scale == pytest.approx(5.1 / 255)
    assert found.zero == 50
    assert byte_range(seen(rows), "min-max", "int8").scale == pytest.approx(4.1 / 127)
    found = byte_range(seen(rows * 0), "mse", "uint8")  # a dead value: any scale, no division by zero
    assert np.isfinite(found.scale)


@pytest.mark.parametrize("kind", ["uint8", "int8"])
def test_least_squares_find_what_trying_everything_finds(kind: str) -> None:
    for rows in (GELU, TAILED):
        found = error(byte_range(seen(rows), "mse", kind), rows)
        tried = [
            error(byte_range(Seen(rows.min(0) * a, rows.max(0) * b, rows), "min-max", kind), rows)
            for a in np.linspace(0.3, 1, 15)
            for b in np.linspace(0.3, 1, 15)
        ]
        assert found <= 1.1 * min(tried)
        assert found <= 1.02 * error(byte_range(seen(rows), "min-max", kind), rows)
        assert found <= 1.02 * error(byte_range(seen(rows), "percentile", kind), rows)


def test_a_search_that_forgets_what_it_clips_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = error(byte_range(seen(TAILED), "mse", "uint8"), TAILED)
    mutant = broken(ranges._mse, "clipped + inside", "inside")
    monkeypatch.setattr(ranges, "RANGES", {**RANGES, "mse": mutant})
    assert error(byte_range(seen(TAILED), "mse", "uint8"), TAILED) > 1.05 * right


def test_what_is_seen_is_what_the_graph_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = RANDOM.normal(size=(9, 17, 24)).astype(np.float32)
    nodes = [helper.make_node("Sigmoid", ["x"], ["inner"]), helper.make_node("Neg", ["inner"], ["y"])]
    ports = [helper.make_tensor_value_info(name, 1, ["N", 17, 24]) for name in "xy"]
    proto = helper.make_model(
        helper.make_graph(nodes, "one", ports[:1], ports[1:]),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    model, whole = ir.from_proto(proto), 1 / (1 + np.exp(-inputs))
    flat = whole.reshape(-1, whole.shape[-1])
    for most in (1024, 30):
        monkeypatch.setattr(ranges, "_ROWS", most)
        found = see(model, {"inner": -1}, inputs)["inner"]
        np.testing.assert_allclose(found.low, flat.min(axis=0), rtol=1e-5)
        np.testing.assert_allclose(found.high, flat.max(axis=0), rtol=1e-5)
        assert len(found.rows) == min(most, len(flat))
        again = see(model, {"inner": -1}, inputs)["inner"]
        np.testing.assert_array_equal(found.rows, again.rows)  # drawn alike every time
        nearest = np.abs(found.rows[:, None] - flat[None]).max(axis=2).argmin(axis=1)
        assert len(set(nearest // 17)) == 9  # of every picture
