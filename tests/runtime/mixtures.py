"""The toy bundle with routing graphs of its own: a few ONNX nodes as routers, and the same in plain Python, token by token."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgeclip.bundle import Axes, Bundle, Port, Variant, seal
from edgeclip.bundle.manifest import Experts
from tests.runtime.toy import SIDE, TEXT, WORDS, make_bundle

PATCH = 8  # pixels a side: 4 x 4 of them, and a class token, their mean
BLOCKS, COUNTS, TOP_K = (1, 3, 4), (4, 2, 4), 2  # block 4 never takes expert 3
MOST = max(COUNTS)
IMAGE = Experts(BLOCKS, COUNTS, TOP_K)
TEXTS = Experts((0, 2), (3, 3), TOP_K)
_RANDOM = np.random.default_rng(11)
IMAGE_ROUTERS = (_RANDOM.normal(size=(len(BLOCKS), MOST, 3, PATCH, PATCH)) / 16).astype(np.float32)
TEXT_ROUTERS = _RANDOM.normal(size=(WORDS, 2, 3)).astype(np.float32)
NO = -1e9  # in place of the logit of an expert that is not there
ABSENT = np.zeros((len(BLOCKS), MOST), np.float32)
ABSENT[1, 2:] = NO
ABSENT[2, 3] = -50.0  # there, and never chosen


def make_mixtures(folder: Path, *, image: bool = True, text: bool = False, routing: bool = True) -> Bundle:
    """The toy bundle, saying that its towers (`image`, `text`) have mixtures; with `routing` also graphs that tell who took what."""
    plain = make_bundle(folder)
    given = {"image": IMAGE} if image else {}
    given |= {"text": TEXTS} if text else {}
    found = [
        replace(v, experts=given[v.tower], axes=replace(v.axes, moe="dense")) if v.tower in given else v
        for v in plain.manifest.variants
    ]
    for tower, experts in given.items() if routing else ():
        own = next(v for v in found if v.tower == tower)
        name = Axes(moe="dense", head="routing").name(tower)
        length: int | str = (SIDE // PATCH) ** 2 + 1 if tower == "image" else "L"
        port = Port("shares", "float32", ("N", len(experts.blocks), length, max(experts.counts)))
        graph = f"graphs/{name}.onnx"
        (folder / graph).write_bytes(_image_graph(port) if tower == "image" else _text_graph(port))
        axes = Axes(moe="dense", head="routing")
        found.append(Variant(name, own.tower, axes, (graph,), own.inputs, (port,), experts=experts))
    return seal(folder, replace(plain.manifest, variants=tuple(found)))


def image_shares(pixels: NDArray[np.float32]) -> list[list[dict[int, float]]]:
    """(3, H, W) -> by mixture and token the experts that it takes with their shares."""
    count = SIDE // PATCH
    patches = [
        pixels[:, y * PATCH : (y + 1) * PATCH, x * PATCH : (x + 1) * PATCH]
        for y in range(count)
        for x in range(count)
    ]
    found = []
    for i, router in enumerate(IMAGE_ROUTERS):
        rows = [[float((patch * one).sum()) for one in router] for patch in patches]
        rows.insert(0, [sum(row[e] for row in rows) / len(rows) for e in range(MOST)])
        found.append([_taken([v + float(a) for v, a in zip(row, ABSENT[i], strict=True)]) for row in rows])
    return found


def text_shares(ids: list[int]) -> list[list[dict[int, float]]]:
    """The same of a text's ids, without padding."""
    return [[_taken([float(v) for v in TEXT_ROUTERS[one, i]]) for one in ids] for i in range(2)]


def _taken(logits: list[float]) -> dict[int, float]:
    order = sorted(range(len(logits)), key=lambda e: -logits[e])[:TOP_K]
    exps = {e: math.exp(logits[e] - logits[order[0]]) for e in order}
    return {e: value / sum(exps.values()) for e, value in exps.items()}


def _image_graph(port: Port) -> bytes:
    blocks, tokens, experts = port.shape[1:]
    constants: dict[str, NDArray[Any]] = {
        "routers": IMAGE_ROUTERS.reshape(-1, 3, PATCH, PATCH),
        "shape": np.array([0, blocks, experts, tokens], np.int64),
        "flat": np.array([0, blocks * MOST, -1], np.int64),
        "absent": ABSENT[:, None],
    }
    nodes = [
        helper.make_node("Conv", ["pixels", "routers"], ["maps"], strides=[PATCH, PATCH]),
        helper.make_node("Reshape", ["maps", "flat"], ["patches"]),
        helper.make_node("ReduceMean", ["patches"], ["class"], axes=[2]),
        helper.make_node("Concat", ["class", "patches"], ["tokens"], axis=2),
        helper.make_node("Reshape", ["tokens", "shape"], ["by_block"]),
        helper.make_node("Transpose", ["by_block"], ["every"], perm=[0, 1, 3, 2]),
        helper.make_node("Add", ["every", "absent"], ["logits"]),
        *_chosen("shares"),
    ]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["N", 3, SIDE, SIDE])
    return _model(nodes, pixels, port, constants)


def _text_graph(port: Port) -> bytes:
    constants: dict[str, NDArray[Any]] = {
        "table": TEXT_ROUTERS,
        "pad": np.array(TEXT.pad_id, np.int32),
        "sides": np.array([1, 3], np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Transpose", ["rows"], ["logits"], perm=[0, 2, 1, 3]),
        *_chosen("all_shares"),
        helper.make_node("Equal", ["input_ids", "pad"], ["padding"]),
        helper.make_node("Not", ["padding"], ["words"]),
        helper.make_node("Cast", ["words"], ["counted"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["counted", "sides"], ["column"]),
        helper.make_node("Mul", ["all_shares", "column"], ["shares"]),
    ]
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT32, ["N", "L"])
    return _model(nodes, ids, port, constants)


def _chosen(target: str) -> list[onnx.NodeProto]:
    """Softmax over the largest logits of the last axis."""
    return [
        helper.make_node("TopK", ["logits", "k"], ["best", "which"], axis=-1),
        helper.make_node("Softmax", ["best"], ["parts"], axis=-1),
        helper.make_node("Mul", ["logits", "zero"], ["empty"]),
        helper.make_node("ScatterElements", ["empty", "which", "parts"], [target], axis=-1),
    ]


def _model(
    nodes: list[onnx.NodeProto], source: onnx.ValueInfoProto, port: Port, constants: dict[str, NDArray[Any]]
) -> bytes:
    constants |= {"k": np.array([TOP_K], np.int64), "zero": np.array(0, np.float32)}
    target = helper.make_tensor_value_info("shares", TensorProto.FLOAT, port.shape)
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "routing", [source], [target], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())
