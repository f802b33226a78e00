"""Scales of activations, against onnx's own reference and against brute force."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import helper
from onnx.reference import ReferenceEvaluator

from edgeclip.export.observe import session
from edgeclip.export.precision import ranges
from edgeclip.export.precision.ranges import RANGES, ByteRange, Seen, byte_range, see
from tests.export.traced import PIXELS, traced
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
        assert found <= 1.2 * min(tried)  # rounding is taken as even noise, which values near 0 are not
        assert found <= 1.001 * error(byte_range(seen(rows), "min-max", kind), rows)
        assert found <= 1.001 * error(byte_range(seen(rows), "percentile", kind), rows)


def test_a_search_that_forgets_what_it_clips_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    mutant = broken(ranges._mse, "clipped + inside", "inside")
    monkeypatch.setattr(ranges, "RANGES", {**RANGES, "mse": mutant})
    assert error(byte_range(seen(TAILED), "mse", "uint8"), TAILED) > 2 * error(
        byte_range(seen(TAILED), "min-max", "uint8"), TAILED
    )


def test_what_is_seen_is_what_the_graph_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ir.from_proto(traced("openai", "image")[1]["decomposed"])
    node = next(node for node in model.graph if node.op_type == "Sigmoid")
    name = str(node.outputs[0].name)
    value: Any = next(output for output in node.outputs)
    model.graph.outputs.append(value)
    whole = session(model).run([name], {"pixels": PIXELS})[0]
    model.graph.outputs.pop()
    flat = whole.reshape(-1, whole.shape[-1])
    for most in (1024, 30):
        monkeypatch.setattr(ranges, "_ROWS", most)
        found = see(model, {name: -1}, PIXELS)[name]
        np.testing.assert_allclose(found.low, flat.min(axis=0), rtol=1e-6)
        np.testing.assert_allclose(found.high, flat.max(axis=0), rtol=1e-6)
        assert len(found.rows) == min(most, len(flat))
        again = see(model, {name: -1}, PIXELS)[name]
        np.testing.assert_array_equal(found.rows, again.rows)  # drawn alike every time
        nearest = np.abs(found.rows[:, None] - flat[None]).max(axis=2).argmin(axis=1)
        assert len(set(nearest // (len(flat) // len(PIXELS)))) == len(PIXELS)  # of every picture
