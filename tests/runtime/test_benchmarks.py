"""The benchmarks' own arithmetic: a figure that is wrong here is wrong in the README."""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import compression, end_to_end
from benchmarks.contestants import as_bytes
from benchmarks.photographs import find_photographs, small, twelve_megapixels
from tests.runtime.toy import PREPROCESSING, picture


def test_summary_and_files(tmp_path: Path) -> None:
    def run(base: float, label: str) -> dict[str, object]:
        return {"ms": [base, base + 1, base + 2], "labels": ["a", "b", label]}

    sizes = dict.fromkeys(end_to_end.SIZES)
    runs = {
        name: {
            **{size: [run(base, label)] * 2 for size in sizes},
            "cold": [{"seconds": base}, {"seconds": base + 2}],
        }
        for name, base, label in (("edgeclip", 1.0, "c"), ("transformers", 10.0, "d"))
    }
    summary = end_to_end._summary(runs, {"openvino": "not installed"}, threads=2, rounds=2)
    ours, theirs = summary["rows"]
    assert ours["500 pixels"] == {
        "p50_ms": 2.0,
        "p90_ms": 3.0,
        "p99_ms": 3.0,
        "p50_by_round_ms": [2.0, 2.0],
        "same_label_as_transformers": 0.667,
    }
    assert theirs["12 megapixels"]["same_label_as_transformers"] == 1.0
    assert (ours["cold_start_s"], theirs["cold_start_s"]) == (2.0, 11.0)
    end_to_end._write(tmp_path / "r", summary)
    text = (tmp_path / "r.md").read_text()
    assert "| edgeclip | 2.0 ms | 3.0 | 3.0 | 67% |" in text
    assert "Left out: openvino (not installed)." in text
    assert json.loads((tmp_path / "r.json").read_text()) == summary
    header, ruler = text.splitlines()[4:6]
    assert header.count("|") == ruler.count("|") == text.splitlines()[6].count("|")


def test_photographs_have_the_size_they_say(tmp_path: Path) -> None:
    for i in range(4):
        Image.fromarray(picture(i, 640, 480)).save(tmp_path / f"{i}.jpg")
    paths = find_photographs(tmp_path)
    assert Image.open(io.BytesIO(small(paths[0]))).size == (500, 375)
    large = twelve_megapixels(paths, 0)
    assert Image.open(io.BytesIO(large)).size == (4000, 3000)
    assert len(large) > 2_000_000, (
        "without fine detail the file is smaller, and decodes faster, than a camera's"
    )
    assert np.array_equal(*(np.frombuffer(twelve_megapixels(paths, 0)[:1000], np.uint8) for _ in range(2)))
    with pytest.raises(SystemExit, match=r"no \.jpg in it"):
        find_photographs(tmp_path / "absent")


def test_compression_figures_and_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = np.eye(6, dtype=np.float32) * 3  # a plain export's rows are not of unit length
    other = np.eye(6, dtype=np.float32) + 0.01
    np.save(tmp_path / "a.npy", first)
    np.save(tmp_path / "b.npy", other)
    rows = {
        "plain": {"contestant": "plain", "rows": "a.npy", "size_mb": 350.0, "resident_mb": 800.0},
        "ours": {"contestant": "ours", "rows": "b.npy", "size_mb": 90.0, "resident_mb": None},
        "theirs": {"contestant": "theirs", "failed": "no | module"},
    }
    times = {"plain": [30.0, 31.0, 90.0], "ours": [10.0, 9.0, 11.0], "theirs": []}
    summary = compression._summary(rows, times, tmp_path)
    unit = other / np.linalg.norm(other, axis=1, keepdims=True)
    error = np.linalg.norm(unit - np.eye(6), axis=1).mean() / np.sqrt(2)
    assert summary[0]["relative_distance"] == 0
    assert summary[1] == {
        "contestant": "ours", "size_mb": 90.0, "resident_mb": None, "p50_ms": 10.0, "p90_ms": 10.8, "times_faster": 3.1,
        "relative_distance": pytest.approx(error, rel=1e-2), "cosine_min": pytest.approx(unit[0, 0], abs=1e-6),
    }  # fmt: skip
    found = {"machine": {"cpu": "x"}, "threads": 2, "rounds": 3, "rows": summary}
    for model in ("b16", "b32", "b16"):  # one model at a time; the others' figures stay
        compression._write(tmp_path / "results/r", model, found)
    assert list(json.loads((tmp_path / "results/r.json").read_text())) == ["b32", "b16"]
    text = (tmp_path / "results/r.md").read_text()
    assert text.count("| ours | 10.0 ms | 10.8 ms | 3.10x | 0.016 | 0.9997") == 2
    assert "| theirs | failed: no / module | | | | | | |" in text
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1
    capsys.readouterr()


def test_a_contestant_that_fails_is_a_row_with_its_reason(tmp_path: Path) -> None:
    options = argparse.Namespace(work=tmp_path, threads=1, pictures=1, merge=[8])
    row: dict[str, object] = {}
    compression._attempt(row, compression._Process(options, "make", "b32", "nobody").answer)
    assert row == {"failed": "ValueError: not enough values to unpack (expected 1, got 0)"}
    compression._attempt(row, lambda: pytest.fail("what failed is not tried again"))


def test_bytes_are_those_that_the_pixels_were_made_from() -> None:
    raw = np.random.default_rng(0).integers(0, 256, (2, 8, 6, 3), np.uint8)
    pixels = (raw.transpose(0, 3, 1, 2) / 255 - np.reshape(PREPROCESSING.mean, (3, 1, 1))) / np.reshape(
        PREPROCESSING.std, (3, 1, 1)
    )
    np.testing.assert_array_equal(
        as_bytes(pixels.astype(np.float32), PREPROCESSING.mean, PREPROCESSING.std), raw
    )
