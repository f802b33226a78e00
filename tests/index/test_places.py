"""Where pictures of items lie: files below folders and beside tables, members of a shard that tarfile wrote."""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path
from typing import Any

import pytest

from edgeclip import InputError
from edgeclip.runtime.index.places import file_of, is_text, read_picture
from edgeclip.runtime.index.types import Item

DATA = b"bytes of a picture"


def item(key: str = "x", **record: Any) -> Item:
    return Item(key, record)


@pytest.fixture
def shard(tmp_path: Path) -> dict[str, Any]:
    """A record of the second member of a tar file."""
    (tmp_path / "a.jpg").write_bytes(DATA)
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        archive.add(tmp_path / "a.jpg", "0.jpg")
        archive.add(tmp_path / "a.jpg", "1.jpg")
    with tarfile.open(tmp_path / "s.tar") as archive:
        member = archive.getmembers()[1]
    digest = hashlib.sha256(DATA).hexdigest()
    facts = {"path": "1.jpg", "offset": member.offset_data, "size": member.size, "sha256": digest}
    return {"source": str(tmp_path / "s.tar"), **facts}


def test_files(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below/a.jpg").write_bytes(DATA)
    (tmp_path / "table.csv").write_text("image\n")
    whole = tmp_path / "below/a.jpg"
    assert file_of(item(source=str(tmp_path), path="below/a.jpg")) == whole
    assert file_of(item(source=str(tmp_path / "table.csv"), path="below/a.jpg")) == whole
    assert file_of(item(source="/gone/table.csv", path="a.jpg")) == Path("/gone/a.jpg")
    assert file_of(item(source="/gone", path="a.jpg")) == Path("/gone/a.jpg")
    assert file_of(item(path=str(whole))) == read_picture(item(path=str(whole))) == whole
    assert file_of(item(str(whole))) == whole
    assert file_of(item(str(whole), caption="words")) is None
    assert is_text(item(str(whole), caption="words"))
    assert not is_text(item(path=str(whole), caption="words"))
    assert not is_text(item("words"))
    assert file_of(item("n" * 9999)) is file_of(item("a\0b")) is read_picture(item("words")) is None
    assert read_picture(item(path=str(whole), offset=3)) == whole  # somebody's own field


def test_members_of_a_shard(shard: dict[str, Any]) -> None:
    assert file_of(item(**shard)) is None
    assert read_picture(item(**shard)) == DATA


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"offset": 3}, "The shard of this picture has changed"),
        ({"offset": -3}, "cannot be 18 bytes at -3"),
        ({"size": 1 << 60}, "cannot be 1152921504606846976 bytes"),
        ({"source": "/gone/s.tar"}, "gone, with the shard"),
        ({"source": "a\0b"}, "gone, with the shard"),
    ],
)
def test_a_shard_that_is_not_what_it_was(shard: dict[str, Any], changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_picture(item(**{**shard, **changes}))


def test_pictures_that_are_nowhere(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="The picture is gone"):
        read_picture(item(path=str(tmp_path / "a.jpg")))
    with pytest.raises(InputError, match=r"The picture lies inside pets\.parquet"):
        read_picture(item(path="pets.parquet:3", source=str(tmp_path / "pets.parquet"), sha256="0" * 64))
