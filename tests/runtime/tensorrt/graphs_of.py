"""Small graphs that TensorRT builds, or refuses, in a tenth of a second."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from edgeclip.bundle import Axes, Port, Scores, Variant
from edgeclip.export.heads import add_prompts

WIDTH, TOKENS = 128, 10


def attention(path: Path, dtype: int = TensorProto.FLOAT16, heads: int = 2) -> Variant:
    """One Attention operator over (N, TOKENS, WIDTH), times a matrix."""
    kind = helper.tensor_dtype_to_np_dtype(dtype)
    weight = np.random.default_rng(1).normal(size=(WIDTH, 3 * WIDTH)).astype(kind)
    sizes = np.array([WIDTH] * 3, np.int64)
    nodes = [
        helper.make_node("Cast", ["pixels"], ["typed"], to=dtype),
        helper.make_node("MatMul", ["typed", "weight"], ["qkv"], name="qkv"),
        helper.make_node("Split", ["qkv", "sizes"], ["q", "k", "v"], axis=2),
        helper.make_node("Attention", ["q", "k", "v"], ["seen"], name="attend", q_num_heads=heads, kv_num_heads=heads),
        helper.make_node("Cast", ["seen"], ["embeddings"], to=TensorProto.FLOAT),
    ]  # fmt: skip
    constants = {"weight": weight, "sizes": sizes}
    return write(path, nodes, ("N", TOKENS, WIDTH), ("N", TOKENS, WIDTH), constants, opset=23)


def unsupported(path: Path) -> Variant:
    """A graph with an operator that TensorRT has not."""
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["pixels"], ["y", "s", "embeddings"], name="quantise_me")
    ]
    return write(path, nodes, ("N", 8), (), {}, output=TensorProto.UINT8)


def outside(path: Path) -> Variant:
    """A product whose weight lies in a file beside the graph."""
    weight = np.random.default_rng(1).normal(size=(64, 64)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["pixels", "weight"], ["embeddings"], name="product")]
    variant = write(path, nodes, ("N", 64), ("N", 64), {"weight": weight})
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return variant


def with_prompts(image: Path, path: Path, variant: Variant, dim: int) -> Variant:
    """An image tower with a head that takes prompts behind it."""
    model = ir.load(image)
    inputs, outputs = add_prompts(model, dim, Scores(10.0, -1.0), None)
    ir.save(model, path)
    return Variant(
        "image-fp32-prompts", "image", Axes(head="prompts"), (path.name,), (*variant.inputs, *inputs), outputs
    )


def write(
    path: Path,
    nodes: list[onnx.NodeProto],
    taken: tuple[int | str, ...],
    given: tuple[int | str, ...],
    constants: dict[str, np.ndarray],  # type: ignore[type-arg]
    opset: int = 20,
    output: int = TensorProto.FLOAT,
) -> Variant:
    """From `pixels` to `embeddings`."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, taken)],
        [helper.make_tensor_value_info("embeddings", output, given)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10), path)
    return Variant("image-made", "image", Axes(), (path.name,), (Port("pixels", "float32", taken),), ())
