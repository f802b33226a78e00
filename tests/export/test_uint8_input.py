"""Graphs that take bytes, against the same graph on normalised floats."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgeclip.bundle import Preprocessing
from edgeclip.export import uint8_input
from edgeclip.export.passes import store_fp16
from edgeclip.export.samples import made_up_pictures
from edgeclip.export.uint8_input import take_uint8
from edgeclip.runtime.images import Preprocessor, bytes_of
from tests.export.sources import PREPROCESSING
from tests.export.traced import PIXELS, assert_rows, opened, traced, wanted
from tests.mutants import broken

SPEC = Preprocessing((8, 8), "squash", "bicubic", (0.48, 0.46, 0.41), (0.27, 0.26, 0.28))
BYTES = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
FLOATS = ((BYTES / 255 - SPEC.mean) / SPEC.std).astype(np.float32).transpose(0, 3, 1, 2)


def graph(*nodes: onnx.NodeProto, half: bool = False) -> ir.Model:
    """A graph of these nodes from `pixels` to `y`, with a convolution's weight and bias at hand."""
    made = np.random.default_rng(1)
    weight = made.normal(size=(5, 3, 4, 4)).astype(np.float16 if half else np.float32)
    bias = made.normal(size=5).astype(np.float32)
    held = [numpy_helper.from_array(weight, "c.weight"), numpy_helper.from_array(bias, "c.bias")]
    read = {name for node in nodes for name in node.input}
    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["N", 3, 8, 8])
    rank = 2 if nodes[-1].op_type == "Flatten" else 4
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", *[None] * (rank - 1)])
    inner = helper.make_graph(list(nodes), "g", [pixels], [y], [one for one in held if one.name in read])
    return ir.from_proto(helper.make_model(inner, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))


def conv(*more: str, output: str = "y", weight: str = "c.weight", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node("Conv", ["pixels", weight, *more], [output], strides=[4, 4], **attributes)


def rows(model: ir.Model, pixels: NDArray[Any]) -> NDArray[Any]:
    """What a graph gives, in numpy alone."""
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    found: NDArray[Any] = ReferenceEvaluator(proto).run(None, {"pixels": pixels})[0]
    return found


@pytest.mark.parametrize("more", [(), ("c.bias",)])
def test_scale_and_mean_are_in_the_first_convolution(more: tuple[str, ...]) -> None:
    model = graph(conv(*more))
    want = rows(model, FLOATS)
    report = take_uint8(SPEC)(model)
    assert (report.changed, report.near_misses) == (1, ())
    assert [node.op_type for node in model.graph] == ["Cast", "Transpose", "Conv"]
    assert set(model.graph.initializers) == {"c.uint8.weight", "c.uint8.bias"}
    np.testing.assert_allclose(rows(model, BYTES), want, atol=2e-5)  # of values around 10


@pytest.mark.parametrize(("old", "new"), [("* scale", "* scale[::-1]"), ("bias + np", "bias - np")])
def test_a_fault_in_the_fold_would_be_seen(old: str, new: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uint8_input, "_fold", broken(uint8_input._fold, old, new))
    model = graph(conv("c.bias"))
    want = rows(model, FLOATS)
    take_uint8(SPEC)(model)
    assert np.abs(rows(model, BYTES) - want).max() > 1e-2


CAST = helper.make_node("Cast", ["c.weight"], ["w"], to=TensorProto.FLOAT)
TWO = helper.make_node("Concat", ["a", "b"], ["y"], axis=1)


@pytest.mark.parametrize(
    ("nodes", "half", "reason"),
    [
        ([conv(pads=[1, 1, 1, 1])], False, "it pads with zeros, which are the mean colour only after"),
        ([conv(auto_pad="SAME_UPPER")], False, "it pads with zeros"),
        ([CAST, conv(weight="w")], True, "w is not stored in fp32"),
        ([conv(output="a"), conv(output="b"), TWO], False, "pixels are read by Conv, Conv, not by one Conv"),
        ([helper.make_node("Flatten", ["pixels"], ["y"])], False, "pixels are read by Flatten, not by one"),
    ],
)
def test_where_folding_is_not_exact_it_stands_apart_and_says_why(
    nodes: list[onnx.NodeProto], half: bool, reason: str
) -> None:
    model = graph(*nodes, half=half)
    want = rows(model, FLOATS)
    report = take_uint8(SPEC)(model)
    assert report.changed == 1
    assert reason in report.near_misses[0]
    np.testing.assert_allclose(rows(model, BYTES), want, atol=2e-5)
    folded = graph(conv(pads=[1, 1, 1, 1]))
    assert not np.allclose(rows(folded, FLOATS), rows(folded, BYTES.transpose(0, 3, 1, 2) / np.float32(58)))


def test_another_input_is_refused() -> None:
    model = graph(conv())
    take_uint8(SPEC)(model)
    with pytest.raises(ValueError, match=r"want an input \(N, 3, H, W\) float32"):
        take_uint8(SPEC)(model)


# a class token behind a convolution that folds; padded convolutions
@pytest.mark.parametrize(("shape", "missed"), [("openai", 0), ("nano", 1)])
@pytest.mark.parametrize("stored", [False, True])
def test_towers_give_what_the_source_gives_for_the_same_bytes(shape: str, missed: int, stored: bool) -> None:
    preprocessor = Preprocessor(PREPROCESSING, decode="exact")
    pictures = np.stack([preprocessor.uint8(picture) for picture in made_up_pictures(8)])
    source, towers = traced(shape, "image")
    want = wanted(source, "image", PIXELS)
    for name, proto in towers.items():
        model = ir.from_proto(proto)
        if stored:
            store_fp16(model)
            want = opened(ir.to_proto(model)).run(None, {"pixels": PIXELS})[0]
        report = take_uint8(PREPROCESSING)(model)
        assert len(report.near_misses) == (1 if stored else missed), name
        made = ir.to_proto(model)
        onnx.checker.check_model(made, full_check=True)
        session = opened(made)
        assert session.get_inputs()[0].shape == ["N", 32, 32, 3]
        for n in (1, 3, 8):
            assert_rows(session, pictures[:n], want[:n], f"{name} at batch {n}")


def test_bytes_are_those_that_pixels_were_made_from() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    spec = Preprocessing((16, 16), "squash", "bicubic", SPEC.mean, SPEC.std)
    pixels = np.empty((1, 3, 16, 16), np.float32)
    Preprocessor(spec, decode="exact").into(levels[0], pixels[0])
    np.testing.assert_array_equal(bytes_of(pixels, spec), levels)
