"""nano's detector as a graph: what it says is the model's, at every batch, and its convolutions are the image tower's own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch.nn import functional as F

from edgeclip.bundle import Detection
from edgeclip.export.observe import outputs_of
from edgeclip.export.precision import Request, convert
from edgeclip.export.precision.islands import far
from edgeclip.export.precision.typed import rounded
from edgeclip.export.samples import made_up_pictures, pixels_of
from edgeclip.models.source import Source
from tests.export.sources import nano_source
from tests.export.traced import graphs, opened, traced
from tests.models.test_nano_detector import detecting


@pytest.fixture(scope="module")
def source() -> Source:
    plain = nano_source()
    assert plain.preprocessing is not None
    detection = Detection(objectness=True, preprocessing=replace(plain.preprocessing, size=(64, 64)))
    return replace(plain, model=detecting()[0], detection=detection)


@pytest.fixture(scope="module")
def graph(source: Source) -> onnx.ModelProto:
    return graphs(source, "detector")["none"]


def test_the_graph_says_what_the_model_says(source: Source, graph: onnx.ModelProto) -> None:
    assert source.detection is not None
    assert source.detection.preprocessing is not None
    pixels = pixels_of(made_up_pictures(3), source.detection.preprocessing)
    session = opened(graph)
    with torch.no_grad():
        want = source.model.detector(torch.from_numpy(pixels))  # type: ignore[operator]
    want = want._replace(embeddings=F.normalize(want.embeddings, dim=-1))
    names = ["boxes", "region_embeddings", "logit_scales", "logit_biases", "objectness"]
    assert [port.name for port in session.get_outputs()] == names
    for rows in (slice(0, 1), slice(0, 3)):
        got = session.run(None, {"pixels": pixels[rows]})
        for name, mine, theirs in zip(names, got, want, strict=True):
            spread = float(theirs.std())
            assert spread > 1e-3, f"{name} is all but constant: nothing would be proven"
            np.testing.assert_allclose(
                mine, theirs[rows].numpy(), rtol=0, atol=1e-5 * max(1, spread), err_msg=name
            )


def test_its_convolutions_are_stored_once(graph: onnx.ModelProto) -> None:
    image, detector = (_tensors(model) for model in (traced("nano", "image")[1]["none"], graph))
    large = {weights for weights in image if len(weights) > 1000}
    assert len(large - detector) <= 1, (
        "all but the classifier's projection, which the head has as a convolution"
    )
    assert len(large & detector) >= 4


def _tensors(model: onnx.ModelProto) -> set[bytes]:
    return {tensor.raw_data for tensor in model.graph.initializer}


@pytest.mark.parametrize("method", ["fp16", "int8"])
def test_in_fewer_bits(method: str, source: Source, graph: onnx.ModelProto) -> None:
    """fp16: an operator that takes its scales in fp32 alone stays there. int8: what every size of the pyramid reads has no one range."""
    assert source.detection is not None
    assert source.detection.preprocessing is not None
    pixels = pixels_of(made_up_pictures(4), source.detection.preprocessing)
    model = ir.from_proto(graph)
    found = convert(model, method, Request(inputs=pixels, threads=1))
    if method == "int8":
        assert (found.reports[1].name, found.reports[1].changed) == ("int8", 0)
        assert "stages.0.weight: its kernel is read 2 times" in found.reports[1].near_misses[0]
        return
    want, got = (outputs_of(one, pixels, threads=1) for one in (model, rounded(found.model)))
    assert 1e-4 < far(want, got) < 0.01
    onnx.checker.check_model(ir.to_proto(found.model), full_check=True)
    (resize, *_) = (node for node in found.model.graph if node.op_type == "Resize")
    assert {value.dtype for value in resize.inputs if value is not None} == {ir.DataType.FLOAT}
