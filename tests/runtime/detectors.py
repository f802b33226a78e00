"""A planted detector: a grid of cells, each a region that is its cell's mean colour. What it must find is known by arithmetic.

The input is 64 x 64 pixels, 8 x 8 cells. A region's box stands on its cell's centre and has (0.5 + v) times the cell's side, v being
the cell's brightest channel (0-1): a cell of level 128 has a box of its own size, one of level 255 half as much again. Its
embedding is (r, g, b, 0.05) of unit length, its logit scale 20 plus its column, its bias -0.9 x scale; its objectness v. A text is the
sum of its words' colours: "a red cup" is red. So a red cell has the cosine 0.999 with "red", 0.71 with "yellow", 0 with "blue".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers

from edgeclip.bundle import (
    Axes,
    Bundle,
    Detection,
    Licence,
    Manifest,
    Port,
    Preprocessing,
    TextSettings,
    Variant,
    seal,
)
from edgeclip.runtime.labels import LabelPack

SIDE, GRID, DIM = 64, 8, 4
CELL, REGIONS = SIDE // GRID, GRID * GRID
SQUASH = Preprocessing((SIDE, SIDE), "squash", "bilinear", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
PAD = replace(SQUASH, mode="pad", pad_anchor="top_left", pad_color=(128, 128, 128))  # as OWLv2 does it
CROP = replace(SQUASH, mode="shortest_crop")
COLOURS = {
    "red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1), "yellow": (1, 1, 0), "cyan": (0, 1, 1), "white": (1, 1, 1),
}  # fmt: skip
WORDS = ["<pad>", "<unk>", "a", "the", "cup", "face", *COLOURS]
TEXT = TextSettings(
    context_length=8, pad_id=0, eos_id=None, dynamic_length=True, clean="lower", vocab_size=len(WORDS)
)
# what a word adds; a text without a colour is the opposite of what every region holds a little of
TABLE = np.array([(*COLOURS[w], 0) if w in COLOURS else (0, 0, 0, -1e-3) for w in WORDS], np.float32)
TABLE[0] = 0
MODEL_ID = "d" * 64


def make_detector(
    folder: Path,
    *,
    heads: Sequence[str] = ("embeddings", "prompts"),
    labels: Sequence[str] = ("red", "green"),
    thresholds: tuple[float, ...] | None = None,
    objectness: bool = False,
    multiply: bool = False,
    text: bool = True,
    image: bool = False,
    places: int | None = None,
    preprocessing: Preprocessing = SQUASH,
    detection: Detection | None = None,
    **changes: Any,
) -> Bundle:
    """Write and open the planted detector.

    Args:
        heads: of the detector; "labels" bakes `labels`.
        labels: baked in where heads say so.
        thresholds: of the baked labels.
        objectness: the graphs give it.
        multiply: a score is sigmoid(logit) x objectness.
        text: also a text tower.
        image: also an image tower: a picture's embedding is its mean colour, at 32 x 32 pixels by shortest_crop.
        places: prompts that head "prompts" takes; None: any number.
        preprocessing: of the detector's pixels, which are normalised by mean 0 and std 1.
        detection: replaces the manifest's; None: the defaults with `multiply`.
        changes: fields of the manifest.
    """
    (folder / "graphs").mkdir(parents=True)
    (folder / "labels").mkdir()
    variants = []
    for head in heads:
        pack = pack_of(labels, thresholds) if head == "labels" else None
        ports = _ports(head, objectness, places, len(labels))
        name = f"detector-fp32{'' if head == 'embeddings' else '-' + head}"
        file = f"graphs/{name}.onnx"
        (folder / file).write_bytes(_detector(ports, head, pack))
        if pack is not None:
            pack.save(folder / "labels/baked.labels")
        baked = "" if pack is None else "labels/baked.labels"
        variants.append(Variant(name, "detector", Axes(head=head), (file,), *ports, labels=baked))  # type: ignore[arg-type]
    if image:
        variants.append(_tower(folder, "image", Port("pixels", "float32", ("N", 3, 32, 32)), _image()))
    if text:
        variants.append(_tower(folder, "text", Port("input_ids", "int32", ("N", "L")), _text()))
        (folder / "tokenizer.json").write_text(tokenizer().to_str())
    own = detection or Detection(objectness=multiply)
    manifest = Manifest(
        name="planted",
        model_id=MODEL_ID,
        family="planted",
        embedding_dim=DIM,
        activation="softmax",
        logit_scale=10.0,
        logit_bias=0.0,
        variants=tuple(variants),
        preprocessing=replace(CROP, size=(32, 32)) if image else preprocessing,
        text=TEXT if text else None,
        licence=Licence("MIT"),
        files={},
        detection=replace(own, preprocessing=preprocessing) if image else own,
    )
    return seal(folder, replace(manifest, **changes))


def scene(
    cells: dict[tuple[int, int], tuple[int, int, int]],
    width: int = SIDE,
    height: int = SIDE,
    cell: int = CELL,
) -> NDArray[np.uint8]:
    """(height, width, 3) black, with the cells at (row, column) filled with a colour, 0-255. `cell`: pixels of a cell's side."""
    found = np.zeros((height, width, 3), np.uint8)
    for (row, column), colour in cells.items():
        found[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell] = colour
    return found


def box_of(row: int, column: int, level: int, cell: float = CELL) -> NDArray[np.float64]:
    """(4,) xyxy of a filled cell's region in pixels, before it is cut at the picture's border. `level`: 0-255 of its brightest channel."""
    half = cell * (0.5 + level / 255) / 2
    x, y = (column + 0.5) * cell, (row + 0.5) * cell
    return np.array([x - half, y - half, x + half, y + half])


def score_of(colour: Sequence[int], column: int, text: str) -> float:
    """sigmoid(logit) of a filled cell in that column for a text."""
    row = np.array([*(np.array(colour) / 255), 0.05])
    cosine = row / np.linalg.norm(row) @ vector_of(text)
    scale = 20 + column
    return float(1 / (1 + np.exp(-(scale * cosine - 0.9 * scale))))


def vector_of(text: str) -> NDArray[np.float64]:
    """(D,) of unit length: what the text tower gives."""
    row = (
        TABLE[[WORDS.index(w) if w in WORDS else 1 for w in text.lower().split()]]
        .astype(np.float64)
        .sum(axis=0)
    )
    return np.asarray(row / np.linalg.norm(row))


def pack_of(labels: Sequence[str], thresholds: tuple[float, ...] | None = None) -> LabelPack:
    """The labels as a pack of this model."""
    vectors = np.stack([vector_of(label) for label in labels]).astype(np.float32)
    return LabelPack(tuple(labels), ("{}",), vectors, MODEL_ID, thresholds=thresholds)


def tokenizer() -> Tokenizer:
    """One id a word."""
    found = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    found.pre_tokenizer = pre_tokenizers.Whitespace()
    return found


Ports = tuple[tuple[Port, ...], tuple[Port, ...]]


def _ports(head: str, objectness: bool, places: int | None, labels: int) -> Ports:
    pixels, q = Port("pixels", "float32", ("N", 3, SIDE, SIDE)), REGIONS
    size: int | str = places or "P"
    beside = (
        Port("prompt_embeddings", "float32", ("B", size, DIM)),
        Port("prompt_mask", "bool", ("B", size)),
    )
    outputs = {
        "embeddings": (
            Port("region_embeddings", "float32", ("N", q, DIM)),
            Port("logit_scales", "float32", ("N", q)),
            Port("logit_biases", "float32", ("N", q)),
        ),
        "prompts": (Port("logits", "float32", ("N", q, size)),),
        "labels": (Port("logits", "float32", ("N", q, labels)),),
    }[head]
    boxes, more = Port("boxes", "float32", ("N", q, 4)), (Port("objectness", "float32", ("N", q)),)
    return (pixels, *(beside if head == "prompts" else ())), (boxes, *outputs, *(more if objectness else ()))


def _detector(ports: Ports, head: str, pack: LabelPack | None) -> bytes:
    y, x = np.divmod(np.arange(REGIONS), GRID)
    centres = np.stack([x, y, x, y], axis=-1)[None].astype(np.float32)
    scales = (20 + x).astype(np.float32)
    constants = {
        "flat": np.array([0, 3, -1], np.int64),
        "centres": (centres + 0.5) / GRID,
        "signs": np.array([-1, -1, 1, 1], np.float32) / (2 * GRID),
        "a half": np.array(0.5, np.float32),
        "zero": np.array(0, np.float32),
        "scales": scales,
        "biases": (-0.9 * scales).astype(np.float32),
        "pads": np.array([0, 0, 0, 0, 0, 1], np.int64),
        "faint": np.array(0.05, np.float32),
        "last": np.array([2], np.int64),
        "middle": np.array([1], np.int64),
        "masked": np.array(-1e4, np.float32),
        "baked": np.zeros((1, 1, DIM), np.float32) if pack is None else pack.vectors[None],
    }
    node = helper.make_node
    nodes = [
        node("AveragePool", ["pixels"], ["cells"], kernel_shape=[CELL, CELL], strides=[CELL, CELL]),
        node("Reshape", ["cells", "flat"], ["channels"]),
        node("Transpose", ["channels"], ["colours"], perm=[0, 2, 1]),
        node("ReduceMax", ["colours", "last"], ["bright"], keepdims=1),
        node("Add", ["bright", "a half"], ["sizes"]),
        node("Mul", ["sizes", "signs"], ["corners"]),
        node("Add", ["centres", "corners"], ["boxes"]),
        node("Squeeze", ["bright", "last"], ["objectness"]),
        node("Mul", ["objectness", "zero"], ["none"]),
        node("Add", ["none", "scales"], ["logit_scales"]),
        node("Add", ["none", "biases"], ["logit_biases"]),
        node("Pad", ["colours", "pads", "faint"], ["rows"]),
        node("LpNormalization", ["rows"], ["region_embeddings"], axis=2, p=2),
    ]
    if head != "embeddings":
        prompts = "prompt_embeddings" if head == "prompts" else "baked"
        nodes += [
            node("Transpose", [prompts], ["across"], perm=[0, 2, 1]),
            node("MatMul", ["region_embeddings", "across"], ["cosines"]),
            node("Unsqueeze", ["logit_scales", "last"], ["factor"]),
            node("Unsqueeze", ["logit_biases", "last"], ["summand"]),
            node("Mul", ["cosines", "factor"], ["scaled"]),
            node("Add", ["scaled", "summand"], ["open" if head == "prompts" else "logits"]),
        ]
    if head == "prompts":
        nodes += [
            node("Unsqueeze", ["prompt_mask", "middle"], ["mask"]),
            node("Where", ["mask", "open", "masked"], ["logits"]),
        ]
    return _model(nodes, ports, constants)


def _tower(
    folder: Path, kind: str, source: Port, nodes: tuple[list[onnx.NodeProto], dict[str, Any]]
) -> Variant:
    ports: Ports = ((source,), (Port("embeddings", "float32", ("N", DIM)),))
    file = f"graphs/{kind}-fp32.onnx"
    (folder / file).write_bytes(_model(nodes[0], ports, nodes[1]))
    return Variant(f"{kind}-fp32", kind, Axes(), (file,), *ports)  # type: ignore[arg-type]


def _image() -> tuple[list[onnx.NodeProto], dict[str, Any]]:
    constants = {"sides": np.array([2, 3], np.int64), "pads": np.array([0, 0, 0, 1], np.int64)}
    nodes = [
        helper.make_node("ReduceMean", ["pixels", "sides"], ["colour"], keepdims=0),
        helper.make_node("Pad", ["colour", "pads", "faint"], ["rows"]),
        helper.make_node("LpNormalization", ["rows"], ["embeddings"], axis=1, p=2),
    ]
    return nodes, {**constants, "faint": np.array(0.05, np.float32)}


def _text() -> tuple[list[onnx.NodeProto], dict[str, Any]]:
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["words"]),
        helper.make_node("ReduceSum", ["words", "one"], ["rows"], keepdims=0),
        helper.make_node("LpNormalization", ["rows"], ["embeddings"], axis=1, p=2),
    ]
    return nodes, {"table": TABLE, "one": np.array([1], np.int64)}


def _model(nodes: list[onnx.NodeProto], ports: Ports, constants: dict[str, NDArray[Any]]) -> bytes:
    kinds = {"float32": TensorProto.FLOAT, "int32": TensorProto.INT32, "bool": TensorProto.BOOL}
    inputs, outputs = (
        [helper.make_tensor_value_info(p.name, kinds[p.dtype], list(p.shape)) for p in side] for side in ports
    )
    used = {name for one in nodes for name in one.input}
    weights = [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items() if k in used]
    graph = helper.make_graph(nodes, "planted", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())
