"""Traced towers of every made-up source, shared by the tests: tracing is what takes the time."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from edgeclip.export.onnx_graph import capture, write
from edgeclip.export.samples import made_up_pictures, pixels_of
from edgeclip.export.targets import FLAVOURS
from edgeclip.export.towers import TracedTower, tower_of
from edgeclip.models.source import Source
from tests.export.sources import EOS, LENGTH, PAD, PREPROCESSING, SHAPES, clip_source, nano_source

EVERY_SHAPE = (*SHAPES, "nano")
KINDS = ("image", "text")
# Noise is 3e-7 here; tanh for exact GELU moves 1e-5, QuickGELU 1e-3, an epsilon of 1e-6 for 1e-5 4e-6.
TOLERANCE = 1e-6
PIXELS = pixels_of(made_up_pictures(8), PREPROCESSING)


def make_ids(n: int, length: int = LENGTH) -> NDArray[np.int32]:
    """(n, length) ids of different texts: an end mark in each, padding behind it."""
    ids = np.random.default_rng(3).integers(1, 256, (n, length)).astype(np.int32)
    for i, row in enumerate(ids):
        end = max(length - 1 - 2 * i, 0)
        row[end], row[end + 1 :] = EOS, PAD
    return ids


@cache
def captured(shape: str, kind: Any) -> tuple[Source, TracedTower, ir.Model]:
    """A made-up source, one of its towers, and its graph before a flavour is written: this is what takes the time."""
    source = nano_source() if shape == "nano" else clip_source(shape)
    tower = tower_of(source, kind)
    return source, tower, capture(tower)


@cache
def traced(shape: str, kind: Any) -> tuple[Source, dict[str, onnx.ModelProto]]:
    """A made-up source, and flavour -> graph of one of its towers."""
    source, tower, graph = captured(shape, kind)
    return source, _written(tower, graph)


def graphs(source: Source, kind: Any, *flavours: str) -> dict[str, onnx.ModelProto]:
    """Flavour -> graph; without names, every flavour."""
    tower = tower_of(source, kind, flavours or tuple(FLAVOURS))
    return _written(tower, capture(tower))


def _written(tower: TracedTower, graph: ir.Model) -> dict[str, onnx.ModelProto]:
    return {f.attention: ir.to_proto(write(graph, tower, f)[0]) for f in tower.flavours}


def opened(graph: onnx.ModelProto) -> Any:
    return onnxruntime.InferenceSession(graph.SerializeToString())


def wanted(source: Source, kind: str, inputs: NDArray[Any]) -> NDArray[Any]:
    encode = source.model.encode_image if kind == "image" else source.model.encode_text
    with torch.no_grad():
        rows: NDArray[Any] = F.normalize(encode(torch.from_numpy(inputs)), dim=-1).numpy()
    return rows


def assert_rows(session: Any, inputs: NDArray[Any], want: NDArray[Any], what: str = "") -> None:
    (got,) = session.run(None, {session.get_inputs()[0].name: inputs})
    np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE, err_msg=what)
