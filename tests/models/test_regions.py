"""The dense map against transformers' and open_clip's own parts, RoIAlign against ONNX's operator and the arithmetic of boxes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from torch.nn.functional import linear, normalize

from edgeclip.bundle import Preprocessing
from edgeclip.errors import InputError
from edgeclip.models import regions
from edgeclip.models.regions import RoiPool, roi_weights, whole, with_regions
from edgeclip.models.sources import load_source
from tests.checkpoints import fixed_pixels, openclip_config, write_hf, write_openclip
from tests.export.sources import clip_source
from tests.models.agreement import TOLERANCE, assert_saves_and_loads
from tests.mutants import broken

# float32 noise of a mean of up to 4,096 products; a sample more or less moves it by 1e-2
NOISE = 3e-6
GRIDS = [(7, 7), (14, 14), (5, 9), (9, 4)]


def roi_align(rows: int, columns: int, width: int) -> onnx.ModelProto:
    node = helper.make_node(
        "RoiAlign", ["map", "rois", "which"], ["y"], mode="avg", output_height=1, output_width=1, sampling_ratio=0,
        spatial_scale=1.0, coordinate_transformation_mode="half_pixel",
    )  # fmt: skip
    ports = [
        helper.make_tensor_value_info("map", TensorProto.FLOAT, ["N", width, rows, columns]),
        helper.make_tensor_value_info("rois", TensorProto.FLOAT, ["R", 4]),
        helper.make_tensor_value_info("which", TensorProto.INT64, ["R"]),
    ]
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["R", width, 1, 1])
    graph = helper.make_graph([node], "roi", ports, [result])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def random_boxes(n: int, r: int, seed: int = 0) -> NDArray[np.float32]:
    ends = np.sort(np.random.default_rng(seed).random((n, r, 2, 2)), axis=2)
    return ends.reshape(n, r, 4).astype(np.float32)


def random_map(n: int, rows: int, columns: int, width: int = 6) -> NDArray[np.float32]:
    return np.random.default_rng(9).normal(size=(n, rows * columns, width)).astype(np.float32)


def by_operator(run: Any, tokens: NDArray[Any], boxes: NDArray[Any], grid: tuple[int, int]) -> NDArray[Any]:
    n, r = boxes.shape[:2]
    rows, columns = grid
    given = {
        "map": np.ascontiguousarray(tokens.reshape(n, rows, columns, -1).transpose(0, 3, 1, 2)),
        "rois": (boxes * np.array([columns, rows, columns, rows], np.float32)).reshape(-1, 4),
        "which": np.repeat(np.arange(n), r),
    }
    found: NDArray[Any] = run(None, given)[0].reshape(n, r, -1)
    return found


def pooled(tokens: NDArray[Any], boxes: Any, grid: tuple[int, int]) -> NDArray[Any]:
    with torch.no_grad():
        given = torch.as_tensor(np.asarray(boxes, np.float32))
        return RoiPool(grid)(torch.from_numpy(tokens), given).numpy()


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_boxes_are_pooled_as_onnxruntime_pools_them(grid: tuple[int, int]) -> None:
    tokens, boxes = random_map(2, *grid), random_boxes(2, 40)
    session = onnxruntime.InferenceSession(roi_align(*grid, 6).SerializeToString())
    want = by_operator(session.run, tokens, boxes, grid)
    np.testing.assert_allclose(pooled(tokens, boxes, grid), want, rtol=0, atol=NOISE)


def test_boxes_are_pooled_as_the_standard_says() -> None:
    tokens, boxes = random_map(2, 5, 9), random_boxes(2, 6, seed=4)
    want = by_operator(ReferenceEvaluator(roi_align(5, 9, 6)).run, tokens, boxes, (5, 9))
    np.testing.assert_allclose(pooled(tokens, boxes, (5, 9)), want, rtol=0, atol=NOISE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("/ count - 0.5", "/ count"),  # no half pixel
        ("torch.ceil(size - HAIR)", "torch.ceil(size * 0 + 2)"),  # a fixed number of samples
        ("(order + 0.5)", "order"),  # samples at the ends of their steps
        ("/ count - 0.5", "/ count - 0.45"),
        ("torch.minimum(at.clamp_min(0), cells - 1)", "torch.minimum(at.clamp_min(0), cells)"),
    ],
)
def test_faults_in_the_sampling_are_seen(old: str, new: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, boxes = random_map(2, 7, 7), random_boxes(2, 40)
    session = onnxruntime.InferenceSession(roi_align(7, 7, 6).SerializeToString())
    want = by_operator(session.run, tokens, boxes, (7, 7))
    monkeypatch.setattr(regions, "roi_weights", broken(regions.roi_weights, old, new))
    assert np.abs(pooled(tokens, boxes, (7, 7)) - want).max() > 100 * NOISE


@pytest.mark.parametrize("cells", [7, 14, 16])
def test_a_box_on_its_patches_is_their_mean(cells: int) -> None:
    """Also where float32 makes it a hair wider than its patches: 2/7 - 1/7 is more than 1/7."""
    tokens = random_map(1, cells, cells)
    grid = tokens.reshape(cells, cells, -1)
    places = [(0, 0, 1, 1), (1, 2, 2, 3), (1, 2, 4, 7), (0, 0, cells, cells), (cells - 2, 3, cells, 6)]
    boxes = np.array([places], np.float32) / np.float32(cells)
    want = np.stack([grid[y1:y2, x1:x2].mean(axis=(0, 1)) for x1, y1, x2, y2 in places])
    np.testing.assert_allclose(pooled(tokens, boxes, (cells, cells))[0], want, rtol=0, atol=1e-6)


def test_a_box_moves_with_the_map() -> None:
    """Half a pixel off would not: the map's border comes nearer."""
    grid = random_map(1, 8, 8).reshape(8, 8, -1)
    moved = np.roll(grid, (1, 1), axis=(0, 1))
    box = np.array([[[2.3, 1.6, 4.9, 5.2]]]) / 8
    a = pooled(grid.reshape(1, 64, -1), box, (8, 8))
    b = pooled(np.ascontiguousarray(moved).reshape(1, 64, -1), box + 1 / 8, (8, 8))
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


def test_shares_are_shares() -> None:
    """Of boxes that reach beyond the picture only what is in it counts; a point is the bilinear sample at its place."""
    boxes = torch.tensor([[[-0.5, -0.2, 0.5, 1.7], [0.0, 0.0, 0.5, 1.0], [0.375, 0.25, 0.375, 0.25]]])
    shares = roi_weights(boxes, (4, 4))
    torch.testing.assert_close(shares.sum(-1), torch.ones(1, 3))
    torch.testing.assert_close(shares[0, 0], shares[0, 1])
    want = torch.zeros(4, 4)
    want[0, 1] = want[1, 1] = 0.5  # x 1.5 - 0.5 = 1, y 1 - 0.5 = 0.5
    torch.testing.assert_close(shares[0, 2].view(4, 4), want)


def test_gradients_reach_map_and_boxes() -> None:
    tokens = torch.from_numpy(random_map(1, 4, 4)).requires_grad_()
    boxes = torch.tensor([[[0.1, 0.2, 0.55, 0.9]]], requires_grad=True)
    RoiPool((4, 4))(tokens, boxes).square().sum().backward()
    assert tokens.grad is not None
    assert boxes.grad is not None
    assert tokens.grad.abs().sum() > 0
    assert boxes.grad.abs().min() > 0


def hf_map(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    """By the modules of transformers' CLIPModel; attention of the last layer reduced to its values."""
    vision = model.vision_model
    with torch.no_grad():
        x = vision(pixels, output_hidden_states=True).hidden_states[-2]
        last = vision.encoder.layers[-1]
        x = x + last.self_attn.out_proj(last.self_attn.v_proj(last.layer_norm1(x)))
        x = x + last.mlp(last.layer_norm2(x))
        return normalize(model.visual_projection(vision.post_layernorm(x[:, 1:])), dim=-1)


def open_clip_map(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    """By the modules of open_clip's VisionTransformer."""
    visual = model.visual
    with torch.no_grad():
        x = visual._embeds(pixels)
        *others, last = visual.transformer.resblocks
        for block in others:
            x = block(x)
        normed, attention = last.ln_1(x), last.attn
        width = x.shape[-1]
        values = linear(normed, attention.in_proj_weight[2 * width :], attention.in_proj_bias[2 * width :])
        x = x + attention.out_proj(values)
        x = x + last.mlp(last.ln_2(x))
        return normalize(visual.ln_post(x[:, 1:]) @ visual.proj, dim=-1)


def test_the_map_agrees_with_transformers(tmp_path: Path) -> None:
    theirs = write_hf(tmp_path, "tiny")
    _agrees(load_source(str(tmp_path)), theirs, hf_map, (32, 32))


def test_the_map_agrees_with_open_clip(tmp_path: Path) -> None:
    theirs = write_openclip(tmp_path, openclip_config("tiny"))
    _agrees(load_source(str(tmp_path)), theirs, open_clip_map, (32, 32))


@pytest.mark.parity
@pytest.mark.parametrize(("size", "side"), [("B/32", 224), ("B/16", 224), ("L/14-336", 336)])
def test_the_map_agrees_with_transformers_at_real_shapes(tmp_path: Path, size: str, side: int) -> None:
    theirs = write_hf(tmp_path, size, layers=(3, 1))
    _agrees(load_source(str(tmp_path)), theirs, hf_map, (side, side))


def _agrees(source: Any, theirs: Any, dense: Any, size: tuple[int, int]) -> None:
    made, pixels = with_regions(source), fixed_pixels(2, *size)
    want = dense(theirs, pixels)
    with torch.no_grad():
        got = made.model.tokens(pixels)
        mixed = regions.RegionEncoder.of(source.model, "attention").tokens(pixels)
        plain = normalize(source.model.image.dense(pixels).flatten(1, 2), dim=-1)
        assert torch.equal(made.model.encode_image(pixels), source.model.encode_image(pixels))
    assert (want[:, 0] - want[:, 1]).norm(dim=-1).min() > 0.1
    torch.testing.assert_close(got, want, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(mixed, plain, rtol=0, atol=TOLERANCE)
    assert (mixed - want).abs().max() > 100 * TOLERANCE  # attention does make a difference


@pytest.mark.parametrize("shape", ["openai", "openclip-avg"])
def test_it_saves_and_loads(shape: str, tmp_path: Path) -> None:
    made = with_regions(clip_source(shape, layers=1))
    made = replace(made, pooling=made.model.config.pooling)
    assert with_regions(made) is made
    assert_saves_and_loads(made, tmp_path / "model")
    again = load_source(str(tmp_path / "model"))
    pixels, boxes = fixed_pixels(1, 32, 32), torch.from_numpy(random_boxes(1, 3))
    with torch.no_grad():
        a, b = (model.regions(model.tokens(pixels), boxes) for model in (made.model, again.model))
    assert torch.equal(a, b)
    assert (
        len(again.model.state_dict())
        == len(made.model.state_dict())
        == len(clip_source(shape, 1).model.state_dict())
    )


@pytest.mark.parametrize(
    ("shape", "why"),
    [
        ("siglip", "its image tower pools by 'map'"),
        ("coca", "its image tower pools by 'attentional'"),
    ],
)
def test_towers_without_a_space_of_patches_are_refused(shape: str, why: str) -> None:
    with pytest.raises(InputError, match=f"--regions: made-up: .*{why}.* Export it without"):
        with_regions(clip_source(shape, layers=1))


def test_only_the_plain_vision_transformer_is_taken() -> None:
    source = clip_source(layers=1)
    source.model.image = torch.nn.Identity()
    with pytest.raises(
        InputError, match=r"--regions: made-up: .*its image tower is a Identity. Export it without"
    ):
        with_regions(source)


def test_a_picture_is_seen_whole() -> None:
    cropped = Preprocessing((32, 48), "shortest_crop", "bicubic", (0.5, 0.25, 0.0), (1, 1, 1), resize=36)
    seen = whole(cropped)
    assert (seen.mode, seen.size, seen.resize, seen.pad_color) == ("pad", (32, 48), 0, (128, 64, 0))
    assert whole(seen) is seen
