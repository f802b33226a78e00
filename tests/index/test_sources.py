"""What an index is built from: folders, shards, tables and texts, whole and damaged. Files are written by tarfile, csv, json and pyarrow."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import pickle
import tarfile
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeclip import InputError
from edgeclip.runtime.index.sources import Entry, Unreadable, entry, open_source, webdataset
from edgeclip.runtime.index.sources.entry import same_content
from tests.mutants import broken

pyarrow = pytest.importorskip("pyarrow")


def entries(location: Any, root: Any = None) -> dict[str, Entry]:
    """By key; nothing may be unreadable."""
    found = list(open_source(location, root))
    assert not [one for one in found if isinstance(one, Unreadable)], found
    return {one.key: one for one in found if isinstance(one, Entry)}


def only_reason(location: Any) -> str:
    (found,) = open_source(location)
    assert isinstance(found, Unreadable)
    return found.reason


def write(folder: Path, files: Mapping[str, bytes | str]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


def shard(path: Path, members: Mapping[str, bytes | str]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            raw = data.encode() if isinstance(data, str) else data
            facts = tarfile.TarInfo(name)
            facts.size = len(raw)
            archive.addfile(facts, io.BytesIO(raw))
    return path


# --- folders


def test_a_folder_gives_its_pictures_by_name_with_what_lies_beside_them(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "b.JPG": "bb", "a.png": "a", "below/c.webp": "ccc", "notes.md": "no picture", ".hidden.jpg": "x", ".git/d.jpg": "x",
            "a.txt": "\ufeffa red car\n\n  a fast car \n", "b.txt": "one", "b.json": json.dumps({"caption": "not this", "year": 2020, "size": "XL", "tags": ["x"]}),
        },
    )  # fmt: skip
    (tmp_path / "link").symlink_to(tmp_path / "below")
    found = entries(tmp_path)
    assert list(found) == ["a.png", "b.JPG", "below/c.webp"]
    assert found["a.png"].captions == ["a red car", "a fast car"]
    assert found["a.png"].record["caption"] == "a red car"
    facts = (tmp_path / "b.JPG").stat()
    assert found["b.JPG"].record == {
        "source": str(tmp_path), "path": "b.JPG", "size": 2, "mtime": facts.st_mtime, "caption": "one", "year": 2020, "field_size": "XL",
    }  # fmt: skip
    assert found["below/c.webp"].picture == tmp_path / "below/c.webp"
    assert open_source(tmp_path).count() == 3


def test_pictures_one_by_one_and_a_root_above_them(tmp_path: Path) -> None:
    write(tmp_path, {"x/a.png": "a", "x/y/b.png": "b"})
    assert list(entries([tmp_path / "x/y/b.png", tmp_path / "x/a.png"])) == ["b.png", "a.png"]
    assert list(entries(tmp_path / "x/y/b.png")) == ["b.png"]
    assert list(entries([tmp_path / "x/y", tmp_path / "x/a.png"], tmp_path)) == ["x/y/b.png", "x/a.png"]
    with pytest.raises(InputError, match=r"not below --root .*x/y\. Choose a folder above it"):
        open_source([tmp_path / "x/a.png"], tmp_path / "x/y")
    with pytest.raises(InputError, match=r"no\.png: no such file or folder"):
        open_source([tmp_path / "no.png"])


def test_what_a_folder_cannot_give_is_told(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jpg")).write_bytes(b"x")
    assert "the name is no Unicode. Rename the file." in only_reason(tmp_path)
    other = write(tmp_path / "other", {"a.jpg": "x", "a.json": "[1]"})
    assert only_reason(other) == f"{other}/a.json: expected one JSON object, got a list. Mend or remove it."


def test_a_folder_that_cannot_be_read_leaves_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {"a/x.png": "x", "b/y.png": "y"})
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("/a"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found, told = list(open_source(tmp_path))
    assert isinstance(found, Entry)
    assert found.key == "b/y.png"
    assert told == Unreadable(
        f"{tmp_path}/a", f"{tmp_path}/a: the folder cannot be read (Permission denied).", partly=True
    )


# --- shards

SAMPLES = {
    "0001.jpg": b"\xff" * 700, "0001.txt": "a cat\nasleep", "0001.json": '{"width": 3}',
    "d.x/0002.seg.png": b"p" * 10, "d.x/0002.png": b"q" * 1025, "d.x/0002.json": '{"caption": "a dog", "key": "000"}',
    "0003.cls": "4", "0004.JPEG": b"r" * 512,
}  # fmt: skip


def test_members_of_one_name_before_the_first_dot_are_one_sample(tmp_path: Path) -> None:
    path = shard(tmp_path / "s-000.tar", SAMPLES)
    found = entries(path)
    assert {key: one.picture for key, one in found.items()} == {
        "s-000.tar/0001": b"\xff" * 700, "s-000.tar/d.x/0002": b"q" * 1025, "s-000.tar/0004": b"r" * 512,
    }  # fmt: skip
    record = found["s-000.tar/0001"].record
    assert found["s-000.tar/0001"].captions == ["a cat", "asleep"]
    assert (record["width"], record["size"], record["path"]) == (3, 700, "0001.jpg")
    assert record["sha256"] == hashlib.sha256(b"\xff" * 700).hexdigest()
    assert path.read_bytes()[record["offset"] :][: record["size"]] == b"\xff" * 700
    assert found["s-000.tar/d.x/0002"].record["field_key"] == "000"
    assert open_source(path).count() == 3


def test_patterns_and_folders_of_shards(tmp_path: Path) -> None:
    for number in (9, 10, 11):
        shard(tmp_path / f"s-{number:03}.tar", {"a.jpg": str(number)})
    for location in (tmp_path, tmp_path / "s-*.tar", tmp_path / "s-{009..011}.tar"):
        assert list(entries(location)) == ["s-009.tar/a", "s-010.tar/a", "s-011.tar/a"]
    assert list(entries(tmp_path / "s-{010..010}.tar")) == ["s-010.tar/a"]
    with pytest.raises(InputError, match=r"no such shard"):
        open_source(tmp_path / "t-{0..3}.tar")
    (tmp_path / "z.tar.gz").write_bytes(b"x")
    with pytest.raises(InputError, match=r"expected an uncompressed \.tar"):
        open_source(tmp_path / "z.tar.gz")


def test_a_folder_of_pictures_and_shards_is_asked_about(tmp_path: Path) -> None:
    shard(tmp_path / "s.tar", {"a.jpg": "1"})
    write(tmp_path, {"below/x.jpg": "x", ".y.jpg": "y"})
    assert list(entries(tmp_path)) == ["s.tar/a"]
    write(tmp_path, {"y.jpg": "y"})
    with pytest.raises(
        InputError, match=r"holds what webdataset and folder read\. Say which is meant with --kind"
    ):
        open_source(tmp_path)
    assert [one.key for one in open_source(tmp_path, kind="folder")] == ["y.jpg", "below/x.jpg"]
    assert [one.key for one in open_source(tmp_path, kind="webdataset")] == ["s.tar/a"]
    with pytest.raises(InputError, match=r"kind 'zip': unknown\. Choose from parquet, csv,"):
        open_source(tmp_path, kind="zip")


def cut_everywhere(tmp_path: Path) -> None:
    """A shard cut at every block and in between gives the first samples, byte for byte, and says that it was cut."""
    whole = shard(tmp_path / "s.tar", SAMPLES)
    data, wanted = whole.read_bytes(), list(entries(whole).values())
    last = wanted[-1].record
    end = last["offset"] + last["size"]
    for length in sorted({*range(0, end + 512, 173), *range(0, end + 512, 512)}):
        whole.write_bytes(data[:length])
        found = list(open_source(whole))
        told, got = found[-1], [one for one in found if isinstance(one, Entry)]
        assert isinstance(told, Unreadable), length
        assert told.partly
        assert len(got) == len(found) - 1
        assert [one.picture for one in got] == [one.picture for one in wanted[: len(got)]]
        held = sum(one.record["offset"] + one.record["size"] <= length for one in wanted)
        assert len(got) == held, length


def test_a_shard_cut_anywhere_gives_what_is_whole_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_everywhere(tmp_path)
    for name, old, new in (
        ("_groups", 'problem = "" if _ends(path, archive.offset) else "it has no end"', 'problem = ""'),
        ("_groups", "if members and not _within(path, members)", "if members and False"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(webdataset, name, broken(getattr(webdataset, name), old, new))
            with pytest.raises(AssertionError):
                cut_everywhere(tmp_path)


def test_a_damaged_header_inside_ends_a_shard(tmp_path: Path) -> None:
    path = shard(tmp_path / "s.tar", SAMPLES)
    data = bytearray(path.read_bytes())
    at = data.index(b"d.x/0002.png\0")
    data[at + 100 : at + 140] = b"\x07" * 40
    path.write_bytes(data)
    found = list(open_source(path))
    assert [one.key for one in found] == ["s.tar/0001", "s.tar/d.x/0002", "s.tar"] or [
        one.key for one in found
    ] == ["s.tar/0001", "s.tar"]
    assert isinstance(found[-1], Unreadable)
    assert found[-1].partly


class Trap:
    def __reduce__(self) -> Any:
        return (exec, ("import os; os.environ['SPRUNG'] = '1'",))


def test_pickles_in_a_shard_are_not_opened(tmp_path: Path) -> None:
    trap = pickle.dumps(Trap())
    path = shard(tmp_path / "s.tar", {"a.jpg": "x", "a.pyd": trap, "a.pickle": trap, "a.pth": trap})
    assert list(entries(path)) == ["s.tar/a"]
    assert "SPRUNG" not in os.environ


# --- tables


def test_csv_names_pictures_beside_it_with_numbers_as_numbers(tmp_path: Path) -> None:
    write(tmp_path, {"p/a.jpg": "a", "p/b.jpg": "b"})
    with (tmp_path / "list.csv").open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerows(
            [
                ["File_Name", "caption", "year", "code", "share", "path_"],
                ["p/a.jpg", "one", 2020, "007", 0.5, ""],
            ]
        )
        rows.writerows([["p/b.jpg", "", "-3", "1e5", "nan", ""], ["p/a.jpg", "two, or so", 2021, "", "", ""]])
    found = entries(tmp_path / "list.csv")
    assert list(found) == ["p/a.jpg", "p/b.jpg"]
    assert found["p/a.jpg"].captions == ["one", "two, or so"]
    assert (
        found["p/a.jpg"].record.items()
        >= {"year": 2020, "code": "007", "share": 0.5, "size": 1, "path": "p/a.jpg"}.items()
    )
    assert found["p/b.jpg"].record.items() >= {"year": -3, "code": "1e5"}.items()
    assert "share" not in found["p/b.jpg"].record
    assert found["p/a.jpg"].picture == tmp_path / "p/a.jpg"


def test_jsonl_leaves_out_what_is_no_row_and_tells(tmp_path: Path) -> None:
    write(tmp_path, {"a.jpg": "a"})
    lines = [
        '{"image": "a.jpg", "text": ["x", "y"], "n": 1, "deep": {"z": 1}, "ok": true}',
        "{",
        "[1]",
        '{"image": "gone.jpg"}',
        '{"image": 3}',
    ]
    write(tmp_path, {"list.jsonl": "\n".join(lines)})
    found = list(open_source(tmp_path / "list.jsonl"))
    assert isinstance(found[0], Entry)
    assert found[0].record.items() >= {
        "n": 1,
        "ok": True,
        "caption": "x",
        "captions": ["x", "y"],
    }.items() or found[0].captions == ["x", "y"]
    assert "deep" not in found[0].record
    reasons = [one.reason for one in found[1:] if isinstance(one, Unreadable)]
    assert reasons[0].startswith("list.jsonl:2: no JSON (")
    assert reasons[1] == "list.jsonl:3: expected an object, got a list."
    assert reasons[2] == f"{tmp_path}/gone.jpg: cannot be read (No such file or directory)."
    assert reasons[3] == "list.jsonl:5: image: expected a path or an encoded picture, got int."
    assert [one.partly for one in found[1:] if isinstance(one, Unreadable)] == [True, True, False, False]


def parquet(path: Path, columns: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> Path:
    import pyarrow.parquet as pq

    table = pyarrow.table(dict(columns))
    pq.write_table(table.replace_schema_metadata(dict(metadata)) if metadata else table, path)
    return path


def test_parquet_holds_pictures_as_bytes_as_structs_or_by_path(tmp_path: Path) -> None:
    write(tmp_path, {"a.jpg": "a"})
    structs = [
        {"bytes": b"one", "path": "1.jpg"},
        {"bytes": None, "path": "a.jpg"},
        {"bytes": b"two", "path": None},
    ]
    path = parquet(
        tmp_path / "t.parquet",
        {"image": structs, "label": [1, 2, 3], "made": [date(2020, 1, 2)] * 3, "blob": [b"x"] * 3, "texts": [["p", "q"], [], None], "size": [7, 8, 9]},
    )  # fmt: skip
    found = entries(path)
    assert list(found) == ["t.parquet/1.jpg", "a.jpg", "t.parquet:3"]
    assert [one.picture for one in found.values()] == [b"one", tmp_path / "a.jpg", b"two"]
    first = found["t.parquet/1.jpg"]
    assert first.captions == ["p", "q"]
    assert first.record.items() >= {"label": 1, "made": "2020-01-02", "size": 3, "field_size": 7}.items()
    assert "blob" not in first.record
    plain = parquet(tmp_path / "u.parquet", {"png": [b"x", b""], "key": ["k1", "k2"]})
    got, told = open_source(plain)
    assert (got.key, told) == (
        "k1",
        Unreadable("u.parquet:2", "u.parquet:2: png: expected a path or an encoded picture, got nothing."),
    )


def test_tables_that_cannot_be_used_say_why(tmp_path: Path) -> None:
    parquet(tmp_path / "url.parquet", {"url": ["https://x/a.jpg"], "caption": ["x"]})
    with pytest.raises(
        InputError, match=r"url\.parquet: column 'url' names pictures on the network, which are not fetched"
    ):
        open_source(tmp_path / "url.parquet")
    with pytest.raises(
        InputError, match=r"no column image, path, file_name, embedding or caption; there are a, b\."
    ):
        open_source(parquet(tmp_path / "none.parquet", {"a": [1], "b": [2]}))
    write(
        tmp_path,
        {
            "torn.parquet": (tmp_path / "url.parquet").read_bytes()[:-20],
            "empty.csv": "",
            "x.bin.jsonl": "\xff\xfe",
        },
    )
    with pytest.raises(InputError, match=r"torn\.parquet: cannot be read as Parquet"):
        open_source(tmp_path / "torn.parquet")
    with pytest.raises(InputError, match=r"empty\.csv: no column image, .* there are none\."):
        open_source(tmp_path / "empty.csv")
    with pytest.raises(
        InputError, match=r"no such folder or file. Expected pictures or one of parquet, csv,"
    ):
        open_source(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"gone\.csv: cannot be read \(No such file or directory\)"):
        open_source(tmp_path / "gone.csv")


def test_ready_made_vectors_and_whose_they_are(tmp_path: Path) -> None:
    rows = np.eye(3, 4, dtype=np.float32)
    path = parquet(
        tmp_path / "v.parquet",
        {"key": ["a", "b", "c"], "embedding": list(rows), "year": [1, 2, 3]},
        {"edgeclip.model_id": "m" * 64},
    )
    source = open_source(path)
    assert source.has_vectors
    assert source.origin is not None
    assert (source.origin.model_id, source.origin.dim) == ("m" * 64, 4)
    found = entries(path)
    np.testing.assert_array_equal(np.stack([one.vector for one in found.values()]), rows)
    assert found["b"].record == {"source": str(path), "year": 2}
    lines = [json.dumps({"id": n, "vector": row.tolist()}) for n, row in enumerate(rows)]
    lines += ['{"id": 9, "vector": [0, 0]}', '{"id": 10, "vector": "x"}', '{"id": 11, "vector": [1e999]}']
    write(tmp_path, {"v.jsonl": "\n".join(lines)})
    got = list(open_source(tmp_path / "v.jsonl"))
    np.testing.assert_array_equal(np.stack([one.vector for one in got[:3]]), rows)  # type: ignore[union-attr]
    assert [one.key for one in got] == ["0", "1", "2", "v.jsonl:4", "v.jsonl:5", "v.jsonl:6"]


def test_captions_one_a_line(tmp_path: Path) -> None:
    write(tmp_path, {"words.txt": "a cat\n\n a dog \n"})
    found = entries(tmp_path / "words.txt")
    assert {key: one.captions for key, one in found.items()} == {
        "words.txt:1": ["a cat"],
        "words.txt:3": ["a dog"],
    }


def test_content_is_the_same_by_hash_or_by_size_and_time() -> None:
    old = {"size": 1, "mtime": 2.5, "caption": "x"}
    assert same_content(old, {**old, "caption": "y"})
    assert not same_content(old, {**old, "mtime": 2.6})
    assert not same_content(old, {**old, "size": 2})
    assert not same_content(old, {**old, "sha256": "aa"})
    assert same_content({"sha256": "aa", "size": 1}, {"sha256": "aa", "size": 1, "offset": 9})
    bad = broken(entry.same_content, '("size", "mtime")', '("size",)')
    assert bad(old, {**old, "mtime": 2.6})
