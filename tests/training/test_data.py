"""Pairs from every kind of store, in an order that the seed alone decides."""

from __future__ import annotations

import io
import json
import logging
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edgeclip.bundle.manifest import Preprocessing
from edgeclip.errors import TrainingError
from edgeclip.models.training import Augmentation, Recipe
from edgeclip.models.training.data import open_pairs
from edgeclip.models.training.data.augment import augmented
from edgeclip.models.training.data.pairs import ShuffledPairs
from edgeclip.models.training.data.shuffled import split_by_hash
from edgeclip.models.training.distributed import Shard
from edgeclip.models.training.starts import start
from edgeclip.runtime.images import Picture, preprocess
from tests.training.tiny import tiny


def picture(value: int) -> Image.Image:
    return Image.new("RGB", (12, 8), (value, 0, 0))


def red(source: Picture) -> int:
    """Which picture this is."""
    image = (
        source
        if isinstance(source, Image.Image)
        else Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
    )  # type: ignore[arg-type]
    pixel = image.convert("RGB").getpixel((0, 0))
    assert isinstance(pixel, tuple)
    return int(pixel[0])


def contents(location: Path | str, data_format: str = "auto") -> dict[str, tuple[int, list[str]]]:
    pairs = open_pairs(str(location), data_format)
    found = {}
    for index, key in enumerate(pairs.keys):
        image, captions = pairs.read(index)
        found[key] = red(image), list(captions)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    for number, name in enumerate(["a.png", "sub/b.png", "sub/c.PNG"]):
        picture(10 * number).save(tmp_path / name, "PNG")
    (tmp_path / "a.txt").write_text("a first\n\n a second \n", encoding="utf-8")
    (tmp_path / "sub/b.txt").write_text("\ufeffb caf\u00e9", encoding="utf-8")
    return tmp_path


def test_folder_with_captions(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert contents(folder) == {"a.png": (0, ["a first", "a second"]), "sub/b.png": (10, ["b caf\u00e9"])}
    assert "1 of 3 pictures have no caption" in caplog.text


def test_folder_of_classes(tmp_path: Path) -> None:
    for number, name in enumerate(["red_fox/1.png", "owl/1.png", "owl/2.png"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture(number).save(tmp_path / name)
    assert contents(tmp_path) == {
        "owl/1.png": (1, ["owl"]),
        "owl/2.png": (2, ["owl"]),
        "red_fox/1.png": (0, ["red fox"]),
    }


@pytest.mark.parametrize(("name", "mark"), [("list.csv", ","), ("list.csv", ";"), ("list.tsv", "\t")])
def test_csv(folder: Path, name: str, mark: str) -> None:
    rows = [
        ("Caption", "n", "FilePath"),
        ('"x, y"', "1", "a.png"),
        ("lost", "2", ""),
        ("b", "3", "sub/b.png"),
        ("more", "4", "a.png"),
    ]
    (folder / name).write_text("\n".join(mark.join(row) for row in rows), encoding="utf-8")
    assert contents(folder / name) == {"a.png": (0, ["x, y", "more"]), "sub/b.png": (10, ["b"])}


def test_jsonl(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = [
        '{"image": "a.png", "captions": ["one", "two"]}',
        "{broken",
        "[1]",
        '{"image": "sub/b.png", "captions": "three"}',
    ]
    (folder / "list.jsonl").write_text("\n".join([*lines, '{"image": "a.png", "captions": [4]}']))
    assert contents(folder / "list.jsonl") == {"a.png": (0, ["one", "two"]), "sub/b.png": (10, ["three"])}
    assert "3 rows lack a picture" in caplog.text


def shard(path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def encoded(value: int) -> bytes:
    stream = io.BytesIO()
    picture(value).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    shard(
        tmp_path / "s-00.tar",
        [("x/1.png", encoded(1)), ("x/1.txt", b"one"), ("2.PNG", encoded(2)), ("2.cls", b"7")],
    )
    third = json.dumps({"caption": "three", "url": "u"}).encode()
    shard(
        tmp_path / "s-01.tar",
        [
            ("3.json", third),
            ("3.png", encoded(3)),
            ("4.seg.png", encoded(9)),
            ("4.txt", b"four"),
            ("5.png", encoded(5)),
            ("5.txt", b"five"),
        ],
    )
    return tmp_path


def test_shards(shards: Path) -> None:
    want = {"s-00.tar/x/1": (1, ["one"]), "s-01.tar/3": (3, ["three"]), "s-01.tar/5": (5, ["five"])}
    for location in (shards, shards / "*.tar", shards / "s-{00..01}.tar"):
        assert contents(location) == want
    assert list(contents(shards / "s-00.tar")) == ["s-00.tar/x/1"]


def test_a_damaged_shard_gives_what_is_whole(shards: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = shards / "s-01.tar"
    path.write_bytes(path.read_bytes()[: 512 * 5 + 100])  # inside the fourth member
    assert list(contents(shards)) == ["s-00.tar/x/1", "s-01.tar/3"]
    assert "s-01.tar: damaged" in caplog.text


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("name,words\n1,2\n")
    (tmp_path / "bare").mkdir()
    picture(0).save(tmp_path / "bare" / "alone.png")
    (tmp_path / "s.tar.gz").write_bytes(b"")
    for location, message in [
        ("", "data: not set"),
        (str(tmp_path / "none"), "no such folder or file"),
        (str(tmp_path / "none.csv"), "cannot be read"),
        (str(tmp_path / "x.csv"), "no column image or path or .*; there are 'name', 'words'"),
        (str(tmp_path / "bare"), "holds no pair"),
        (str(tmp_path / "s.tar.gz"), "expected an uncompressed .tar"),
        (str(tmp_path / "*.tar"), "no such shard"),
        ("shapes:many", "expected shapes:N"),
    ]:
        with pytest.raises(TrainingError, match=message):
            open_pairs(location)
    with pytest.raises(TrainingError, match=r"no 'cvs'; did you mean csv\?"):
        open_pairs(str(tmp_path), "cvs")


def stream(recipe: Recipe, shard: Shard | None = None) -> ShuffledPairs:
    torch.manual_seed(0)
    return ShuffledPairs(recipe, start(recipe), shard or Shard())


def ids(batches: ShuffledPairs, step: int) -> list[tuple[int, ...]]:
    return [tuple(row[row != 0].tolist()) for row in batches.batch(step).input_ids]


def test_an_epoch_shows_every_training_pair_once_and_no_other() -> None:
    batches = stream(tiny(validation_share=0.2, batch_size=16))
    shown = Counter(row for step in range(6) for row in ids(batches, step))
    assert len(batches.shuffled.train) == 96  # of 120: six batches of 16
    assert set(shown.values()) == {1}
    assert len(shown) == 96
    assert ids(batches, 0) != ids(batches, 6)  # the next epoch has another order
    held_out = {tuple(row[row != 0].tolist()) for batch in batches._validation() for row in batch.input_ids}
    assert len(held_out) == 24
    assert not held_out & set(shown)


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    one, two = stream(tiny()), stream(tiny())
    two.batch(3)
    for step in (9, 2):
        first, second = one.batch(step), two.batch(step)
        assert torch.equal(first.pixels, second.pixels)
        assert torch.equal(first.input_ids, second.input_ids)
    assert ids(stream(tiny(seed=1)), 2) != ids(one, 2)


def test_processes_share_a_batch() -> None:
    whole = stream(tiny()).batch(5)
    parts = [stream(tiny(), Shard(rank, 2)).batch(5) for rank in (0, 1)]
    assert torch.equal(torch.cat([part.pixels for part in parts]), whole.pixels)
    assert torch.equal(torch.cat([part.groups for part in parts]), whole.groups)


def test_second_views_only_where_an_objective_asks() -> None:
    assert stream(tiny()).batch(0).second is None
    batch = stream(tiny(objectives=(("info_nce", 1.0), ("image_contrast", 1.0)))).batch(0)
    assert batch.second is not None
    assert batch.second.shape == batch.pixels.shape
    assert not torch.equal(batch.second, batch.pixels)


def test_same_captions_are_one_group(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"c{number % 2}").mkdir(exist_ok=True)
        picture(number).save(tmp_path / f"c{number % 2}" / f"{number}.png")
    recipe = tiny(data=str(tmp_path), batch_size=4, validation_share=0.0, templates=("a {}", "the {}", "{}"))
    groups = stream(recipe).batch(0).groups
    assert sorted(Counter(groups.tolist()).values()) == [2, 2]


def test_unreadable_pairs_are_replaced_and_counted(tmp_path: Path) -> None:
    for number in range(20):
        picture(number).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(f"number {number}")
    (tmp_path / "3.png").write_bytes((tmp_path / "3.png").read_bytes()[:40])
    (tmp_path / "4.txt").write_text("\n")
    recipe = tiny(data=str(tmp_path), batch_size=20, validation_share=0.0)
    batches = stream(recipe)
    batch = batches.batch(0)
    assert set(batch.unreadable) == {"3.png", "4.png"}
    assert batch.pixels.shape[0] == 20
    for path in tmp_path.glob("*.png"):
        path.unlink()
    with pytest.raises(TrainingError, match="unreadable, and so were 19 pairs"):
        batches.batch(1)


def test_too_few_pairs() -> None:
    with pytest.raises(
        TrainingError, match=r"shapes:20: \d+ training pairs \(\d+ held out\), fewer than batch_size 16"
    ):
        stream(tiny(data="shapes:20", validation_share=0.5))


def test_split_is_stable_under_growth() -> None:
    keys = [f"picture {number}" for number in range(2000)]
    _, held = split_by_hash(keys[:1000], 0.1)
    _, more = split_by_hash(keys, 0.1)
    assert held.tolist() == [index for index in more.tolist() if index < 1000]
    assert 150 < len(more) < 250


SPEC = Preprocessing((16, 24), "squash", "bicubic", (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
OFF = Augmentation(crop_scale=(1.0, 1.0), crop_ratio=(1.5, 1.5))  # the whole of a 3:2 picture


def gradient(width: int = 96, height: int = 64) -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, (x + y) / 2], -1).astype(np.uint8))


def view(how: Augmentation, seed: int = 0, source: Picture | None = None) -> np.ndarray:
    return augmented(gradient() if source is None else source, SPEC, how, np.random.default_rng(seed), "x")


def test_without_augmentation_it_is_the_runtimes_preprocessing() -> None:
    np.testing.assert_allclose(view(OFF), preprocess(gradient(), SPEC), rtol=0, atol=1.01 / 255 / 0.2)


def test_augmentation_does_what_it_says() -> None:
    plain = view(OFF)
    mean, std = (np.array(values).reshape(3, 1, 1) for values in (SPEC.mean, SPEC.std))
    flipped = view(Augmentation(crop_scale=(1, 1), crop_ratio=(1.5, 1.5), flip=1.0))
    np.testing.assert_allclose(flipped, plain[:, :, ::-1], atol=1e-6)
    grey = view(Augmentation(crop_scale=(1, 1), crop_ratio=(1.5, 1.5), grey=1.0)) * std + mean
    assert np.ptp(grey, axis=0).max() < 1e-5
    luma = np.tensordot([0.299, 0.587, 0.114], plain * std + mean, 1)
    np.testing.assert_allclose(grey[0], luma, atol=1e-5)
    bright = view(Augmentation(crop_scale=(1, 1), crop_ratio=(1.5, 1.5), brightness=0.5), seed=3) * std + mean
    ratio = (bright / np.maximum(plain * std + mean, 1e-3))[:, 2:8, 2:8]
    assert np.ptp(ratio) < 0.01
    assert abs(ratio.mean() - 1) > 0.05


def test_crops_keep_their_share_and_shape() -> None:
    # Red runs 0-1 from left to right, green from top to bottom: the ends of a crop can be read off.
    how = Augmentation(crop_scale=(0.25, 0.25), crop_ratio=(1.0, 1.0))
    mean, std = (np.array(values).reshape(3, 1, 1) for values in (SPEC.mean, SPEC.std))
    lefts = []
    for seed in range(20):
        shown = view(how, seed) * std + mean
        across, down = (
            np.ptp(shown[0]) * 96,
            np.ptp(shown[1]) * 64,
        )  # pixels of the source, less half a step at both ends
        assert across == pytest.approx(39.2 * 23 / 24, abs=2)  # sqrt(0.25 * 96 * 64) = 39.2
        assert down == pytest.approx(39.2 * 15 / 16, abs=2)
        lefts.append(shown[0].min())
    assert min(lefts) < 0.1
    assert max(lefts) > 0.4


def test_large_jpegs_are_decoded_small(tmp_path: Path) -> None:
    gradient(1536, 1024).save(tmp_path / "big.jpg", quality=95)
    np.testing.assert_allclose(view(OFF, source=tmp_path / "big.jpg"), view(OFF), rtol=0, atol=3 / 255 / 0.2)


def test_photographs_as_a_folder() -> None:
    photographs = Path(__file__).parents[2] / "../shared/data/coco64"
    if not photographs.is_dir():
        pytest.skip("needs the folder of photographs beside the checkout")
    paths = sorted(photographs.rglob("*.jpg"))[:8]
    for path in paths:
        shown = augmented(path, SPEC, Augmentation(), np.random.default_rng(0), str(path))
        assert shown.shape == (3, 16, 24)
        assert np.isfinite(shown).all()
        assert shown.std() > 0.05


def test_truncation_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    from edgeclip.models.training.loop import told_once

    with caplog.at_level(logging.WARNING), told_once():
        logger = logging.getLogger("edgeclip.runtime.text.tokenize")
        logger.warning("cut")
        logger.warning("cut")
    logging.getLogger("edgeclip.runtime.text.tokenize").warning("cut")
    assert caplog.text.count("cut") == 2
