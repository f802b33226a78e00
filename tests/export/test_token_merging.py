"""Merged tokens against a plain reading of the paper, loop by loop, and against themselves where merging may change nothing."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from edgeclip.bundle import Axes, Port, Variant
from edgeclip.errors import InputError
from edgeclip.export import clip_towers, parity, token_merging
from edgeclip.export.attention import fuse_attention
from edgeclip.export.onnx_graph import capture, count, write
from edgeclip.export.passes import PASSES, store_fp16
from edgeclip.export.token_merging import Merge, schedule
from edgeclip.export.towers import TracedTower, tower_of
from edgeclip.models.clip import ImageTower
from tests.export.sources import BLOCKS, IMAGE, SHAPES, clip_source, nano_source
from tests.export.traced import PIXELS, TOLERANCE, assert_rows, opened, wanted
from tests.mutants import broken

Array = NDArray[Any]


def by_the_paper(x: Array, size: Array, keys: Array, r: int, prefix: int) -> tuple[Array, Array]:
    """One picture's (T, W) tokens, (T,) sizes and (T, d) keys: section 3 of the paper in loops, in float64."""
    unit = keys / np.linalg.norm(keys, axis=1, keepdims=True)
    proposers = [t for t in range(len(x)) if t % 2 == 0 and t >= prefix]
    acceptors = [t for t in range(len(x)) if t % 2 == 1]
    edges = []
    for a in proposers:
        likeness = [float(unit[a] @ unit[b]) for b in acceptors]
        best = max(range(len(acceptors)), key=likeness.__getitem__)
        edges.append((likeness[best], a, acceptors[best]))
    gone = sorted(edges, reverse=True)[:r]
    sums, sizes = x * size[:, None], size.copy()
    for _, a, b in gone:
        sums[b] += sums[a]
        sizes[b] += sizes[a]
    left = [a for _, a, _ in gone]
    order = [*range(prefix), *(a for a in proposers if a not in left), *acceptors]
    return (sums / sizes[:, None])[order], sizes[order]


def cases(tokens: int, seed: int = 0) -> tuple[Array, Array, Array]:
    made = np.random.default_rng(seed)
    x, keys = made.normal(size=(3, tokens, 8)), made.normal(size=(3, tokens, 5))
    return x, made.integers(1, 5, (3, tokens)).astype(float), keys


def run(merge: Merge, x: Array, size: Array, keys: Array) -> tuple[Array, Array]:
    made = [torch.from_numpy(array).float() for array in (x, size[..., None], keys)]
    tokens, sizes = merge(*made)
    return tokens.numpy(), sizes[..., 0].numpy()


@pytest.mark.parametrize("prefix", [0, 1])
@pytest.mark.parametrize(("tokens", "r"), [(17, 3), (16, 1), (16, 7), (9, 4)])
def test_one_merge_is_the_papers(tokens: int, r: int, prefix: int) -> None:
    x, size, keys = cases(tokens)
    found, sizes = run(Merge(tokens, r, prefix), x, size, keys)
    assert found.shape == (3, tokens - r, 8)
    for i in range(3):
        want, want_sizes = by_the_paper(x[i], size[i], keys[i], r, prefix)
        np.testing.assert_allclose(found[i], want, atol=1e-5)
        np.testing.assert_array_equal(sizes[i], want_sizes)


@pytest.mark.parametrize(
    ("method", "old", "new"),
    [
        ("forward", "x * size, going", "x, going"),
        ("_pairs", "order[:, : self.r]", "order[:, 1 : self.r + 1]"),
        ("_pairs", "keys / norms.clamp_min(_SMALLEST_NORM)", "keys"),
        ("_joined", "x[:, 1::2] + target", "x[:, 1::2] - target"),
    ],
)
def test_a_fault_in_it_would_be_seen(
    method: str, old: str, new: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Merge, method, broken(getattr(Merge, method), old, new))
    x, size, keys = cases(17)
    found, _ = run(Merge(17, 3, 1), x, size, keys * np.linspace(1, 9, 17)[:, None])
    want, _ = by_the_paper(x[0], size[0], keys[0], 3, 1)
    assert np.abs(found[0] - want).max() > 1e-2


def test_the_class_token_is_never_merged_and_stays_first() -> None:
    x, _, keys = cases(9)
    keys[:, 0] = keys[:, 1]  # more alike than any other pair
    found, sizes = run(Merge(9, 4, 1), x, np.ones((3, 9)), keys)
    np.testing.assert_allclose(found[:, 0], x[:, 0], atol=1e-6)
    assert (sizes[:, 0] == 1).all()
    assert (sizes.sum(axis=1) == 9).all()


def test_how_many_tokens_each_block_gets() -> None:
    assert schedule(577, 1, 4, 23) == [577, 554, 531, 508, 485]
    assert schedule(50, 1, 5, 16) == [50, 34, 18, 10, 6, 4]  # never more than half of the patches
    assert schedule(4, 0, 4, 9) == [4, 2, 1, 1, 1]


# pool -> shape: each way of pooling takes the sizes into account in its own way
POOLS = {"cls": "openai", "avg": "openclip-avg", "map": "siglip", "attentional": "coca"}


def tower_without_positions(shape: str, layers: int) -> ImageTower:
    torch.manual_seed(5)
    changes = dict(SHAPES[shape][0])
    blocks = replace(changes.pop("blocks", BLOCKS), layers=layers)
    return ImageTower(replace(IMAGE, **changes, position_embedding=False, blocks=blocks), 24).eval()


def doubled() -> torch.Tensor:
    """Pictures whose neighbouring patches are equal in pairs: tokens 0 and 1, 2 and 3, ... behind a class token or not."""
    patches = torch.from_numpy(PIXELS).unfold(3, 8, 8)  # (N, 3, 32, columns, 8)
    return patches[:, :, :, [0, 0, 2, 2]].flatten(3)


@torch.no_grad()
@pytest.mark.parametrize("pool", POOLS)
def test_equal_tokens_merge_without_a_trace(pool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five of eight pairs of equal tokens become one each, that counts double: nothing that follows may notice."""
    tower = tower_without_positions(POOLS[pool], layers=2 if pool == "cls" else 1)
    pictures = doubled()
    want = tower(pictures)
    merging, _ = token_merging.image_tower(tower, 5)
    torch.testing.assert_close(merging(pictures), want, rtol=0, atol=2e-6)

    def none(size: Any) -> None:
        return None

    if pool == "avg":
        monkeypatch.setattr(
            clip_towers.TracedImage, "_pool", broken(clip_towers.TracedImage._pool, "(x * size)", "x")
        )
    else:
        monkeypatch.setattr(clip_towers, "attention_bias", none)
        monkeypatch.setattr(token_merging, "attention_bias", none)
    assert (merging(pictures) - want).abs().max() > 1e-4, "the sizes play no part"


@torch.no_grad()
@pytest.mark.parametrize("shape", POOLS.values())
def test_without_a_merge_it_is_the_plain_tower(shape: str) -> None:
    tower: Any = clip_source(shape).model.image
    merging, _ = token_merging.image_tower(tower, 0)
    pixels = torch.from_numpy(PIXELS)
    torch.testing.assert_close(merging(pixels), tower(pixels), rtol=0, atol=1e-5)


@cache
def captured() -> tuple[Any, TracedTower, Array, ir.Model]:
    """SigLIP's shape, which merges in every block and pools by attention, with three tokens merged a block."""
    source = clip_source("siglip")
    tower = tower_of(source, "image", merging=3)
    with torch.no_grad():
        want = tower.module(torch.from_numpy(PIXELS)).numpy()
    return source, tower, want, capture(tower)


@cache
def exported() -> tuple[Any, Array, dict[str, onnx.ModelProto]]:
    source, tower, want, graph = captured()
    return source, want, {f.attention: ir.to_proto(write(graph, tower, f)[0]) for f in tower.flavours}


def test_each_pass_changes_what_it_says_and_no_value() -> None:
    """One by one, on a graph in which each finds something: within 1e-6, the halved weights within what rounding moves."""
    model = captured()[3].clone()
    model.graph.opset_imports[""], model.ir_version = 23, 11
    changed = {}
    before = opened(ir.to_proto(model)).run(None, {"pixels": PIXELS})[0]
    for step in (fuse_attention, *PASSES, store_fp16):
        report = step(model)
        after = opened(ir.to_proto(model)).run(None, {"pixels": PIXELS})[0]
        allowed = 5e-3 if step is store_fp16 else TOLERANCE
        np.testing.assert_allclose(after, before, rtol=0, atol=allowed, err_msg=report.name)
        changed[report.name] = report.changed
        assert report.near_misses == ()
    assert changed["fuse_attention"] == 3
    assert changed["gather_rows"] == 8  # tokens and sizes, those that go and those that stay, in two blocks
    assert changed["remove_unused"] > 0
    assert changed["store_fp16"] > 0


def test_both_flavours_merge_as_pytorch_does_at_every_batch() -> None:
    source, want, graphs = exported()
    assert np.abs(want - wanted(source, "image", PIXELS)).max() > 1e-3, "merging makes no difference"
    for name, graph in graphs.items():
        onnx.checker.check_model(graph, full_check=True)
        for n in (1, 3, 8):
            assert_rows(opened(graph), PIXELS[:n], want[:n], f"{name} at batch {n}")
        counts = count(ir.from_proto(graph))
        assert (counts["TopK"], counts["attentions"], counts["linears"]) == (4, 3, 12), name
        assert "ScatterElements" not in counts


def test_a_block_may_merge_every_proposer_away() -> None:
    tower = tower_of(clip_source("openai"), "image", ("decomposed",), merging=99)
    with torch.no_grad():
        want = tower.module(torch.from_numpy(PIXELS)).numpy()
    graph = ir.to_proto(write(capture(tower), tower, tower.flavours[0])[0])
    assert_rows(opened(graph), PIXELS, want, "half of the patches a block")


@pytest.mark.parity
def test_another_engine_merges_the_same() -> None:
    _, want, graphs = exported()
    (found,) = ReferenceEvaluator(graphs["decomposed"]).run(None, {"pixels": PIXELS[:2]})
    np.testing.assert_allclose(found, want[:2], rtol=0, atol=2 * TOLERANCE)


def test_towers_without_tokens_are_refused() -> None:
    for source, name in ((nano_source(), "NanoImage"), (clip_source("resnet"), "ResNetTower")):
        with pytest.raises(InputError, match=f"--token-merging needs a plain vision transformer, .* {name}"):
            tower_of(source, "image", merging=4)


def test_a_quarter_of_the_pictures_may_choose_another_pair() -> None:
    port = Port("embeddings", "float32", ("N", 4))
    variant = Variant("v", "image", Axes(token_merging=3), (), (port,), (port,))
    want = np.random.default_rng(1).normal(size=(16, 4))
    found = want + 1e-8
    found[:4] += 1e-2
    assert parity._gate_merged(variant, want, found, None) == []
    found[4] += 1e-2
    (line,) = parity._gate_merged(variant, want, found, None)
    assert line.startswith("max_abs to PyTorch with the same merges is 1.00e-02")
