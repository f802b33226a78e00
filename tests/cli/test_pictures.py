"""Which pictures an argument names, and what becomes of the bad ones."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgeclip.cli.common import find_pictures
from tests.cli.conftest import Edgeclip, save_picture

LABELS = ["--labels", "a cat,a dog"]


def found(*arguments: object) -> list[str]:
    paths, failures = find_pictures([str(argument) for argument in arguments], as_json=False)
    assert failures == []
    return [str(path) for path in paths]


def test_folder_is_searched_below_by_suffix(photos: Path) -> None:
    assert found(photos) == [f"{photos}/{name}" for name in ("a.png", "b.JPG", "below/c.bmp")]


def test_globs(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos)
    assert found("*.png") == ["a.png"]
    assert found("**/*.bmp", f"{photos}/*.JPG") == ["below/c.bmp", f"{photos}/b.JPG"]


def test_each_file_comes_once_however_it_is_named(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos)
    assert found("b.JPG", photos, "./b.JPG", "*.JPG", "b.JPG")[0] == "b.JPG"  # as it was named first
    assert len(found("b.JPG", photos, "./b.JPG", "*.JPG", "b.JPG")) == 3


@pytest.mark.parametrize(
    "name",
    ["with [brackets].png", "[a-z]*.png", "drei Kätzchen 猫 🐈.png", " spaces .png", "[bold]x[/bold].png"],
)
def test_unusual_names(name: str, tmp_path: Path, toy: Path, edgeclip: Edgeclip) -> None:
    path = save_picture(tmp_path / "in" / name)
    save_picture(tmp_path / "in/a.png", 1)  # what [a-z]*.png would match as a glob
    said = edgeclip("classify", path, "-b", toy, *LABELS, "--json")
    assert said.code == 0
    assert said.record["path"] == str(path)
    table = edgeclip("search", path, "a [b]cat[/b]", "-b", toy).out
    assert str(path).rstrip() in table
    assert "a [b]cat[/b]" in table


def test_leading_dash_after_two_dashes(
    tmp_path: Path, toy: Path, edgeclip: Edgeclip, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_picture(Path("-x.png"))
    said = edgeclip("classify", "-b", toy, *LABELS, "--json", "--", "-x.png")
    assert (said.code, said.record["path"]) == (0, "-x.png")


def test_name_that_is_no_unicode_survives_the_round_trip(
    tmp_path: Path, toy: Path, edgeclip: Edgeclip
) -> None:
    folder = tmp_path / "in"
    save_picture(folder / "a.png")
    os.rename(folder / "a.png", os.fsencode(folder) + b"/\xff.png")  # noqa: PTH104
    said = edgeclip("classify", folder, "-b", toy, *LABELS, "--json")
    assert said.code == 0
    assert os.fsencode(said.record["path"]) == os.fsencode(folder) + b"/\xff.png"
    command = [sys.executable, "-m", "edgeclip", "classify", str(folder), "-b", str(toy), *LABELS]
    table = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (table.returncode, table.stderr) == (0, "")
    assert r"\udcff.png" in table.stdout


@pytest.mark.parametrize("verb", ["classify", "embed"])
@pytest.mark.parametrize("strict", [False, True])
def test_one_bad_file_of_many_is_skipped(
    verb: str, strict: bool, photos: Path, toy: Path, edgeclip: Edgeclip
) -> None:
    (photos / "b.JPG").write_bytes((photos / "b.JPG").read_bytes()[:200])
    options = LABELS if verb == "classify" else []
    said = edgeclip(verb, photos, "-b", toy, *options, "--json", *["--strict"] * strict)
    assert said.code == int(strict)
    assert [Path(record["path"]).name for record in said.records] == ["a.png", "b.JPG", "c.bmp"]
    assert ["error" in record for record in said.records] == [False, True, False]
    assert said.err == f"edgeclip: skipped: {said.records[1]['error']}\n"
    assert said.err.startswith(f"edgeclip: skipped: {photos}/b.JPG: ")


def test_bad_file_in_a_table_is_named_on_stderr(photos: Path, toy: Path, edgeclip: Edgeclip) -> None:
    (photos / "a.png").write_bytes(b"")
    said = edgeclip("classify", photos, "-b", toy, *LABELS)
    assert said.code == 0
    assert f"{photos}/below/c.bmp" in said.out, "a path is not folded where nobody sees a screen's edge"
    assert said.err == f"edgeclip: skipped: {photos}/a.png: the file is empty. Copy it again.\n"


def test_missing_argument_is_one_bad_input(photos: Path, toy: Path, edgeclip: Edgeclip) -> None:
    good, empty = photos / "a.png", photos / "empty"
    empty.mkdir()
    said = edgeclip("classify", "no.png", good, empty, "*.gif", "-b", toy, *LABELS, "--json")
    assert said.code == 0
    errors = {record["path"]: record["error"] for record in said.records if "error" in record}
    assert errors.keys() == {"no.png", str(empty), "*.gif"}
    assert errors["no.png"] == "no.png: no such file, folder or glob. Check the path."
    assert errors[str(empty)].startswith(
        f"{empty}: the folder holds no pictures. Their names end in .avif, .bmp"
    )
    assert said.records[-1]["path"] == str(good)
    assert edgeclip("classify", "no.png", good, "-b", toy, *LABELS, "--strict").code == 1


@pytest.mark.parametrize("verb", ["classify", "embed", "search"])
def test_all_inputs_failed_is_2(
    verb: str, photos: Path, toy: Path, tmp_path: Path, edgeclip: Edgeclip
) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "x.png").write_bytes(b"no picture")
    options = {"classify": LABELS, "embed": ["-o", tmp_path / "out.npz"], "search": ["a cat"]}[verb]
    for argument in (bad, tmp_path / "absent", "n" * 300):
        said = edgeclip(verb, argument, *options, "-b", toy)
        assert said.code == 2
        assert said.line.startswith(f"edgeclip: skipped: {argument}")
    assert not (tmp_path / "out.npz").exists()
