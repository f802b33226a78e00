"""A bundle of two towers with a few linear layers each, written by hand: no tracing, which would take most of the time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgeclip.bundle import Axes, Bundle, Fidelity, Licence, Manifest, Port, Variant, seal
from edgeclip.export.golden import TEXTS, golden_file, golden_pixels
from edgeclip.export.samples import encode
from tests.export.sources import PREPROCESSING, SIDE, TEXT, VOCABULARY, tokenizer

WIDTH, HIDDEN, DIM, BLOCKS = 48, 96, 24, 2
PIXELS = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["N", 3, SIDE, SIDE])
EXACT = Fidelity(16, 1e-7, 1, 1, 1, 1e-7, 1)


def make_small(folder: Path) -> Bundle:
    """Write and open it: image-fp32 and text-fp32, with golden inputs."""
    (folder / "graphs").mkdir(parents=True)
    (folder / "tokenizer.json").write_text(tokenizer().to_str())
    variants, golden = [], []
    pictures, pixels = golden_pixels(PREPROCESSING)
    ids = encode(TEXTS, folder / "tokenizer.json", TEXT).input_ids
    towers: list[tuple[Any, Any, Port]] = [
        ("image", pixels, Port("pixels", "float32", ("N", 3, SIDE, SIDE))),
        ("text", ids, Port("input_ids", "int32", ("N", "L"))),
    ]
    for tower, inputs, port in towers:
        raw = _image_graph() if tower == "image" else text_graph()
        (folder / f"graphs/{tower}-fp32.onnx").write_bytes(raw)
        golden.append(onnxruntime.InferenceSession(raw).run(None, {port.name: inputs})[0])
        files, outputs = (f"graphs/{tower}-fp32.onnx",), (Port("embeddings", "float32", ("N", DIM)),)
        variants.append(Variant(f"{tower}-fp32", tower, Axes(), files, (port,), outputs, fidelity=EXACT))
    (folder / "golden").write_bytes(golden_file(pictures, pixels, golden[0], ids, golden[1]))
    manifest = Manifest(
        name="small", model_id="2" * 64, family="toy", embedding_dim=DIM, activation="softmax", logit_scale=20.0,
        logit_bias=0.0, variants=tuple(variants), preprocessing=PREPROCESSING, text=TEXT, licence=Licence("MIT"), files={},
        golden="golden", templates=("a photo of {}", "{}"),
    )  # fmt: skip
    return seal(folder, manifest)


class Graph:
    """Nodes and weights, added one after the other; `x` is the value that the next node reads."""

    def __init__(self, seed: int, x: str) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, NDArray[Any]] = {}
        self.chance, self.x = np.random.default_rng(seed), x

    def weight(self, name: str, *shape: int, spread: float | None = None) -> str:
        scale = shape[0] ** -0.5 if spread is None else spread
        self.weights[name] = self.chance.normal(scale=scale, size=shape).astype(np.float32)
        return name

    def constant(self, name: str, value: Any, dtype: Any = np.int64) -> str:
        self.weights[name] = np.array(value, dtype)
        return name

    def then(self, op: str, *others: str, x: str | None = None, **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, [x or self.x, *others], [name], **attributes))
        self.x = name
        return name

    def name(self, value: str, name: str) -> None:
        """Give a value of the graph the name of an output."""
        (maker,) = (node for node in self.nodes if value in node.output)
        maker.output[0] = name

    def linear(self, name: str, rows: int, columns: int) -> None:
        self.then("MatMul", self.weight(f"{name}.weight", rows, columns))
        self.then("Add", self.weight(f"{name}.bias", columns, spread=0.1))

    def finish(self, source: onnx.ValueInfoProto) -> bytes:
        self.blocks()
        self.then("ReduceMean", self.constant("tokens", [1]), keepdims=0)
        self.then("Sub", self.weight("mean", WIDTH, spread=0.3))
        self.then("MatMul", self.weight("projection.weight", WIDTH, DIM))
        self.then("LpNormalization", axis=1, p=2)
        self.nodes[-1].output[0] = "embeddings"
        return self.written(source, {"embeddings": ("N", DIM)})

    def patches(self) -> None:
        patches = self.weight("patches.weight", WIDTH, 3, 8, 8, spread=0.15)
        self.then("Conv", patches, kernel_shape=[8, 8], strides=[8, 8])
        self.then("Reshape", self.constant("flat", [0, WIDTH, -1]))
        self.then("Transpose", perm=[0, 2, 1])

    def blocks(self) -> None:
        for i in range(BLOCKS):
            before = self.x
            ones = self.constant(f"blocks.{i}.norm.weight", np.ones(WIDTH), np.float32)
            self.then("LayerNormalization", ones, self.weight(f"blocks.{i}.norm.bias", WIDTH, spread=0.1))
            self.linear(f"blocks.{i}.mlp.fc1", WIDTH, HIDDEN)
            self.then("Relu")
            self.linear(f"blocks.{i}.mlp.fc2", HIDDEN, WIDTH)
            self.then("Add", before)

    def written(self, source: onnx.ValueInfoProto, outputs: Mapping[str, tuple[str | int, ...]]) -> bytes:
        targets = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()
        ]
        weights = [numpy_helper.from_array(value, name) for name, value in self.weights.items()]
        graph = helper.make_graph(self.nodes, "small", [source], targets, weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
        onnx.checker.check_model(model, full_check=True)
        return bytes(model.SerializeToString())


def _image_graph() -> bytes:
    graph = Graph(3, "pixels")
    graph.patches()
    return graph.finish(PIXELS)


def text_graph() -> bytes:
    graph = Graph(4, "input_ids")
    table = graph.weight("embedding.weight", VOCABULARY, WIDTH, spread=1.0)
    graph.weights[table][TEXT.pad_id] = 0
    graph.nodes.append(helper.make_node("Gather", [table, "input_ids"], ["words"]))
    graph.x = "words"
    return graph.finish(helper.make_tensor_value_info("input_ids", TensorProto.INT32, ["N", "L"]))
