"""The rewrites of a graph one by one, and how its weights lie on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray

from edgeclip.errors import InputError
from edgeclip.export import weights
from edgeclip.export.passes import copy_batch_sizes, remove_unused, share_initializers, store_fp16, tidy_names
from edgeclip.export.targets import TARGETS, flavours_for
from edgeclip.export.weights import ALIGNMENT, Kept, save_graphs


def parsed(text: str, **initializers: NDArray[np.float32]) -> ir.Model:
    """A model from ONNX's text format, with weights laid in by name."""
    model = ir.from_proto(onnx.parser.parse_model('<ir_version: 10, opset_import: ["": 20]>' + text))
    for name, array in initializers.items():
        tensor = ir.tensor(array, name=name)
        value = ir.Value(
            name=name, const_value=tensor, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype)
        )
        model.graph.register_initializer(value)
        for node in model.graph:
            for i, used in enumerate(node.inputs):
                if used is not None and used.name == name:
                    node.replace_input_with(i, value)
    return model


MATMUL = "agraph (float[1, n] x) => (float[1, m] y) { y = MatMul(x, w) }"


def run(model: ir.Model, **inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    result: NDArray[np.float32] = session.run(None, inputs)[0]
    return result


RESHAPE = """g (float[N,L,6] x) => (float[N,L,2,3] y) {
  n = Shape <start = 0, end = 1> (x)
  l = Shape <start = 1, end = 2> (x)
  rest = Constant <value_ints = [2, 3]> ()
  target = Concat <axis = 0> (n, l, rest)
  y = Reshape <allowzero = 1> (x, target)
}"""


def test_reshape_targets_become_constants() -> None:
    model = parsed(RESHAPE)
    x = np.arange(60, dtype=np.float32).reshape(2, 5, 6)
    before = run(model, x=x)
    report = copy_batch_sizes(model)
    assert (report.changed, report.near_misses) == (1, ())
    assert remove_unused(model).changed == 4
    assert [node.op_type for node in model.graph] == ["Reshape"]
    np.testing.assert_array_equal(run(model, x=x), before)
    assert run(model, x=x[:1, :3]).shape == (1, 3, 2, 3)


def test_a_reshape_with_two_open_sizes_is_left_and_named() -> None:
    model = parsed("""g (float[N,L,6] x, int64[3] target) => (float[M,K,6] y) {
      y = Reshape (x, target)
    }""")
    model.graph[0].name = "Reshape_7"
    report = copy_batch_sizes(model)
    assert report.changed == 0
    assert report.near_misses == ("Reshape_7: [N,L,6] -> [M,K,6] leaves two sizes open",)


def test_fp16_storage_keeps_the_function_of_the_rounded_weights() -> None:
    w = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
    model = parsed("g (float[N,16] x) => (float[N,8] y) { y = MatMul (x, w) }", w=w)
    report = store_fp16(model)
    assert report.changed == 1
    assert {v.const_value.dtype for v in model.graph.initializers.values()} == {ir.DataType.FLOAT16}  # type: ignore[union-attr]
    x = np.eye(16, dtype=np.float32)
    np.testing.assert_array_equal(run(model, x=x), w.astype(np.float16).astype(np.float32))


def test_weights_beyond_fp16_are_left_and_named() -> None:
    big = np.full((16, 8), 7e4, np.float32)
    model = parsed("g (float[N,16] x) => (float[N,8] y) { y = MatMul (x, big) }", big=big)
    report = store_fp16(model)
    assert (report.changed, report.near_misses) == (0, ("big: holds values beyond fp16's 65504",))
    assert run(model, x=np.eye(16, dtype=np.float32))[0, 0] == np.float32(7e4)


def test_equal_weights_become_one_and_names_are_stable() -> None:
    w = np.ones((4, 4), np.float32)
    model = parsed(
        "g (float[N,4] x) => (float[N,4] y) { a = MatMul (x, p)  b = MatMul (a, q)  y = Relu (b) }",
        p=w,
        q=w.copy(),
    )
    assert share_initializers(model).changed == 1
    model.graph.initializers["p"].name = "tower.blocks.0.weight"
    tidy_names(model)
    assert list(model.graph.initializers) == ["blocks.0.weight"]
    assert [node.name for node in model.graph] == ["MatMul_0", "MatMul_1", "Relu_0"]
    assert [node.outputs[0].name for node in model.graph] == ["MatMul_0:0", "MatMul_1:0", "y"]
    assert run(model, x=np.ones((1, 4), np.float32)).tolist() == [[16.0] * 4]


TWO_LINEARS = "g (float[N,32] x) => (float[N,32] y) { a = MatMul (x, p)  y = MatMul (a, q) }"


def test_flavours_share_one_aligned_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "EMBED_BELOW", 0)
    p, q, other = np.random.default_rng(0).normal(size=(3, 32, 32)).astype(np.float32)
    models = [("one", parsed(TWO_LINEARS, p=p, q=q)), ("two", parsed(TWO_LINEARS, p=q, q=other))]
    x = np.eye(32, dtype=np.float32)
    before = [run(model, x=x) for _, model in models]
    files = save_graphs(models, tmp_path, "image")
    (shared,) = {paths[1] for paths in files.values()}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([shared, "one.onnx", "two.onnx"])
    assert (tmp_path / shared).stat().st_size == 2 * ALIGNMENT + 4096  # q is in both, and there once
    for (name, _), want in zip(models, before, strict=True):
        graph = onnx.load(tmp_path / f"{name}.onnx", load_external_data=False).graph
        for tensor in graph.initializer:
            place = {entry.key: entry.value for entry in tensor.external_data}
            assert place["location"] == shared
            assert int(place["offset"]) % ALIGNMENT == 0
        session = onnxruntime.InferenceSession(tmp_path / f"{name}.onnx")
        np.testing.assert_array_equal(session.run(None, {"x": x})[0], want)


def test_small_towers_keep_their_weights(tmp_path: Path) -> None:
    p, q = np.random.default_rng(0).normal(size=(2, 32, 32)).astype(np.float32)
    assert save_graphs([("one", parsed(TWO_LINEARS, p=p, q=q))], tmp_path, "image") == {"one": ("one.onnx",)}
    assert [path.name for path in tmp_path.iterdir()] == ["one.onnx"]


def test_small_towers_that_have_layers_in_common_share_them(tmp_path: Path) -> None:
    p, q, other = np.random.default_rng(0).normal(size=(3, 32, 32)).astype(np.float32)
    models = [("image", parsed(TWO_LINEARS, p=p, q=q)), ("detector", parsed(TWO_LINEARS, p=p, q=other))]
    files = save_graphs(models, tmp_path, "image", share=True)
    assert files["image"][1] == files["detector"][1]
    assert (tmp_path / files["image"][1]).stat().st_size == 2 * ALIGNMENT + 4096


def test_other_weights_make_another_file_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "EMBED_BELOW", 0)
    p, q, other = np.random.default_rng(0).normal(size=(3, 32, 32)).astype(np.float32)
    names = [
        save_graphs([("one", parsed(TWO_LINEARS, p=p, q=last))], tmp_path / str(i), "image")["one"][1]
        for i, last in enumerate((q, other, q))
    ]
    assert names[0] == names[2] != names[1]


def test_targets_name_flavours() -> None:
    assert flavours_for(["portable"]) == flavours_for(["tensorrt10.3"]) == ("decomposed",)
    assert flavours_for(["all"]) == flavours_for(["portable", "onnxruntime"]) == ("decomposed", "op")
    with pytest.raises(InputError, match=f"target 'coreml': unknown. Choose from {', '.join(TARGETS)}"):
        flavours_for(["portable", "coreml"])
    with pytest.raises(InputError, match="no target"):
        flavours_for([])


@pytest.mark.parametrize(("graphs", "files"), [(2, 0), (3, 1)])
def test_many_graphs_of_a_small_tower_share_their_weights(graphs: int, files: int, tmp_path: Path) -> None:
    weight = np.ones((1024, 750), np.float32)  # 3 MB
    named = [(f"image-{i}", parsed(MATMUL, w=weight)) for i in range(graphs)]
    save_graphs(named, tmp_path, "image")
    assert len(list(tmp_path.glob("*.bin"))) == files


def test_graphs_made_again_keep_one_copy_of_their_weights() -> None:
    graphs = [parsed(MATMUL, w=np.ones((32, 64), np.float32)) for _ in range(2)]
    graphs.append(parsed(MATMUL, w=np.ones((64, 32), np.float32)))  # equal bytes in another shape
    kept = Kept()
    for graph in graphs:
        kept.take(graph)
    tensors = [graph.graph.initializers["w"].const_value for graph in graphs]
    assert tensors[0] is tensors[1]
    assert [tensor and tensor.numpy().shape for tensor in tensors] == [(32, 64), (32, 64), (64, 32)]
