"""A small detector written by hand, with the heads and the text tower that a bundle of one has: no tracing, as in small.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from edgeclip.bundle import Axes, Bundle, Detection, Licence, Manifest, Port, Variant, seal
from edgeclip.export.bake import bake
from edgeclip.export.golden import golden_file, golden_pixels
from edgeclip.runtime.images import bytes_of
from edgeclip.runtime.labels import LabelPack
from edgeclip.runtime.replay import pixels_from
from tests.export.compress.small import DIM, EXACT, HIDDEN, PIXELS, WIDTH, Graph, text_graph
from tests.export.sources import PREPROCESSING, SIDE, TEXT, tokenizer

REGIONS = 16
OUTPUTS = {
    "boxes": (4,),
    "region_embeddings": (DIM,),
    "logit_scales": (),
    "logit_biases": (),
    "objectness": (),
}


def make_scenes(folder: Path) -> Bundle:
    """Write and open it: detector-fp32 with a head of prompts and one of two labels, and text-fp32."""
    (folder / "first" / "graphs").mkdir(parents=True)
    first = folder / "first"
    (first / "tokenizer.json").write_text(tokenizer().to_str())
    raw = {"detector": _detector_graph(), "text": text_graph()}
    for tower, content in raw.items():
        (first / f"graphs/{tower}-fp32.onnx").write_bytes(content)
    pictures, pixels = golden_pixels(PREPROCESSING)
    levels = bytes_of(pixels, PREPROCESSING)
    session = onnxruntime.InferenceSession(raw["detector"])
    said = dict(zip(OUTPUTS, session.run(None, {"pixels": pixels_from(levels, PREPROCESSING)}), strict=True))
    kept = {"pixels": levels, "regions": np.arange(REGIONS), **said}
    golden = {f"detector/{name}": array for name, array in kept.items()}
    (first / "golden").write_bytes(golden_file(pictures, pixels, None, None, None, others=golden))
    ports = tuple(Port(name, "float32", ("N", REGIONS, *shape)) for name, shape in OUTPUTS.items())
    port, ids = Port("pixels", "float32", ("N", 3, SIDE, SIDE)), Port("input_ids", "int32", ("N", "L"))
    rows = (Port("embeddings", "float32", ("N", DIM)),)
    variants = (
        Variant(
            "detector-fp32",
            "detector",
            Axes(),
            ("graphs/detector-fp32.onnx",),
            (port,),
            ports,
            fidelity=EXACT,
        ),
        Variant("text-fp32", "text", Axes(), ("graphs/text-fp32.onnx",), (ids,), rows, fidelity=EXACT),
    )
    manifest = Manifest(
        name="scenes", model_id="3" * 64, family="toy", embedding_dim=DIM, activation="sigmoid", logit_scale=1.0,
        logit_bias=0.0, variants=variants, preprocessing=PREPROCESSING, text=TEXT, licence=Licence("MIT"), files={},
        golden="golden", templates=("{}",), detection=Detection(threshold=0.3, objectness=True),
    )  # fmt: skip
    made = seal(first, manifest)
    rows = said["region_embeddings"].reshape(-1, DIM)
    pack = LabelPack(("a cat", "a dog"), ("{}",), rows[[1, 20]], made.manifest.model_id)
    return bake(made, folder / "scenes", pack, threads=1).bundle


def _detector_graph() -> bytes:
    """A head of two layers for the boxes, one of one for each other output; a spread of values as a trained detector has."""
    graph = Graph(5, "pixels")
    graph.patches()
    graph.blocks()
    graph.then("LayerNormalization", graph.constant("norm.weight", np.ones(WIDTH), np.float32))
    x = graph.x
    graph.linear("box_head.fc1", WIDTH, HIDDEN)
    graph.then("Relu")
    graph.linear("box_head.fc2", HIDDEN, 4)
    graph.then("Add", graph.constant("box_bias", _grid(), np.float32))
    found = graph.then("Sigmoid")
    centre, half = (
        graph.then(
            "Slice", *(graph.constant(f"{name}.{i}", [k]) for i, k in enumerate((at, at + 2, 2))), x=found
        )
        for name, at in (("centre", 0), ("size", 2))
    )
    half = graph.then("Mul", graph.constant("half", 0.5, np.float32), x=half)
    low, high = graph.then("Sub", half, x=centre), graph.then("Add", half, x=centre)
    graph.name(graph.then("Concat", high, x=low, axis=2), "boxes")
    graph.x = x
    graph.linear("embedding", WIDTH, DIM)
    graph.name(graph.then("LpNormalization", axis=2, p=2), "region_embeddings")
    for name, spread, centre in (
        ("logit_scales", 0.1, 6.0),
        ("logit_biases", 0.1, -1.0),
        ("objectness", 0.2, 1.0),
    ):
        graph.then("MatMul", graph.weight(f"{name}.weight", WIDTH, 1, spread=spread), x=x)
        graph.then("Add", graph.constant(f"{name}.bias", [centre], np.float32))
        graph.then("Squeeze", graph.constant(f"{name}.axis", [2]))
        graph.name(graph.then("Sigmoid") if name == "objectness" else graph.x, name)
    return graph.written(PIXELS, {name: ("N", REGIONS, *shape) for name, shape in OUTPUTS.items()})


def _grid() -> Any:
    """(Q, 4) logits of (cx, cy, w, h): each region at its patch, a quarter of the picture in size."""
    y, x = np.mgrid[0:4, 0:4].reshape(2, -1) / 4 + 0.125
    where = np.stack([x, y, np.full(16, 0.25), np.full(16, 0.25)], axis=1)
    return np.log(where / (1 - where))
