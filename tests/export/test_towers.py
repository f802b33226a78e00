"""Exported towers against their sources, on onnxruntime, for every shape of model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray

from edgeclip.errors import CheckFailed, SourceError
from edgeclip.export import clip_towers
from edgeclip.export.onnx_graph import check, count, trace
from edgeclip.export.towers import TracedTower, UnitRows, tower_of
from tests.export.sources import EOS, LENGTH, clip_source, nano_source
from tests.export.traced import (
    EVERY_SHAPE,
    PIXELS,
    TOLERANCE,
    assert_rows,
    graphs,
    make_ids,
    opened,
    traced,
    wanted,
)
from tests.stress import plant_outliers


@pytest.mark.parametrize("shape", EVERY_SHAPE)
def test_image_tower_agrees_at_every_batch(shape: str) -> None:
    source, towers = traced(shape, "image")
    want = wanted(source, "image", PIXELS)
    assert np.ptp(want, axis=0).max() > 0.05, "pictures make no difference"
    assert set(towers) == ({"none"} if shape == "nano" else {"decomposed", "op"})
    for name, graph in towers.items():
        session = opened(graph)
        assert session.get_inputs()[0].shape == ["N", 3, 32, 32]
        for n in (1, 3, 8):
            assert_rows(session, PIXELS[:n], want[:n], f"{name} at batch {n}")


@pytest.mark.parametrize("shape", EVERY_SHAPE)
def test_text_tower_agrees_at_every_batch_and_length(shape: str) -> None:
    source, towers = traced(shape, "text")
    ids = make_ids(8)
    want = wanted(source, "text", ids)
    assert np.ptp(want, axis=0).max() > 0.05, "texts make no difference"
    for name, graph in towers.items():
        session = opened(graph)
        assert session.get_inputs()[0].type == "tensor(int32)"
        for n in (1, 3, 8):
            assert_rows(session, ids[:n], want[:n], f"{name} at batch {n}")
        for length in (1, 2, 7, LENGTH) if source.text.dynamic_length else ():
            short = make_ids(3, length)
            assert_rows(session, short, wanted(source, "text", short), f"{name} at length {length}")


def test_padding_changes_nothing_where_the_length_is_dynamic() -> None:
    source, towers = traced("openai", "text")
    ids = make_ids(8)
    want = wanted(source, "text", ids)
    for session in map(opened, towers.values()):
        for row, target in zip(ids, want, strict=True):
            cut = row[None, : int(np.flatnonzero(row == EOS)[0]) + 1]
            assert_rows(session, cut, target[None], f"length {cut.shape[1]}")


@pytest.mark.parametrize("shape", ["openai", "openclip-avg"])
def test_of_several_end_marks_the_first_is_pooled(shape: str) -> None:
    source, towers = traced(shape, "text")
    ids = np.full((3, 12), 7, np.int32)
    ids[0, [4, 9]] = EOS
    ids[1, 3:] = EOS  # padded with the end mark, as OpenAI's models are
    # ids[2] has none: position 0 stands for it, as in the source
    want = wanted(source, "text", ids)
    only_first = ids.copy()
    only_first[0, 9], only_first[1, 4:] = 7, 7
    np.testing.assert_allclose(wanted(source, "text", only_first)[:2], want[:2], atol=TOLERANCE)
    for graph in towers.values():
        assert_rows(opened(graph), ids, want)


def test_stream_of_trained_magnitude_is_exact_in_fp32() -> None:
    source = clip_source(layers=1)
    plant_outliers(source.model)  # type: ignore[arg-type]
    for kind, inputs in (("image", PIXELS), ("text", make_ids(8))):
        want = wanted(source, kind, inputs)
        for graph in graphs(source, kind).values():
            assert_rows(opened(graph), inputs, want, kind)


def test_left_in_training_mode_and_under_autocast_it_exports_the_same() -> None:
    before = weights(ir.from_proto(traced("nano", "image")[1]["none"]))
    source = nano_source()
    source.model.train()
    with torch.autocast("cpu", torch.bfloat16):
        tower = tower_of(source, "image")
        model, _ = trace(tower, tower.flavours[0])
    assert count(model)["Conv"] == 6
    assert {name: array.tobytes() for name, array in weights(model).items()} == {
        name: array.tobytes() for name, array in before.items()
    }


def weights(model: Any) -> dict[str, NDArray[Any]]:
    return {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}


def test_both_flavours_hold_the_same_weights_once_and_only_their_own() -> None:
    for kind in ("image", "text"):
        source, towers = traced("openai", kind)
        part = getattr(source.model, kind)
        a, b = (weights(ir.from_proto(graph)) for graph in towers.values())
        large = {name: array.tobytes() for name, array in a.items() if array.size >= 64}
        assert large == {
            name: array.tobytes() for name, array in b.items() if array.size >= 64 and name in large
        }
        assert len(set(large.values())) == len(large), "a tensor is there twice"
        # the class token is in the first position's row
        parameters = sum(p.numel() for name, p in part.named_parameters() if name != "class_token")
        extra = sum(array.size for array in a.values()) - parameters
        assert 0 <= extra < 600, (
            f"{kind}: {extra} values beyond the tower's own parameters"
        )  # mask, order, shapes


@pytest.mark.parametrize("kind", ["image", "text"])
def test_graphs_are_standard_checked_and_say_nothing_of_the_machine(kind: str) -> None:
    limits = {"decomposed": (10, 20), "op": (11, 23)}
    for name, graph in traced("openai", kind)[1].items():
        onnx.checker.check_model(graph, full_check=True)
        versions = graph.ir_version, [(o.domain, o.version) for o in graph.opset_import]
        assert versions == (limits[name][0], [("", limits[name][1])])
        text = str(graph)
        assert "stack_trace" not in text
        assert ".py" not in text


def test_the_graph_holds_fused_operators() -> None:
    for name, graph in traced("openai", "image")[1].items():
        counts = count(ir.from_proto(graph))
        assert counts["LayerNormalization"] == 6
        assert counts["fused_qkv"] == 2
        assert counts["linears"] == 9
        assert (counts.get("Softmax", 0), counts.get("Attention", 0)) == ((0, 2) if name == "op" else (2, 0))
    assert count(ir.from_proto(traced("openclip-avg", "text")[1]["decomposed"]))["Gelu"] == 2


class _Apart(torch.nn.LayerNorm):
    """A layer norm written out, which the exporter cannot keep as one operator."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.pow(2).mean(-1, keepdim=True) + self.eps).sqrt() * self.weight + self.bias


def broken(tower: TracedTower, **changes: Any) -> None:
    trace(replace(tower, **changes), tower.flavours[0])


def test_a_norm_taken_apart_is_refused() -> None:
    source = clip_source(layers=1)
    norm = _Apart(48)
    source.model.image.norm_pre = norm  # type: ignore[union-attr]
    with pytest.raises(CheckFailed, match="expected 4 LayerNormalization in the graph, found 3"):
        broken(tower_of(source, "image"))


def test_a_split_projection_is_refused() -> None:
    tower = tower_of(clip_source(), "image")
    with pytest.raises(CheckFailed, match="expected 12 linears in the graph, found 9"):
        check(
            ir.from_proto(traced("openai", "image")[1]["decomposed"]),
            replace(tower, expected={"linears": 12}),
            tower.flavours[0],
        )


def test_a_baked_batch_is_refused() -> None:
    tower = tower_of(clip_source(layers=1), "image")
    fixed = torch.nn.Sequential(tower.module, _Fixed())
    with pytest.raises(CheckFailed, match=r"expected embeddings float32 \('N', 24\)"):
        broken(tower, module=fixed)


class _Fixed(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum(0, keepdim=True).expand(2, -1)


def test_rows_without_a_direction_stay_finite() -> None:
    rows = UnitRows(torch.nn.Identity())(torch.tensor([[0.0, 0.0], [3e-7, 4e-7], [3e18, 4e18]]))
    torch.testing.assert_close(rows, torch.tensor([[0.0, 0.0], [0.3, 0.4], [0.6, 0.8]]))


def test_a_mask_value_survives_fp16_with_any_score_added() -> None:
    score = torch.tensor([-60000.0, 0.0, 30000.0]).half()
    assert torch.isfinite(score[1:] + torch.tensor(clip_towers.MASKED).half()).all()
    assert torch.softmax(torch.tensor([0.0, clip_towers.MASKED]), 0).tolist() == [1.0, 0.0]


def test_an_unknown_model_is_refused_in_one_line() -> None:
    source = clip_source()
    source.model.image = torch.nn.Identity()
    with pytest.raises(
        SourceError, match="cannot export Identity as image tower, expected one of ImageTower, TextTower"
    ):
        tower_of(source, "image")
