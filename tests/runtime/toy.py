"""A toy bundle whose towers are a few ONNX nodes, with the same arithmetic in numpy: fast, and every value can be checked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from edgeclip.bundle import Axes, Bundle, Licence, Manifest, Port, Preprocessing, TextSettings, Variant, seal

SIDE, DIM, WORDS = 32, 8, 64
PREPROCESSING = Preprocessing((SIDE, SIDE), "shortest_crop", "bicubic", (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
TEXT = TextSettings(
    context_length=12, pad_id=0, eos_id=2, dynamic_length=True, clean="lower", vocab_size=WORDS
)
VOCABULARY = {
    name: i
    for i, name in enumerate(["<pad>", "<s>", "</s>", "<unk>", "a", "cat", "dog", "bicycle", "photo", "of"])
}
WEIGHTS = np.random.default_rng(7)
IMAGE_WEIGHT = WEIGHTS.normal(size=(3 * SIDE * SIDE, DIM)).astype(np.float32)
TEXT_WEIGHT = WEIGHTS.normal(size=(WORDS, DIM)).astype(np.float32)


def image_reference(pixels: NDArray[np.float32]) -> NDArray[np.float64]:
    """(N, 3, H, W) -> (N, D) unit rows, in float64."""
    rows = pixels.reshape(len(pixels), -1).astype(np.float64) @ IMAGE_WEIGHT
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def text_reference(ids: NDArray[np.int32]) -> NDArray[np.float64]:
    """(N, L) -> (N, D) unit rows: the sum over all ids but the padding."""
    rows = (TEXT_WEIGHT.astype(np.float64)[ids] * (ids != TEXT.pad_id)[:, :, None]).sum(axis=1)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def make_bundle(folder: Path, *, text: bool = True, image: bool = True, **changes: Any) -> Bundle:
    """Write and open the toy bundle. `changes` replace fields of its manifest."""
    (folder / "graphs").mkdir(parents=True)
    variants = []
    if image:
        variants.append(_variant("image", "pixels", "float32", ("N", 3, SIDE, SIDE)))
        (folder / variants[-1].files[0]).write_bytes(_image_graph())
    if text:
        variants.append(_variant("text", "input_ids", "int32", ("N", "L")))
        (folder / variants[-1].files[0]).write_bytes(_text_graph())
        (folder / "tokenizer.json").write_text(tokenizer().to_str())
    manifest = Manifest(
        name="toy",
        model_id="1" * 64,
        family="toy",
        embedding_dim=DIM,
        activation="softmax",
        logit_scale=10.0,
        logit_bias=0.0,
        variants=tuple(variants),
        preprocessing=PREPROCESSING if image else None,
        text=TEXT if text else None,
        licence=Licence("MIT"),
        files={},
        templates=("a photo of a {}",),
    )
    return seal(folder, replace(manifest, **changes))


def tokenizer() -> Tokenizer:
    """Words between a start and an end mark."""
    found = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    found.pre_tokenizer = pre_tokenizers.Whitespace()
    found.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return found


def picture(seed: int, width: int = 48, height: int = 40) -> NDArray[np.uint8]:
    """(H, W, 3) uint8: smooth colours with an edge, different for each seed."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    waves = [np.sin((x * (c + 1) + y * (seed % 5 + 1)) / 9 + seed) for c in range(3)]
    found = 127 + 90 * np.stack(waves, axis=-1)
    found[: height // 2, width // 3 :] += 30
    return np.clip(found, 0, 255).astype(np.uint8)


def _variant(tower: str, name: str, dtype: str, shape: tuple[int | str, ...]) -> Variant:
    return Variant(
        id=f"{tower}-fp32",
        tower=tower,  # type: ignore[arg-type]
        axes=Axes(),
        files=(f"graphs/{tower}-fp32.onnx",),
        inputs=(Port(name, dtype, shape),),  # type: ignore[arg-type]
        outputs=(Port("embeddings", "float32", ("N", DIM)),),
    )


def _image_graph() -> bytes:
    nodes = [
        helper.make_node("Flatten", ["pixels"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "weight"], ["rows"]),
        helper.make_node("LpNormalization", ["rows"], ["embeddings"], axis=1, p=2),
    ]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["N", 3, SIDE, SIDE])
    return _model(nodes, pixels, {"weight": IMAGE_WEIGHT})


def _text_graph() -> bytes:
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["words"]),
        helper.make_node("Equal", ["input_ids", "pad"], ["padding"]),
        helper.make_node("Not", ["padding"], ["mask"]),
        helper.make_node("Cast", ["mask"], ["weights"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["weights", "last"], ["column"]),
        helper.make_node("Mul", ["words", "column"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "one"], ["rows"], keepdims=0),
        helper.make_node("LpNormalization", ["rows"], ["embeddings"], axis=1, p=2),
    ]
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT32, ["N", "L"])
    constants = {
        "table": TEXT_WEIGHT,
        "pad": np.array(TEXT.pad_id, np.int32),
        "last": np.array([2], np.int64),
        "one": np.array([1], np.int64),
    }
    return _model(nodes, ids, constants)


def _model(
    nodes: list[onnx.NodeProto], source: onnx.ValueInfoProto, constants: dict[str, NDArray[Any]]
) -> bytes:
    target = helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["N", DIM])
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "toy", [source], [target], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())
