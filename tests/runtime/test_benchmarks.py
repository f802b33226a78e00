"""The benchmarks' own arithmetic: a figure that is wrong here is wrong in the README."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import end_to_end
from benchmarks.photographs import find_photographs, small, twelve_megapixels
from tests.runtime.toy import picture


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
