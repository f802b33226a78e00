"""What every graph must and must not hold, whatever the model: the faults that run well and give wrong numbers elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from edgeclip.export import clip_towers
from edgeclip.export.onnx_graph import count
from tests.export.sources import EOS, LENGTH, PAD, clip_source
from tests.export.traced import (
    EVERY_SHAPE,
    KINDS,
    PIXELS,
    TOLERANCE,
    assert_rows,
    graphs,
    make_ids,
    opened,
    traced,
    wanted,
)

every_graph = [pytest.mark.parametrize("shape", EVERY_SHAPE), pytest.mark.parametrize("kind", KINDS)]


def for_every_graph(test: Any) -> Any:
    """Run a test for both towers of every made-up source."""
    for mark in every_graph:
        test = mark(test)
    return test


def constants(graph: onnx.GraphProto) -> Iterator[tuple[str, NDArray[Any]]]:
    """Every tensor that the graph holds: initializers, and attributes of its nodes."""
    for tensor in graph.initializer:
        yield tensor.name, numpy_helper.to_array(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            name = f"{node.name}.{attribute.name}"
            if attribute.type == onnx.AttributeProto.TENSOR:
                yield name, numpy_helper.to_array(attribute.t)
            elif attribute.type in (onnx.AttributeProto.FLOAT, onnx.AttributeProto.FLOATS):
                yield name, np.array([attribute.f, *attribute.floats], np.float32)
            assert attribute.type != onnx.AttributeProto.GRAPH, "a control flow that nothing asked for"


def unfit_for_fp16(graph: onnx.ModelProto) -> list[str]:
    """Names of float constants that are not finite, or would not be once cast to fp16."""
    return [
        name
        for name, array in constants(graph.graph)
        if array.dtype.kind == "f" and not np.isfinite(array.astype(np.float16)).all()
    ]


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@for_every_graph
def test_no_constant_is_infinite_in_any_precision(shape: str, kind: str) -> None:
    for name, graph in traced(shape, kind)[1].items():
        assert unfit_for_fp16(graph) == [], name


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@pytest.mark.parametrize("value", [-np.inf, float(np.finfo(np.float32).min)])
def test_a_mask_of_another_value_would_be_seen(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip_towers, "MASKED", value)
    assert unfit_for_fp16(graphs(clip_source(layers=1), "text", "decomposed")["decomposed"]) != []


@for_every_graph
def test_no_size_of_the_example_batch_is_baked(shape: str, kind: str) -> None:
    """A target of Reshape or Expand that begins with the example's 2 passes at that batch only."""
    for name, graph in traced(shape, kind)[1].items():
        known = dict(constants(graph.graph))
        known |= {node.output[0]: value for node in graph.graph.node for value in _constant(node)}
        for node in graph.graph.node:
            if node.op_type in ("Reshape", "Expand", "Tile") and node.input[1] in known:
                leading = int(known[node.input[1]].reshape(-1)[0])
                assert leading in (-1, 0, 1), f"{name}: {node.name} has {known[node.input[1]]}"
        batch = graph.graph.input[0].type.tensor_type.shape.dim[0]
        assert (batch.dim_param, batch.dim_value) == ("N", 0)


def _constant(node: onnx.NodeProto) -> list[NDArray[Any]]:
    if node.op_type != "Constant":
        return []
    attribute = node.attribute[0]
    return [
        numpy_helper.to_array(attribute.t)
        if attribute.name == "value"
        else np.array(attribute.ints or [attribute.i])
    ]


@for_every_graph
def test_every_weight_is_read_and_there_once(shape: str, kind: str) -> None:
    for name, graph in traced(shape, kind)[1].items():
        read = {used for node in graph.graph.node for used in node.input}
        held = {tensor.name for tensor in graph.graph.initializer}
        assert held <= read, f"{name}: {sorted(held - read)} is read by nothing"
        large = [array.tobytes() for _, array in constants(graph.graph) if array.size >= 64]
        assert len(set(large)) == len(large), f"{name}: a tensor is there twice"
        produced = {output for node in graph.graph.node for output in node.output if output}
        ends = {value.name for value in graph.graph.output}
        assert produced <= read | ends, f"{name}: {sorted(produced - read - ends)} is computed for nothing"


@for_every_graph
def test_nothing_is_computed_that_is_known_at_export(shape: str, kind: str) -> None:
    """Position embeddings, scales and learned queries are constants; a picture's tokens need no size of the batch."""
    for name, graph in traced(shape, kind)[1].items():
        known = {tensor.name for tensor in graph.graph.initializer}
        for node in graph.graph.node:
            assert not known.issuperset(filter(None, node.input)), (
                f"{name}: {node.name} reads constants alone"
            )
        if kind == "image" and name == "decomposed":
            sizes = {"Shape", "Expand", "ConstantOfShape", "Range", "Tile"}
            assert not sizes & {node.op_type for node in graph.graph.node}


@for_every_graph
def test_a_row_does_not_depend_on_its_mates(shape: str, kind: str) -> None:
    source, towers = traced(shape, kind)
    inputs = PIXELS if kind == "image" else make_ids(8)
    loud = PIXELS[::-1] * 1e3 if kind == "image" else np.full((8, LENGTH), EOS, np.int32)
    for name, graph in towers.items():
        session = opened(graph)
        port = session.get_inputs()[0].name
        together = session.run(None, {port: inputs})[0]
        for i in (0, 3, 7):
            alone = session.run(None, {port: inputs[i : i + 1]})[0][0]
            np.testing.assert_allclose(alone, together[i], rtol=0, atol=TOLERANCE, err_msg=f"{name}, row {i}")
            mixed = loud.copy()
            mixed[i] = inputs[i]
            among = session.run(None, {port: mixed})[0][i]
            np.testing.assert_allclose(among, together[i], rtol=0, atol=TOLERANCE, err_msg=f"{name}, row {i}")
    assert source.text.context_length == LENGTH


@for_every_graph
def test_norms_are_one_operator_each(shape: str, kind: str) -> None:
    source, towers = traced(shape, kind)
    norms = sum(type(module).__name__ == "LayerNorm" for module in getattr(source.model, kind).modules())
    norms -= shape.startswith("coca") and kind == "image"  # of the learned queries: computed once, at export
    for graph in towers.values():
        assert count(ir.from_proto(graph)).get("LayerNormalization", 0) == norms


@pytest.mark.parametrize("eos_id", [2, 200])
def test_the_end_mark_need_not_be_the_largest_id(eos_id: int) -> None:
    """MetaCLIP 2 truly ends texts with id 2, and added tokens lie above any end mark."""
    source = clip_source(layers=1)
    text: Any = source.model.text
    text.config = replace(text.config, eos_id=eos_id)
    ids = np.full((3, 12), PAD, np.int32)
    ids[0, :7] = 5, 9, 250, 3, eos_id, 257, 11  # what stands behind the end mark is out of sight
    ids[1, :3] = 257, 251, eos_id
    ids[2, :] = 240
    ids[2, 11] = eos_id
    want = wanted(source, "text", ids)
    cut = np.where(np.arange(12) <= 4, ids, 7)[:1]
    np.testing.assert_allclose(wanted(source, "text", cut), want[:1], atol=TOLERANCE)
    by_largest = wanted(replace_pool(source, "argmax"), "text", ids)
    assert np.abs(by_largest - want).max() > 1e-2, "both rules pool the same position"
    text.config = replace(text.config, pool="eos")
    (graph,) = graphs(source, "text", "decomposed").values()  # both flavours pool by the same nodes
    assert_rows(opened(graph), ids, want)


def replace_pool(source: Any, pool: Any) -> Any:
    """The same source with its text tower pooling by another rule."""
    source.model.text.config = replace(source.model.text.config, pool=pool)
    return source
