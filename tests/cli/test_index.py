"""`edgeclip index`: what its verbs print, refuse and leave."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeclip.errors import EdgeClipError
from edgeclip.runtime.index.build_words import Progress
from edgeclip.runtime.index.index import Index
from tests.cli.conftest import Edgeclip, save_picture
from tests.index.test_sources import parquet
from tests.runtime.toy import picture


def test_build_makes_an_index_and_then_only_what_changed(
    photos: Path, sealed: Path, tmp_path: Path, edgeclip: Edgeclip
) -> None:
    place = tmp_path / "i"
    said = edgeclip("index", "build", photos, "-o", place, "-b", sealed)
    assert (said.code, said.err) == (0, "")
    for words in (
        "added",
        "embedded",
        "3 in ",
        "on disk",
        "bytes a vector",
        "recall@2",
        "1.000 of the exact answer",
    ):
        assert words in said.out
    found = edgeclip("index", "build", photos, "-o", place, "-b", sealed, "--json").record
    assert (found["added"], found["unchanged"], found["embedded"], found["index"]["items"]) == (0, 3, 0, 3)
    (photos / "a.png").write_bytes(b"nothing")
    said = edgeclip("index", "build", photos, "-o", place, "-b", sealed)
    assert said.code == 0
    assert (
        said.err
        == f"edgeclip: skipped: {photos}/a.png: not a picture that can be read. Known formats: JPEG, PNG, BMP, GIF, PPM, WEBP, TIFF, AVIF.\n"
    )
    assert "unreadable" in said.out
    assert edgeclip("index", "build", photos, "-o", place, "-b", sealed, "--strict").code == 1
    (photos / "b.JPG").unlink()
    said = edgeclip("index", "build", photos, "-o", place, "-b", sealed, "--prune", "--json")
    assert (said.code, said.record["removed"]) == (0, 1)
    with Index.open(place) as index:
        assert sorted(index.keys()) == ["a.png", "below/c.bmp"]  # what cannot be read now is still known


def test_nothing_but_failures_is_exit_code_2(tmp_path: Path, sealed: Path, edgeclip: Edgeclip) -> None:
    (tmp_path / "x.png").write_bytes(b"x")
    said = edgeclip("index", "build", tmp_path / "x.png", "-o", tmp_path / "i", "-b", sealed)
    assert said.code == 2
    assert "x.png: not a picture" in said.err


def test_settings_of_an_index(photos: Path, sealed: Path, tmp_path: Path, edgeclip: Edgeclip) -> None:
    build = ("index", "build", photos, "-o", tmp_path / "i", "-b", sealed)
    assert edgeclip(*build, "--precision", "int8", "--exact-below", "2").code == 0
    with Index.open(tmp_path / "i") as index:
        assert (index.settings.precision, index.settings.exact_below) == ("int8", 2)
    assert edgeclip(*build).code == 0
    said = edgeclip(*build, "--precision", "bits")
    assert said.code == 2
    assert (
        said.line
        == f"edgeclip: {tmp_path}/i: was made with precision int8, got bits. Leave it out, or pass --overwrite to build anew."
    )
    assert edgeclip(*build, "--precision", "bits", "--overwrite").code == 0


def test_add_remove_info(photos: Path, sealed: Path, tmp_path: Path, edgeclip: Edgeclip) -> None:
    place = tmp_path / "i"
    said = edgeclip("index", "add", place, photos, "-b", sealed)
    assert (said.code, said.line) == (
        2,
        f"edgeclip: {place}: no such index. Make one with `edgeclip index build`.",
    )
    edgeclip("index", "build", photos, "-o", place, "-b", sealed)
    save_picture(photos / "below/d.png", 9)
    said = edgeclip("index", "add", place, photos / "below", "--root", photos, "-b", sealed, "--json")
    assert (said.record["added"], said.record["unchanged"]) == (1, 1)
    listed = edgeclip("index", "remove", place, "--where", "path ~ 'below'", "--dry-run")
    assert (listed.out, listed.err) == ("below/c.bmp\nbelow/d.png\n", f"{place}: 2 would be removed\n")
    said = edgeclip("index", "remove", place, "a.png", "no.png")
    assert (said.code, said.err) == (0, f"{place}: 1 removed\nedgeclip: {place}: no item 'no.png'.\n")
    assert edgeclip("index", "remove", place, "a.png", "below/c.bmp", "--strict").code == 1
    assert edgeclip("index", "remove", place, "a.png").code == 2
    found = edgeclip("index", "remove", place, "--where", "path = 'below/d.png'", "--json").record
    assert found == {"removed": ["below/d.png"], "missing": []}
    facts = edgeclip("index", "info", place, "--json").record
    assert (facts["items"], facts["model"]["name"], facts["precision"]) == (1, "toy", "fp16")
    said = edgeclip("index", "info", place)
    assert "toy (111111111111), width 8" in said.out
    assert said.err == ""
    edgeclip("index", "add", place, photos, "-b", sealed)
    assert (
        edgeclip("index", "info", place, "--measure", "--json").record["measured"]["recall"]["vectors"] == 4
    )
    said = edgeclip("index", "info", place, "--measure", "-b", sealed, "--json")
    assert (
        said.err == f"edgeclip: {place}: written by this bundle's own variant: there is nothing to compare.\n"
    )
    said = edgeclip("index", "optimize", place, "--json").record
    assert len(said["after"]["segments"]) == 1


def test_verify_reads_every_byte(photos: Path, sealed: Path, tmp_path: Path, edgeclip: Edgeclip) -> None:
    place = tmp_path / "i"
    edgeclip("index", "build", photos, "-o", place, "-b", sealed)
    said = edgeclip("index", "verify", place)
    assert (said.code, said.out) == (0, "")
    assert said.err.startswith(f"{place}: whole; ")
    assert edgeclip("index", "verify", place, "--json").record["problems"] == []
    for file in sorted(place.rglob("*")):
        # a log that ends in its middle was being written when the power went
        if file.is_file() and file.name != "lock" and file.parent.name != "logs":
            copy = Path(shutil.copytree(place, tmp_path / "copy"))
            spoilt = copy / file.relative_to(place)
            data = bytearray(spoilt.read_bytes())
            data[len(data) // 2] ^= 0x20
            spoilt.write_bytes(data)
            said = edgeclip("index", "verify", copy, "--json")
            assert said.code == 1, file
            assert said.record["problems"], file
            shutil.rmtree(copy)
    for other in (tmp_path / "no", photos):
        said = edgeclip("index", "verify", other)
        assert (said.code, said.line) == (
            2,
            f"edgeclip: {other}: no such index. Make one with `edgeclip index build`.",
        )
    (place / "index.json").unlink()
    assert edgeclip("index", "verify", place, "--json").code == 1


def test_a_source_of_nothing_is_told_before_anything_is_made(
    photos: Path, sealed: Path, tmp_path: Path, edgeclip: Edgeclip
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "no.jsonl").write_text("no json\n")
    for source, problem in (
        ("empty", "empty: holds nothing to index. Pictures have names that end in .avif"),
        ("", "source: expected a folder or file, got an empty name."),
        (
            "no.jsonl",
            "no.jsonl:1: no JSON (Expecting value: line 1 column 1 (char 0)). Expected one object a line.",
        ),
    ):
        said = edgeclip("index", "build", source and tmp_path / source, "-o", tmp_path / "i", "-b", sealed)
        assert (said.code, problem in said.line) == (2, True)
        assert not (tmp_path / "i").exists()
    edgeclip("index", "build", photos, "-o", tmp_path / "i", "-b", sealed)
    shutil.rmtree(photos)
    photos.mkdir()
    for prune in ([], ["--prune"]):
        assert edgeclip("index", "build", photos, "-o", tmp_path / "i", "-b", sealed, *prune).code == 2
    assert edgeclip("index", "info", tmp_path / "i", "--json").record["items"] == 3


def test_a_measure_that_cannot_be_kept_is_shown(
    photos: Path, sealed: Path, tmp_path: Path, edgeclip: Edgeclip
) -> None:
    edgeclip("index", "build", photos, "-o", tmp_path / "i", "-b", sealed)
    with Index.open(tmp_path / "i", write=True):
        said = edgeclip("index", "info", tmp_path / "i", "--measure", "--json")
    assert (said.code, said.err) == (0, "")
    assert said.record["measured"]["recall"]["recall"] == 1


def test_boxes_captions_and_vectors(
    photos: Path, sealed: Path, tmp_path: Path, edgeclip: Edgeclip, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "a.txt").write_text("a cat")
    said = edgeclip("index", "build", photos, "-o", tmp_path / "c", "-b", sealed, "--captions", "--json")
    assert said.record["added"] == 1
    rows = np.eye(2, 8, dtype=np.float32)
    table = parquet(
        tmp_path / "v.parquet", {"key": ["p", "q"], "embedding": list(rows)}, {"edgeclip.model_id": "1" * 64}
    )

    def load(*_: Any, **__: Any) -> None:
        raise EdgeClipError("no model is opened for vectors")

    with monkeypatch.context() as patch:
        patch.setattr("edgeclip.runtime.model.load", load)
        assert edgeclip("index", "build", table, "-o", tmp_path / "v", "--json").record["added"] == 2
    columns = {"key": ["p", "q"], "embedding": list(rows)}
    other = parquet(tmp_path / "w.parquet", columns, {"edgeclip.model_id": "2" * 64})
    said = edgeclip("index", "build", other, "-o", tmp_path / "w", "-b", sealed)
    assert (said.code, "w.parquet: vectors of a model (222222222222), the bundle is" in said.line) == (
        2,
        True,
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b.jsonl").write_text(json.dumps({"path": "photos/a.png", "boxes": [[0, 0, 9, 9]]}))
    said = edgeclip("index", "build", photos, "-o", tmp_path / "r", "-b", sealed, "--boxes", "b.jsonl")
    assert said.code == 2
    assert "region" in said.err


def test_an_interruption_says_what_is_kept(
    photos: Path,
    sealed: Path,
    tmp_path: Path,
    edgeclip: Edgeclip,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from collections.abc import Iterator
    from contextlib import contextmanager

    @contextmanager
    def stopping(quiet: bool) -> Iterator[Any]:
        def tell(made: Progress) -> None:
            if made.done == 2:
                raise KeyboardInterrupt

        yield tell

    monkeypatch.setattr("edgeclip.cli.index_build.progress_bar", stopping)
    said = edgeclip("index", "build", photos, "-o", tmp_path / "i", "-b", sealed, "--batch-size", 1)
    assert said.code == 130
    assert (
        f"edgeclip: {tmp_path}/i: what was embedded is kept; the same command goes on from there.\n"
        in said.err
    )
    with Index.open(tmp_path / "i") as index:
        assert len(index) == 2


def test_places_that_cannot_be_an_index(
    photos: Path, sealed: Path, tmp_path: Path, edgeclip: Edgeclip
) -> None:
    for place in (photos, photos / "notes.txt"):
        said = edgeclip("index", "build", photos, "-o", place, "-b", sealed, "--overwrite")
        assert (said.code, said.line) == (
            2,
            f"edgeclip: {place}: already exists and is no index. Choose another place.",
        )
    assert len(list(photos.iterdir())) == 4
    said = edgeclip("index", "remove", tmp_path)
    assert said.line == "edgeclip: Pass either KEYS or --where FILTER. See `edgeclip index remove --help`."


def test_the_progress_bar_shows_rate_and_failures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from edgeclip.cli.index_show import progress_bar

    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress_bar(quiet=False) as tell:
        assert tell is not None
        made = Progress(10)
        for made.done in range(1, 6):
            made.embedded = made.done
            tell(made)
        made.failures.append(("x", "y"))
        tell(made)
    shown = capsys.readouterr().err
    assert "/s" in shown
    assert "1 unreadable" in shown
    with progress_bar(quiet=True) as tell:
        assert tell is None


def test_the_time_that_is_left_counts_what_has_to_be_embedded() -> None:
    from edgeclip.cli.index_show import Pace

    pace, made = Pace(), Progress(1000, done=500, unchanged=500)
    assert pace.told(made, 1.0) == ""  # 500 in a second, none of them embedded
    made.done, made.embedded = 501, 1
    assert pace.told(made, 2.0) == ""
    made.done, made.embedded = 601, 101
    assert pace.told(made, 12.0) == "10.1/s, 0:00:40 left"  # 399 at 101 in 10 s
    made.total = None
    made.failures.append(("a", "b"))
    assert pace.told(made, 12.0) == "10.1/s, 1 unreadable"


def test_a_picture_in_colour_is_found_by_itself(tmp_path: Path, sealed: Path, edgeclip: Edgeclip) -> None:
    for seed in range(6):
        (tmp_path / "p").mkdir(exist_ok=True)
        Image.fromarray(picture(seed)).save(tmp_path / f"p/{seed}.png")
    edgeclip("index", "build", tmp_path / "p", "-o", tmp_path / "i", "-b", sealed)
    said = edgeclip(
        "search", tmp_path / "i", "--image", tmp_path / "p/3.png", "-k", 1, "-b", sealed, "--json"
    )
    assert said.records[0]["key"] == "3.png"
