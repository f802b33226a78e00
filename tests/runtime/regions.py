"""A planted region encoder: a picture's tokens are the mean colours of 8 x 8 cells, a box is the mean of the cells whose centres it holds.

A point takes the cell that it stands in. A text is found in the cell that is most like it. Texts are those of the planted detector.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from onnx import helper

from edgeclip.bundle import Axes, Bundle, Licence, Manifest, Port, Variant, seal
from tests.runtime.detectors import (
    CELL,
    CROP,
    DIM,
    GRID,
    MODEL_ID,
    PAD,
    REGIONS,
    SIDE,
    TEXT,
    _model,
    _text,
    _tower,
    tokenizer,
)

TOKENS = Port("tokens", "float32", ("N", REGIONS, DIM))


def make_regions(folder: Path, *, grounding: bool = True, **changes: Any) -> Bundle:
    """Write and open it. Pictures are padded for it, and cropped for everything else. `changes` replace fields of its manifest."""
    (folder / "graphs").mkdir(parents=True)
    (folder / "tokenizer.json").write_text(tokenizer().to_str())
    pixels, boxes = Port("pixels", "float32", ("N", 3, SIDE, SIDE)), Port("boxes", "float32", ("N", "R", 4))
    prompts = Port("prompt_embeddings", "float32", ("N", "P", DIM))
    towers = {
        "tokens": ((pixels,), (TOKENS,), _tokens()),
        "regions": ((TOKENS, boxes), (Port("embeddings", "float32", ("N", "R", DIM)),), _regions()),
        "grounding": (
            (TOKENS, prompts),
            (Port("embeddings", "float32", ("N", "P", DIM)), Port("boxes", "float32", ("N", "P", 4))),
            _grounding(),
        ),
    }
    variants = [_tower(folder, "text", Port("input_ids", "int32", ("N", "L")), _text())]
    for kind, (inputs, outputs, nodes) in towers.items():
        if kind == "grounding" and not grounding:
            continue
        file = f"graphs/{kind}-fp32.onnx"
        (folder / file).write_bytes(_model(nodes[0], (inputs, outputs), nodes[1]))
        variants.append(Variant(f"{kind}-fp32", kind, Axes(), (file,), inputs, outputs))  # type: ignore[arg-type]
    manifest = Manifest(
        name="planted", model_id=MODEL_ID, family="planted", embedding_dim=DIM, activation="softmax", logit_scale=10.0,
        logit_bias=0.0, variants=tuple(variants), preprocessing=CROP, text=TEXT, licence=Licence("MIT"), files={},
        region_preprocessing=replace(PAD, pad_anchor="center", pad_color=(0, 0, 0)),
    )  # fmt: skip
    return seal(folder, replace(manifest, **changes))


def _places() -> tuple[Any, Any]:
    row, column = np.divmod(np.arange(REGIONS), GRID)
    return (column + 0.5) / GRID, (row + 0.5) / GRID  # x, y


def _tokens() -> tuple[list[Any], dict[str, Any]]:
    constants = {
        "flat": np.array([0, 3, -1], np.int64),
        "pads": np.array([0, 0, 0, 0, 0, 1], np.int64),
        "faint": np.array(0.05, np.float32),
    }
    node = helper.make_node
    return [
        node("AveragePool", ["pixels"], ["cells"], kernel_shape=[CELL, CELL], strides=[CELL, CELL]),
        node("Reshape", ["cells", "flat"], ["channels"]),
        node("Transpose", ["channels"], ["colours"], perm=[0, 2, 1]),
        node("Pad", ["colours", "pads", "faint"], ["tokens"]),
    ], constants


def _regions() -> tuple[list[Any], dict[str, Any]]:
    x, y = _places()
    centres = np.stack([x, y], axis=-1)[None, None].astype(np.float32)  # (1, 1, 64, 2)
    constants = {
        "centres": centres,
        "low": np.array([0], np.int64), "middle": np.array([2], np.int64), "high": np.array([4], np.int64),
        "last": np.array([2], np.int64), "axis": np.array([2], np.int64), "pair": np.array([3], np.int64),
        "half": np.array(0.5, np.float32), "reach": np.array(0.49 / GRID, np.float32),
    }  # fmt: skip
    node = helper.make_node
    return [
        node("Slice", ["boxes", "low", "middle", "last"], ["first"]),
        node("Slice", ["boxes", "middle", "high", "last"], ["second"]),
        node("Add", ["first", "second"], ["sum"]),
        node("Mul", ["sum", "half"], ["mid"]),
        node("Sub", ["second", "first"], ["size"]),
        node("Mul", ["size", "half"], ["extent"]),
        node("Max", ["extent", "reach"], ["radius"]),  # a point's is its cell
        node("Unsqueeze", ["mid", "axis"], ["mids"]),
        node("Unsqueeze", ["radius", "axis"], ["radii"]),
        node("Sub", ["centres", "mids"], ["away"]),
        node("Abs", ["away"], ["far"]),
        node("LessOrEqual", ["far", "radii"], ["inside"]),
        node("Cast", ["inside"], ["each"], to=1),
        node("ReduceMin", ["each", "pair"], ["weights"], keepdims=0),
        node("MatMul", ["weights", "tokens"], ["rows"]),
        node("LpNormalization", ["rows"], ["embeddings"], axis=2, p=2),
    ], constants


def _grounding() -> tuple[list[Any], dict[str, Any]]:
    x, y = _places()
    half = 0.5 / GRID
    constants = {"cells": np.stack([x - half, y - half, x + half, y + half], axis=-1).astype(np.float32)}
    node = helper.make_node
    return [
        node("LpNormalization", ["tokens"], ["unit"], axis=2, p=2),
        node("Transpose", ["prompt_embeddings"], ["across"], perm=[0, 2, 1]),
        node("MatMul", ["unit", "across"], ["cosines"]),
        node("ArgMax", ["cosines"], ["best"], axis=1, keepdims=0),
        node("Gather", ["cells", "best"], ["boxes"], axis=0),
        node("LpNormalization", ["prompt_embeddings"], ["embeddings"], axis=2, p=2),
    ], constants
