"""`edgeclip build`: what it prints, what it refuses and with which exit code, and that what it built is found."""

from __future__ import annotations

import io
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from edgeclip.bundle import open_bundle
from edgeclip.cli import engine_table
from edgeclip.cli.build import parse_size, progress, split
from edgeclip.errors import InputError
from edgeclip.runtime.tensorrt.record import BuildOptions, NetworkReport, Record
from edgeclip.runtime.tensorrt.settings import FOUND
from tests.cli.conftest import Edgeclip

pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx-cu13")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of its own for each test."""
    monkeypatch.setenv("EDGECLIP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def build(edgeclip: Edgeclip, bundle: object, *more: object) -> Any:
    """For one GPU that is not here, in fp32."""
    return edgeclip(
        "build", bundle, "--target", "tensorrt-rtx", "--arch", "sm86", "--precision", "fp32", *more
    )


def test_built_shown_listed_and_cleared(sealed: Path, edgeclip: Edgeclip, cache: Path) -> None:
    said = build(edgeclip, sealed, "--batch", "1:4:16")
    assert (said.code, said.err) == (0, "")
    for word in ("image-fp32", "text-fp32", "sm86", "1:4:16", "1 fp32", "built, not run", "tensorrt-rtx 1."):
        assert word in said.out
    again = build(edgeclip, sealed, "--batch", "1:4:16")
    assert again.err.splitlines() == [
        f"edgeclip: {name}: was built already. To build it again, pass --rebuild"
        for name in ("image-fp32", "text-fp32")
    ]
    listed = edgeclip("build", sealed, "--list")
    assert "2 engines in " in listed.out
    assert "engine: text-fp32 by tensorrt-rtx 1." in edgeclip("inspect", sealed).out
    engines = edgeclip("inspect", sealed, "--json").record["engines"]
    assert {(one["variant"], one["for"], one["proof"]) for one in engines} == {
        ("image-fp32", "sm86", "built, not run"), ("text-fp32", "sm86", "built, not run"),
    }  # fmt: skip
    cleared = edgeclip("build", sealed, "--clear", "--json").record
    assert cleared["freed_bytes"] > 100_000
    assert "0 engines in " in edgeclip("build", sealed, "--list").out
    assert "engines" not in edgeclip("inspect", sealed, "--json").record


def test_an_80_column_screen_cuts_no_word(sealed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What tells the engines apart, and what was read back of them, stands there whole."""
    out = io.StringIO()
    monkeypatch.setattr(engine_table, "console", lambda: Console(file=out, width=80))
    variant = replace(open_bundle(str(sealed)).manifest.variants[0], id="image-fp16-merge8-decomposed")
    options = BuildOptions(({"N": (1, 8, 32)},), archs=("sm80", "sm86", "sm89", "sm120"))
    network = NetworkReport(300, {"fp16": 73, "fp32": 1}, {}, 12, {})
    record = Record(
        "tensorrt-rtx", "1.7", "", None, "", variant, {}, options, 178_300_000, "", network, seconds=12.3
    )
    engine_table.show([record])
    for word in (
        variant.id, *options.archs, "1:8:32", "178.3", "12.3", "73 fp16, 1 fp32", "12 attention", "built, not run"
    ):  # fmt: skip
        assert word in out.getvalue()
    assert max(map(len, out.getvalue().splitlines())) <= 80


def test_json_and_a_folder_of_the_users(sealed: Path, edgeclip: Edgeclip, tmp_path: Path) -> None:
    folder = tmp_path / "engines"
    record = build(edgeclip, sealed, "--tower", "text", "-o", folder, "--json").record
    (engine,) = record["engines"]
    assert (record["folder"], engine["found"], engine["fidelity"]) == (str(folder), False, None)
    assert engine["options"]["archs"] == ["sm86"]
    assert engine["options"]["profiles"] == [{"N": [1, 8, 32], "L": [1, 12, 12]}]
    assert engine["size"] == sum(path.stat().st_size for path in folder.glob("*.engine"))
    assert build(edgeclip, sealed, "--tower", "text", "-o", folder, "--json").record["engines"][0]["found"]
    (plan,) = folder.glob("*.engine")
    plan.write_bytes(plan.read_bytes()[:-1])
    listed = edgeclip("build", sealed, "--list", "-o", folder, "--json").record
    assert len(listed["problems"]) == 1
    assert "missing, or not of the" in listed["problems"][0]


def test_nano_in_fp16(edgeclip: Edgeclip) -> None:
    said = edgeclip("build", "nano", "--target", "tensorrt-rtx", "--tower", "text", "--threads", 1, "--json")
    (engine,) = said.record["engines"]
    assert (engine["variant"]["id"], engine["made_from"]) == ("text-fp16", "text-fp16")
    assert engine["variant"]["fidelity"]["relative_distance"] < 0.02
    assert set(engine["network"]["products"]) == {"fp16"}
    assert engine["options"]["archs"] == ["sm80", "sm86", "sm89", "sm120"]
    assert "no NVIDIA GPU here" in said.err
    assert said.code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "Missing option '--target'. Choose tensorrt or tensorrt-rtx."),
        (["--target", "onnx"], 2, "Invalid value for '--target': 'onnx' is not one of 'tensorrt', 'tensorrt-rtx'."),
        (["--target", "tensorrt-rtx", "--arch", "sm42"], 2, "arch 'sm42': tensorrt-rtx 1."),
        (["--target", "tensorrt-rtx", "--precision", "int3"], 2, "Invalid value for '--precision': 'int3' is not one of"),
        (["--target", "tensorrt-rtx", "--batch", "32:8:1"], 2, "batch '32:8:1': expected least:best:most such as 1:8:32"),
        (["--target", "tensorrt-rtx", "--workspace", "512 bananas"], 2, "--workspace 512 bananas: expected a size above 0 such as 512M or 2G."),
        (["--target", "tensorrt-rtx", "--arch", "sm86", "--variant", "image-fp64"], 2, "BUNDLE: no variant 'image-fp64'; it has image-fp32, text-fp32."),
        (["--target", "tensorrt-rtx", "--arch", "sm86", "--precision", "int8"], 2, "--precision int8: needs pictures to calibrate on, got none. Pass --images"),
        (["--target", "tensorrt-rtx", "--arch", "sm86", "--precision", "fp8"], 2, "--precision fp8: sm86 has no fp8, which needs compute capability 8.9"),
        (["--target", "tensorrt-rtx", "--arch", "sm86", "--budget", "taste=1"], 2, "--budget taste=1: expected FIGURE=NUMBER"),
        (["--target", "tensorrt-rtx", "--arch", "sm86", "-o", "BUNDLE"], 2, "BUNDLE: inside a bundle, which never changes."),
        (["--target", "tensorrt-rtx", "--arch", "sm86", "--images", "/no/such"], 2, "--images /no/such: no such folder."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_refusals(arguments: list[str], code: int, message: str, sealed: Path, edgeclip: Edgeclip) -> None:
    words = [str(sealed) if word == "BUNDLE" else word for word in arguments]
    said = edgeclip("build", sealed, *words)
    assert said.code == code
    assert said.line.startswith("edgeclip: " + message.replace("BUNDLE", str(sealed)))


def test_a_library_that_is_not_installed(
    sealed: Path, edgeclip: Edgeclip, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    for name, how in (
        ("tensorrt", "apt-get install python3-libnvinfer"),
        ("tensorrt_rtx", "pip install 'edgeclip[tensorrt-rtx]'"),
    ):
        monkeypatch.setitem(sys.modules, name, None)
        said = edgeclip("build", sealed, "--target", name.replace("_", "-"))
        assert (said.code, how in said.line) == (2, True)


def test_falling_short_is_exit_code_1(edgeclip: Edgeclip) -> None:
    said = edgeclip(
        "build", "nano", "--target", "tensorrt-rtx", "--arch", "sm86", "--tower", "text", "--budget", "distance=1e-6", "--threads", 1
    )  # fmt: skip
    assert said.code == 1
    assert "at most 1e-06 allowed" in said.line


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(sealed: Path, edgeclip: Edgeclip, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    assert "cannot be made" in build(edgeclip, sealed, "-o", tmp_path / "closed" / "engines").line


def test_a_file_where_the_folder_should_be(sealed: Path, edgeclip: Edgeclip, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = build(edgeclip, sealed, "-o", tmp_path / "file" / "engines")
    assert (said.code, "cannot be made" in said.line) == (2, True)


def test_interrupted(
    sealed: Path, edgeclip: Edgeclip, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from edgeclip.runtime.tensorrt import api

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "build", interrupted)
    said = build(edgeclip, sealed, "-o", tmp_path / "out")
    assert (said.code, said.err.strip()) == (130, "edgeclip: interrupted")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("text", "size"),
    [("512M", 512 << 20), ("2g", 2 << 30), ("1.5 GiB", 3 << 29), ("64KB", 64 << 10), ("4096", 4096)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1G", "G", "1T", "1 2M"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(InputError, match="expected a size above 0"):
        parse_size(text)


def test_archs_are_read_as_people_write_them() -> None:
    assert split(" SM89,sm86 ,sm89,") == ("sm89", "sm86")
    assert split(None) == ()


def test_progress_notes_what_was_found() -> None:
    with progress() as (tell, found):
        tell("image", "parse", 0.5)
        tell("text", FOUND, 1.0)
    assert found == ["text"]
    assert json.dumps(found)
