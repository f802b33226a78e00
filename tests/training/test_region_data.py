"""Mosaics and boxes: what is where, that boxes follow their pictures, and what is said of bad ones."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from edgeclip.bundle.manifest import Preprocessing
from edgeclip.errors import TrainingError
from edgeclip.models.source import Source
from edgeclip.models.training import Augmentation, Recipe
from edgeclip.models.training.data.augment import placed, whole
from edgeclip.models.training.data.mosaics import MosaicBatch, Mosaics, mosaics, tile_boxes, tile_spec
from edgeclip.models.training.data.region_batches import RegionBatch, RegionPairs, visible
from edgeclip.models.training.data.region_tables import open_regions
from edgeclip.models.training.distributed import Shard
from edgeclip.models.training.starts import start
from edgeclip.runtime.images import Preprocessor
from tests.training.tiny import tiny


@pytest.fixture(scope="module")
def source() -> Source:
    return start(tiny())


def same(one: Any, two: Any) -> bool:
    """Whether two batches are equal, field by field."""
    return all(
        torch.equal(value, getattr(two, name)) for name, value in vars(one).items() if torch.is_tensor(value)
    )


def test_tiles_lie_where_their_boxes_say() -> None:
    tiles = [np.full((3, 4, 6), i, np.float32) for i in range(18)]
    made = mosaics(tiles, 3, (12, 18))
    assert made.shape == (2, 3, 12, 18)
    for number, (x1, y1, x2, y2) in enumerate(tile_boxes(3).tolist()):
        part = made[:, :, round(12 * y1) : round(12 * y2), round(18 * x1) : round(18 * x2)]
        assert part.shape == (2, 3, 4, 6)
        assert (part[0] == number).all()
        assert (part[1] == number + 9).all()
    assert tile_boxes(2).mul(2).tolist() == [[0, 0, 1, 1], [1, 0, 2, 1], [0, 1, 1, 2], [1, 1, 2, 2]]


def test_a_canvas_of_other_pixels_is_resized_bicubic() -> None:
    values = np.random.default_rng(0).normal(size=(9, 3, 6, 6)).astype(np.float32)
    made = mosaics(list(values), 3, (16, 16))  # three tiles of 6 are 18 pixels
    canvas = torch.from_numpy(values.reshape(3, 3, 3, 6, 6)).permute(2, 0, 3, 1, 4).reshape(1, 3, 18, 18)
    want = torch.nn.functional.interpolate(
        canvas, (16, 16), mode="bicubic", antialias=True, align_corners=False
    )
    # Pillow's cubic has another constant (-0.5) than torch's plain one, but the one of its antialiasing.
    np.testing.assert_allclose(made, want, rtol=0, atol=1e-5)


def test_tiles_are_prepared_at_the_least_whole_size() -> None:
    spec = Preprocessing((64, 64), "shortest_crop", "bicubic", (0.5,) * 3, (0.5,) * 3, resize=72)
    assert [tile_spec(spec, side).size for side in (1, 2, 3, 4)] == [(64, 64), (32, 32), (22, 22), (16, 16)]
    assert tile_spec(spec, 4).resize == 18


def test_of_32_pairs_three_mosaics_and_three_singles(source: Source) -> None:
    recipe = tiny(batch_size=32, augmentation=Augmentation(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0)))
    batches = Mosaics(recipe, source, Shard())
    batch = batches.batch(2)
    assert [len(x) for x in (batch.twos, batch.threes, batch.fours, batch.singles)] == [1, 1, 1, 3]
    assert batch.input_ids.shape[0] == batch.groups.shape[0] == 32
    # The same pairs as plain batches, in the same order, with the tiles where the texts say.
    from edgeclip.models.training.data.pairs import ShuffledPairs

    plain = ShuffledPairs(recipe, source, Shard()).batch(2)
    assert torch.equal(plain.input_ids, batch.input_ids)
    assert torch.equal(plain.pixels[29:], batch.singles)
    small = torch.nn.functional.interpolate(plain.pixels[:4], (8, 8), mode="area")
    tiles = batch.twos[0].unflatten(1, (2, 8)).unflatten(3, (2, 8)).permute(1, 3, 0, 2, 4).flatten(0, 1)
    distance = (small[:, None] - tiles[None]).square().mean(dim=(2, 3, 4))
    assert distance.argmin(dim=1).tolist() == [0, 1, 2, 3]
    assert same(Mosaics(recipe, source, Shard()).batch(2), batch)  # of the seed and the step alone


def test_parts_and_processes_have_mosaics_of_their_own(source: Source) -> None:
    recipe = tiny(batch_size=64, accumulate=2, data="shapes:200")
    batch = Mosaics(recipe, source, Shard()).batch(0)
    assert [len(x) for x in (batch.twos, batch.singles)] == [2, 6]
    assert [(len(part.fours), len(part.singles), len(part.groups)) for part in batch.split(2)] == [
        (1, 3, 32)
    ] * 2
    shared = Mosaics(replace(recipe, accumulate=1), source, Shard(1, 2)).batch(0)
    assert isinstance(shared, MosaicBatch)
    assert [len(x) for x in (shared.twos, shared.singles)] == [1, 3]
    with pytest.raises(
        TrainingError, match=r"batch_size: expected 29 pairs or more for each process and part.*got 16"
    ):
        Mosaics(replace(recipe, accumulate=4), source, Shard())


SPECS = {
    "squash": Preprocessing((48, 64), "squash", "bilinear", (0.0,) * 3, (1.0,) * 3),
    "pad": Preprocessing((64, 48), "pad", "bilinear", (0.0,) * 3, (1.0,) * 3),
    "crop": Preprocessing((48, 48), "shortest_crop", "bilinear", (0.0,) * 3, (1.0,) * 3),
}
MARK = (40, 24, 72, 56)  # a red square on black, xyxy


def marked(size: tuple[int, int] = (120, 80)) -> Image.Image:
    picture = Image.new("RGB", size)
    ImageDraw.Draw(picture).rectangle((MARK[0], MARK[1], MARK[2] - 1, MARK[3] - 1), fill=(255, 0, 0))
    return picture


def lit(view: NDArray[np.float32]) -> NDArray[np.float32]:
    """xyxy in 0-1 of where red is above one half."""
    down, across = np.nonzero(view[0] > 0.5)
    _, height, width = view.shape
    return np.array(
        [across.min() / width, down.min() / height, (across.max() + 1) / width, (down.max() + 1) / height],
        np.float32,
    )


@pytest.mark.parametrize("mode", SPECS)
@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_boxes_follow_the_whole_picture(mode: str, flip: float) -> None:
    how = Augmentation(crop_scale=(1.0, 1.0), flip=flip)
    for size in ((120, 80), (80, 120), (96, 96)):
        view, place = whole(marked(size), Preprocessor(SPECS[mode]), how, np.random.default_rng(0), "x")
        box = place(np.array([MARK], np.float32))[0]
        np.testing.assert_allclose(lit(view), box, atol=1.01 / 48)  # a pixel of the view


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_boxes_follow_random_crops(flip: float) -> None:
    how, seen = Augmentation(crop_scale=(0.1, 0.5), flip=flip), 0
    for seed in range(40):
        view, place = placed(marked(), SPECS["squash"], how, np.random.default_rng(seed), "x")
        boxes, kept = visible(place(np.array([MARK], np.float32)))
        if (view[0] > 0.5).any():
            np.testing.assert_allclose(lit(view), boxes[0], atol=1.5 / 48)
            seen += len(kept)
    assert 15 < seen < 40


def test_a_box_is_named_while_half_of_it_shows() -> None:
    boxes = np.array(
        [[-0.4, 0, 0.6, 1], [-0.6, 0, 0.4, 1], [0.2, 0.2, 0.3, 0.3], [1.2, 0, 1.5, 1]], np.float32
    )
    cut, kept = visible(boxes)
    assert kept.tolist() == [0, 2]
    np.testing.assert_allclose(cut[0], [0, 0, 0.6, 1])


def write_lines(folder: Path, rows: list[Any]) -> Path:
    path = folder / "regions.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def many(folder: Path, count: int = 24) -> Recipe:
    """Pictures with six boxes, two or none, of which the text says the place."""
    rows: list[Any] = []
    for i in range(count):
        Image.new("RGB", (60, 40), (10 * i, 0, 0)).save(folder / f"{i}.png")
        regions = [{"box": [10 * j, 5, 10 * j + 8, 30], "text": f"box {j}"} for j in range(6)]
        rows.append({"image": f"{i}.png", "caption": f"picture {i}", "regions": regions[: (0, 2, 6)[i % 3]]})
    return tiny(
        data=str(write_lines(folder, rows)),
        batch_size=12,
        validation_share=0.0,
        augmentation=Augmentation(crop_scale=(1.0, 1.0)),
        batches="regions",
    )


def test_four_boxes_a_picture_with_their_texts(tmp_path: Path, source: Source) -> None:
    recipe = many(tmp_path)
    batches = RegionPairs(recipe, source, Shard())
    batch = batches.batch(0)
    assert batch.boxes.shape == (12, 4, 4)
    assert batch.named.sum(dim=1).unique().tolist() == [0, 2, 4]
    ids = {tuple(batches._ids([f"box {j}", "a picture of x"])[0].tolist()): j for j in range(6)}
    drawn = set()
    for boxes, texts, named in zip(batch.boxes, batch.region_ids, batch.named, strict=True):
        for box, text, here in zip(boxes.tolist(), texts.tolist(), named.tolist(), strict=True):
            if here:
                number = next(
                    j for row, j in ids.items() if list(row)[: row.index(1) + 1] == text[: text.index(1) + 1]
                )
                assert box == pytest.approx(
                    [10 * number / 60, 5 / 40, (10 * number + 8) / 60, 30 / 40], abs=1e-6
                )
                drawn.add(number)
            else:
                assert box == [0, 0, 1, 1]
    assert drawn == set(range(6))  # drawn, not the first four
    assert same(RegionPairs(recipe, source, Shard()).batch(0), batch)
    assert not same(RegionPairs(replace(recipe, seed=1), source, Shard()).batch(0), batch)
    halves = [RegionPairs(recipe, source, Shard(rank, 2)).batch(1) for rank in (0, 1)]
    assert torch.equal(torch.cat([half.boxes for half in halves]), batches.batch(1).boxes)
    parts = batch.split(3)
    assert isinstance(parts[0], RegionBatch)
    assert torch.equal(torch.cat([part.region_ids for part in parts]), batch.region_ids)


def test_bad_lines_and_boxes_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = {"box": [1, 2, 3, 4], "text": " a cup "}
    path = write_lines(
        tmp_path,
        [
            {"image": "a.png", "caption": "x", "regions": [good, {"box": [3, 2, 3, 4], "text": "b"}]},
            "",
            {
                "image": "b.png",
                "regions": [{"box": [1, 2, 3], "text": "c"}, {"box": [1, 2, 3, 4], "text": ""}, 7],
            },
            "{broken",
            '{"image": "c.png", "regions": [{"box": [NaN, 0, 1, 1], "text": "d"}]}',
            {"image": "d.png", "regions": [good, good]},
        ],
    )
    table = open_regions(str(path), "")
    assert list(table.keys) == ["a.png", "d.png"]
    assert table.read(0) == (tmp_path / "a.png", ["x"])
    assert table.read(1) == (tmp_path / "d.png", ["a cup"])  # its boxes' texts, each once
    assert table.regions(0)[0].tolist() == [[1, 2, 3, 4]]
    said = [record.getMessage() for record in caplog.records]
    assert all(line.startswith(str(path)) and "\n" not in line for line in said)
    for part in (
        "line 1, regions[1]: expected a box x1 < x2, y1 < y2 of finite pixels, got [3, 2, 3, 4]",
        "line 3, regions[0]: expected a box of four numbers, got [1, 2, 3]",
        "line 3, regions[1]: expected a text, got ''",
        "line 3, regions[2]: expected a box of four numbers, got None",
        "line 4: no picture, or neither caption nor named box",
        "line 5, regions[0]: expected a box x1 < x2",
    ):
        assert any(part in line for line in said), part


def test_many_bad_boxes_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bad = [{"box": [0, 0, 0, 0], "text": "x"}] * 40
    open_regions(
        str(write_lines(tmp_path, [{"image": "a", "regions": [*bad, {"box": [0, 0, 1, 1], "text": "x"}]}])),
        "",
    )
    assert len(caplog.records) == 6
    assert "40 boxes in all cannot be used" in caplog.text


def coco(folder: Path, **changes: Any) -> Path:
    data = {
        "images": [
            {"id": 7, "file_name": "a.jpg"},
            {"id": 8, "file_name": "b.jpg", "caption": "two cats"},
            {"id": 9, "file_name": "c.jpg"},
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 3, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 3, "bbox": [10, 20, 5, 6]},
            {"id": 2, "image_id": 8, "category_id": 1, "bbox": [1, 2, 3, 4], "phrase": "a black cat"},
            {"id": 3, "image_id": 8, "category_id": 1, "bbox": [1, 2, 3, 4], "iscrowd": 1},
            {"id": 4, "image_id": 7, "category_id": 1, "bbox": [1, 2, 0, 4]},
            {"id": 5, "image_id": 7, "category_id": 5, "bbox": [1, 2, 3, 4]},
        ],
        **changes,
    }
    (folder / "images").mkdir(exist_ok=True)
    Image.new("RGB", (40, 30)).save(folder / "images" / "a.jpg")
    (folder / "instances.json").write_text(json.dumps(data))
    return folder / "instances.json"


def test_coco(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = open_regions(str(coco(tmp_path)), "")
    assert list(table.keys) == ["a.jpg", "b.jpg"]
    assert table.read(0) == (tmp_path / "images" / "a.jpg", ["dog"])
    assert table.read(1)[1] == ["two cats"]
    assert table.regions(0)[0].tolist() == [[10, 20, 15, 26]]
    assert table.regions(1)[1] == ["a black cat"]
    assert "annotations[3] (id 4): expected a box x1 < x2" in caplog.text
    assert "annotations[4] (id 5): expected a text, got None" in caplog.text


def test_coco_refusals(tmp_path: Path) -> None:
    path = coco(tmp_path)
    (tmp_path / "x.json").write_text('{"images": []}')
    with pytest.raises(TrainingError, match=r"images: a.jpg of .* is not in .*elsewhere\. Set images=FOLDER"):
        open_regions(str(path), str(tmp_path / "elsewhere"))
    with pytest.raises(
        TrainingError, match="expected COCO's images, annotations and categories; KeyError: 'annotations'"
    ):
        open_regions(str(tmp_path / "x.json"), "")
    for change, message in [  # files made to break a reader
        ({"annotations": [{"image_id": [7]}]}, "TypeError: unhashable type"),
        ({"annotations": [{"image_id": 7, "category_id": {}}]}, "TypeError: unhashable type"),
        (
            {"annotations": [{"image_id": 7, "category_id": 1, "bbox": [10**400, 1.5, 3, 4]}]},
            "no picture with a",
        ),
        ({"images": [{"id": 7, "file_name": "x" * 3000}]}, "images: xxx.* is not in"),
    ]:
        with pytest.raises(TrainingError, match=message):
            open_regions(str(coco(tmp_path, **{"images": [{"id": 7, "file_name": "a.jpg"}], **change})), "")
    (tmp_path / "x.json").write_text("[" * 100_000)
    with pytest.raises(TrainingError, match="cannot be read"):
        open_regions(str(tmp_path / "x.json"), "")
    for name, message in [
        ("none.jsonl", "cannot be read"),
        ("pairs.csv", r"expected boxes in COCO's .json or in .jsonl"),
        ("", "data: not set"),
    ]:
        with pytest.raises(TrainingError, match=message):
            open_regions(name and str(tmp_path / name), "")
    with pytest.raises(TrainingError, match="none of its 1 pictures has a named box"):
        open_regions(str(write_lines(tmp_path, [{"image": "a.png", "caption": "x"}])), "")


def test_a_moved_picture_is_replaced_and_counted(
    tmp_path: Path, source: Source, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = many(tmp_path)
    (tmp_path / "4.png").unlink()
    batches = RegionPairs(replace(recipe, batch_size=24), source, Shard())
    with caplog.at_level(logging.DEBUG):
        assert batches.batch(0).unreadable == ("4.png",)


def test_photographs_with_boxes() -> None:
    photographs = Path(__file__).parents[2] / "../shared/data/coco64"
    if not photographs.is_dir():
        pytest.skip("needs the folder of photographs beside the checkout")
    table = open_regions(str(photographs / "instances.json"), "")
    boxes = np.concatenate([table.regions(i)[0] for i in range(len(table.keys))])
    assert len(table.keys) > 40
    assert len(boxes) > 100
    assert all(table.read(i)[0].is_file() for i in range(len(table.keys)))
