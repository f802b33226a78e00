"""Building an index: what is embedded, what is left alone, and what an interruption leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import edgeclip
from edgeclip import InputError, Model
from edgeclip.runtime.index import build, ways
from edgeclip.runtime.index.build import BuildReport, BuildSettings, Progress, build_index
from edgeclip.runtime.index.index import Index
from edgeclip.runtime.index.sources import open_source
from tests.index.test_sources import parquet, shard
from tests.mutants import broken
from tests.runtime.detectors import make_detector, scene
from tests.runtime.toy import make_bundle, picture

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with edgeclip.load(make_bundle(tmp_path_factory.mktemp("toy") / "b"), threads=1) as opened:
        yield opened


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for n, name in enumerate(["a.png", "b.png", "below/c.png", "below/d.png", "e.png"]):
        save(folder / name, n)
    return folder


def save(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(seed)).save(path)
    return path


def counts(report: BuildReport) -> tuple[int, int, int, int, int, int]:
    """added, updated, unchanged, removed, failures, embedded."""
    made = report
    return made.added, made.updated, made.unchanged, made.removed, len(made.failures), made.embedded


def stored(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    with Index.open(path) as index:
        return {
            item.key: vector
            for _, vectors, items in index.batches()
            for item, vector in zip(items, vectors, strict=True)
        }


def records(path: Path) -> dict[str, Mapping[str, Any]]:
    with Index.open(path) as index:
        return {item.key: item.record for _, item in index.items()}


def holds(path: Path, folder: Path, model: Model) -> None:
    """The index has the folder's pictures and no others, each with the vector that the model gives it. fp16 rounds by 5e-4 at most."""
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.png"))
    found = stored(path)
    assert sorted(found) == names
    wanted = model.embed_images([folder / name for name in names])
    np.testing.assert_allclose(np.stack([found[name] for name in names]), wanted, rtol=0, atol=5e-4)


def test_a_folder_becomes_an_index_of_its_pictures(photos: Path, tmp_path: Path, model: Model) -> None:
    told: list[tuple[int, int | None]] = []
    report = build_index(
        photos, tmp_path / "i", model, tell=lambda made: told.append((made.done, made.total))
    )
    assert counts(report) == (5, 0, 0, 0, 0, 5)
    assert told == [(n, 5) for n in range(1, 6)]
    assert report.recall is not None
    assert report.recall["recall"] == 1
    assert report.rate == 5 / report.seconds
    holds(tmp_path / "i", photos, model)
    with Index.open(tmp_path / "i", model) as index:
        assert index.search(photos / "below/c.png", 1)[0].key == "below/c.png"
        assert index.verify() == []


def only_what_changed(photos: Path, tmp_path: Path, model: Model) -> None:
    """Nothing is embedded twice; what changed is, and only that."""
    place = tmp_path / "i"
    build_index(photos, place, model, overwrite=True)
    assert counts(build_index(photos, place, model)) == (0, 0, 5, 0, 0, 0)
    before = stored(place)
    time = (photos / "a.png").stat().st_mtime_ns
    save(photos / "a.png", 40)  # another picture with another time
    os.utime(photos / "a.png", ns=(time + 1_000_000_000,) * 2)
    save(photos / "f.png", 41)
    (photos / "b.txt").write_text("a wave")  # the same picture with a caption
    assert counts(build_index(photos, place, model)) == (1, 2, 4 - 1, 0, 0, 2)
    holds(place, photos, model)
    assert records(place)["b.png"]["caption"] == "a wave"
    np.testing.assert_array_equal(stored(place)["b.png"], before["b.png"])
    assert counts(build_index(photos, place, model)) == (0, 0, 6, 0, 0, 0)


def test_only_what_is_new_or_changed_is_embedded(photos: Path, tmp_path: Path, model: Model) -> None:
    only_what_changed(photos, tmp_path, model)


@pytest.mark.parametrize(
    ("owner", "name", "old", "new"),
    [
        (
            ways,
            "same_content",
            '("size", "mtime")',
            '("size",)',
        ),  # a touched file of the same size is overlooked
        (ways, "same_content", "old.get(name) == new.get(name)", "False"),  # everything is embedded again
        (build._Build, "_is_new", "dict(was.record) != item.record", "False"),  # a new caption is overlooked
        (build._Build, "_write", "if items:", "if items and len(items) > 2:"),  # the last batch is lost
    ],
    ids=["size only", "always", "record", "last batch"],
)
def test_a_broken_build_is_noticed(
    owner: Any,
    name: str,
    old: str,
    new: str,
    photos: Path,
    tmp_path: Path,
    model: Model,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if name == "same_content":  # pictures of one size, so that only the time tells
        save(photos / "a.png", 0)
        monkeypatch.setattr(build, "AT_ONCE", 2)
    monkeypatch.setattr(owner, name, broken(getattr(owner, name), old, new))
    if "size" in new:
        (photos / "a.png").write_bytes((photos / "a.png").read_bytes())
        size = (photos / "a.png").stat().st_size

        def same_size(path: Path, seed: int) -> Path:
            Image.fromarray(picture(seed)).save(path)
            path.write_bytes(path.read_bytes().ljust(max(size, 9000), b"\0"))
            return path

        monkeypatch.setitem(only_what_changed.__globals__, "save", same_size)
        same_size(photos / "a.png", 0)
    with pytest.raises(AssertionError):
        only_what_changed(photos, tmp_path, model)


def test_without_update_a_key_that_is_there_is_left_alone(photos: Path, tmp_path: Path, model: Model) -> None:
    build_index(photos, tmp_path / "i", model)
    save(photos / "a.png", 40)
    assert counts(build_index(photos, tmp_path / "i", model, how=BuildSettings(update=False))) == (
        0,
        0,
        5,
        0,
        0,
        0,
    )


def test_prune_removes_what_is_gone_from_this_source_only(photos: Path, tmp_path: Path, model: Model) -> None:
    place, other = tmp_path / "i", save(tmp_path / "other/z.png", 9).parent
    build_index(photos, place, model)
    build_index(other, place, model)
    build_index(photos, place, model, how=BuildSettings(proposals=None))
    (photos / "below/c.png").unlink()
    assert counts(build_index(photos, place, model)) == (0, 0, 4, 0, 0, 0)
    assert counts(build_index(photos, place, model, how=BuildSettings(prune=True))) == (0, 0, 4, 1, 0, 0)
    assert sorted(stored(place)) == ["a.png", "b.png", "below/d.png", "e.png", "z.png"]


def test_prune_stays_within_the_folders_that_were_given(photos: Path, tmp_path: Path, model: Model) -> None:
    place, how = tmp_path / "i", BuildSettings(prune=True)
    build_index(photos, place, model)
    for name in ("a.png", "below/c.png"):
        (photos / name).unlink()
    save(photos / "below/new.png", 7)
    report = build_index(open_source(photos / "below", root=photos), place, model, how=how)
    assert counts(report) == (1, 0, 1, 1, 0, 1)
    assert sorted(stored(place)) == ["a.png", "b.png", "below/d.png", "below/new.png", "e.png"]
    assert counts(build_index(open_source([photos / "b.png"]), place, model, how=how)) == (0, 0, 1, 0, 0, 0)
    assert build_index(photos, place, model, how=how).removed == 1


def test_an_empty_source_prunes_nothing(photos: Path, tmp_path: Path, model: Model) -> None:
    place, how = tmp_path / "i", BuildSettings(prune=True)
    build_index(photos, place, model)
    for file in photos.rglob("*.*"):
        if file.is_file():
            file.unlink()
    report = build_index(photos, place, model, how=how)
    assert report.removed == 0
    ((name, reason),) = report.failures
    assert name == "--prune"
    assert "the source is empty and all" in reason
    with Index.open(place) as index:
        assert len(index) > 0


def test_nothing_is_pruned_by_a_source_that_was_not_read_to_its_end(tmp_path: Path, model: Model) -> None:
    place = tmp_path / "i"
    path = shard(tmp_path / "s.tar", {f"{n}.png": save(tmp_path / "x.png", n).read_bytes() for n in range(3)})
    assert counts(build_index(path, place, model)) == (3, 0, 0, 0, 0, 3)
    assert counts(build_index(path, place, model)) == (0, 0, 3, 0, 0, 0)
    path.write_bytes(path.read_bytes()[:3000])
    report = build_index(path, place, model, how=BuildSettings(prune=True))
    assert report.removed == 0
    assert report.failures[-1] == (
        "--prune",
        "nothing was removed, since the source could not be read to its end.",
    )
    assert "damaged" in report.failures[0][1]
    assert len(stored(place)) == 3


def test_what_cannot_be_read_is_told_and_tried_again(photos: Path, tmp_path: Path, model: Model) -> None:
    whole = (photos / "b.png").read_bytes()
    (photos / "b.png").write_bytes(whole[:60])
    shards = shard(tmp_path / "s.tar", {"1.png": whole, "2.png": b"nothing", "3.png": whole})
    report = build_index(photos, tmp_path / "i", model)
    assert counts(report) == (4, 0, 0, 0, 1, 4)
    assert report.failures[0][0] == "b.png"
    assert report.failures[0][1].startswith(f"{photos}/b.png: the picture")
    report = build_index(shards, tmp_path / "i", model)
    assert report.failures == [("s.tar/2", report.failures[0][1])]
    assert report.failures[0][1].startswith("s.tar/2: not a picture that can be read.")
    (photos / "b.png").write_bytes(whole)
    assert counts(build_index(photos, tmp_path / "i", model)) == (1, 0, 4, 0, 0, 1)


def test_a_name_of_another_source_is_not_overwritten(photos: Path, tmp_path: Path, model: Model) -> None:
    other = save(tmp_path / "other/a.png", 9).parent
    build_index(photos, tmp_path / "i", model)
    report = build_index(other, tmp_path / "i", model)
    assert report.failures == [
        (
            "a.png",
            f"a.png: the index holds another of this name, from {photos}. Pass --root with a folder above both.",
        )
    ]
    (photos / "a.png").unlink()  # now it has moved
    assert counts(build_index(other, tmp_path / "i", model)) == (0, 1, 0, 0, 0, 1)


def test_a_name_that_is_there_twice_counts_once(tmp_path: Path, model: Model) -> None:
    data = save(tmp_path / "a.png", 1).read_bytes()
    table = parquet(tmp_path / "t.parquet", {"key": ["x", "x"], "image": [data, data]})
    report = build_index(table, tmp_path / "i", model)
    assert report.failures == [("x", "x: there twice in the source; the first is used.")]
    assert report.added == 1


def test_an_interruption_keeps_what_was_embedded(photos: Path, tmp_path: Path, model: Model) -> None:
    def stop(made: Progress) -> None:
        if made.done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_index(photos, tmp_path / "i", model, how=BuildSettings(batch_size=1), tell=stop)
    assert len(stored(tmp_path / "i")) == 3
    assert counts(build_index(photos, tmp_path / "i", model)) == (2, 0, 3, 0, 0, 2)
    holds(tmp_path / "i", photos, model)


KILLED = """
import os, signal, sys
import edgeclip
from edgeclip.runtime.index import build
build.WRITE_ROWS, build.WRITE_SECONDS = 2, 1e9
def stop(made):
    if made.done == 5:
        os.kill(os.getpid(), signal.SIGKILL)
with edgeclip.load(sys.argv[1], threads=1) as model:
    build.build_index(sys.argv[2], sys.argv[3], model, how=build.BuildSettings(batch_size=1), tell=stop)
"""


def test_a_build_that_was_killed_goes_on(photos: Path, tmp_path: Path, model: Model) -> None:
    arguments = [sys.executable, "-c", KILLED, str(model.bundle.root), str(photos), str(tmp_path / "i")]
    assert subprocess.run(arguments, check=False).returncode == -signal.SIGKILL
    assert len(stored(tmp_path / "i")) == 4
    assert counts(build_index(photos, tmp_path / "i", model)) == (1, 0, 4, 0, 0, 1)
    holds(tmp_path / "i", photos, model)


def test_settings_belong_to_the_index(photos: Path, tmp_path: Path, model: Model) -> None:
    build_index(photos, tmp_path / "i", model, settings={"precision": "int8"})
    assert counts(build_index(photos, tmp_path / "i", model)) == (0, 0, 5, 0, 0, 0)
    with pytest.raises(
        InputError, match=r"i: was made with precision int8, got fp16\. Leave it out, or pass --overwrite"
    ):
        build_index(photos, tmp_path / "i", model, settings={"precision": "fp16"})
    assert (
        build_index(photos, tmp_path / "i", model, settings={"precision": "fp16"}, overwrite=True).added == 5
    )
    for wrong in ({"batch_size": 0}, {"proposals": 0}, {"captions": True, "proposals": 2}):
        with pytest.raises(InputError, match=r"expected"):
            BuildSettings(**wrong)  # type: ignore[arg-type]


def test_ready_made_vectors_need_a_model_that_is_named(tmp_path: Path, model: Model) -> None:
    rows = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    columns = {"key": list("abcd"), "embedding": list(rows), "caption": list("wxyz")}
    plain = parquet(tmp_path / "plain.parquet", columns)
    named = parquet(tmp_path / "named.parquet", columns, {"edgeclip.model_id": "1" * 64})
    other = parquet(tmp_path / "other.parquet", columns, {"edgeclip.model_id": "2" * 64})
    for given in (None, model):
        with pytest.raises(InputError, match=r"plain\.parquet: does not say which model made its vectors"):
            build_index(plain, tmp_path / "i", given)
    with pytest.raises(
        InputError, match=r"other\.parquet: vectors of a model \(222222222222\), the bundle is toy"
    ):
        build_index(other, tmp_path / "i", model)
    assert not (tmp_path / "i").exists()
    assert counts(build_index(named, tmp_path / "i", None)) == (4, 0, 0, 0, 0, 4)
    np.testing.assert_allclose(np.stack(list(stored(tmp_path / "i").values())), rows, atol=5e-4)
    with pytest.raises(InputError, match=r"i: holds vectors of .* \(width 8\), the source's are of "):
        build_index(other, tmp_path / "i", None)
    assert counts(build_index(plain, tmp_path / "i", model, how=BuildSettings(trust=True))) == (
        0,
        4,
        0,
        0,
        0,
        0,
    )
    assert counts(build_index(plain, tmp_path / "i", model, how=BuildSettings(trust=True))) == (
        0,
        0,
        4,
        0,
        0,
        0,
    )
    lines = [json.dumps({"id": "e", "vector": [2.0, *[0] * 7]}), json.dumps({"id": "f", "vector": [1.0]})]
    (tmp_path / "v.jsonl").write_text("\n".join(lines))
    report = build_index(tmp_path / "v.jsonl", tmp_path / "i", model, how=BuildSettings(trust=True))
    assert report.failures == [("f", "f: expected a vector of width 8, got 1.")]
    np.testing.assert_allclose(stored(tmp_path / "i")["e"], np.eye(8)[0], atol=5e-4)
    with pytest.raises(
        InputError, match=r"holds vectors; captions and regions are embedded where there are none"
    ):
        build_index(plain, tmp_path / "i", model, how=BuildSettings(trust=True, captions=True))


def test_captions_are_embedded_as_texts(photos: Path, tmp_path: Path, model: Model) -> None:
    (photos / "a.txt").write_text("a cat\na dog")
    place, how = tmp_path / "i", BuildSettings(captions=True, prune=True)
    report = build_index(photos, place, model, how=how)
    assert counts(report) == (2, 0, 0, 0, 4, 2)
    assert report.failures[0] == ("b.png", "b.png: has no caption.")
    np.testing.assert_allclose(stored(place)["a.png#caption2"], model.embed_texts("a dog"), atol=5e-4)
    assert (
        records(place)["a.png#caption1"].items()
        >= {"of": "a.png", "caption": "a cat", "path": "a.png"}.items()
    )
    build_index(photos, place, model, how=BuildSettings(prune=True))  # pictures beside them
    assert len(stored(place)) == 7
    (photos / "a.txt").write_text("a bicycle")  # the picture itself is as it was
    assert counts(build_index(photos, place, model, how=how))[:4] == (0, 1, 0, 1)
    np.testing.assert_allclose(stored(place)["a.png#caption1"], model.embed_texts("a bicycle"), atol=5e-4)
    (tmp_path / "words.txt").write_text("a dog\na cat\n")
    report = build_index(tmp_path / "words.txt", tmp_path / "w", model, how=BuildSettings(captions=True))
    assert sorted(stored(tmp_path / "w")) == ["words.txt:1", "words.txt:2"]
    report = build_index(tmp_path / "words.txt", tmp_path / "w", model)
    assert "has no picture, only a caption. Pass --captions to embed those." in report.failures[0][1]


def test_regions_by_boxes_and_by_proposals(tmp_path: Path) -> None:
    folder, place = tmp_path / "photos", tmp_path / "i"
    folder.mkdir()
    Image.fromarray(scene({(0, 0): RED, (3, 4): BLUE})).save(folder / "two.png")
    Image.fromarray(scene({(1, 1): GREEN})).save(folder / "one.png")
    boxes = {folder / "two.png": [[0, 0, 16, 16], [32, 24, 48, 40]], folder / "gone.png": [[0, 0, 1, 1]]}
    with edgeclip.load(make_detector(tmp_path / "b", objectness=True), threads=1) as detector:
        report = build_index(folder, place, detector, how=BuildSettings(boxes=boxes))
        assert counts(report) == (2, 0, 0, 0, 1, 1)
        assert report.failures[0][1].endswith(
            "gone.png: has boxes, but the source has no such picture. Check both paths."
        )
        assert sorted(stored(place)) == ["two.png#0,0,16,16", "two.png#32,24,48,40"]
        wanted = detector.embed_regions(folder / "two.png", boxes[folder / "two.png"])
        np.testing.assert_allclose(np.stack(list(stored(place).values())), wanted, atol=5e-4)
        assert counts(build_index(folder, place, detector, how=BuildSettings(boxes=boxes))) == (
            0,
            0,
            2,
            0,
            1,
            0,
        )
        boxes[folder / "two.png"] = [[0, 0, 16, 16]]
        assert counts(build_index(folder, place, detector, how=BuildSettings(boxes=boxes))) == (
            0,
            1,
            0,
            1,
            1,
            1,
        )
        report = build_index(folder, place, detector, how=BuildSettings(proposals=2))
        assert report.embedded == 2
        assert {record["proposals"] for record in records(place).values()} == {2}
        assert build_index(folder, place, detector, how=BuildSettings(proposals=2)).embedded == 0
        assert build_index(folder, place, detector, how=BuildSettings(proposals=1)).embedded == 2
        tar = shard(tmp_path / "s.tar", {"a.png": (folder / "one.png").read_bytes()})
        report = build_index(tar, place, detector, how=BuildSettings(proposals=1))
        assert "regions are taken of picture files" in report.failures[0][1]


def test_a_source_without_a_model_or_of_nothing_is_refused(
    photos: Path, tmp_path: Path, model: Model
) -> None:
    with pytest.raises(InputError, match=r"photos: holds no vectors\. Pass a model"):
        build_index(photos, tmp_path / "i", None)
    (tmp_path / "empty").mkdir()
    report = build_index(tmp_path / "empty", tmp_path / "i", model)
    assert counts(report) == (0, 0, 0, 0, 0, 0)
    assert report.recall is None
    assert build_index(open_source(photos), tmp_path / "i", model).added == 5
