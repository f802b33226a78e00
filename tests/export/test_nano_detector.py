"""nano's detector as a graph: what it says is the model's, at every batch, and its convolutions are the image tower's own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from torch.nn import functional as F

from edgeclip.bundle import Detection
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
