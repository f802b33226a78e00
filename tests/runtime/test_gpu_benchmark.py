"""The core of benchmarks.gpu with contestants that need no GPU: a figure that is wrong here would be wrong in its table."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from benchmarks import gpu
from benchmarks.gpu_contestants import CONTESTANTS, Array, Call, Contestant, Runner, on_engine
from edgeclip.bundle import seal
from tests.mutants import broken
from tests.runtime.toy import DIM, SIDE, image_reference, make_bundle

PIXELS = np.random.default_rng(3).normal(size=(6, 3, SIDE, SIDE)).astype(np.float32)
LATER = time.monotonic() + 1e6


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = make_bundle(tmp_path / "bundle", text=False)
    (image,) = made.manifest.variants
    half = replace(
        image, id="image-fp16", axes=replace(image.axes, precision="fp16")
    )  # a toy's fp16 is fp32 by another name
    seal(made.root, replace(made.manifest, variants=(image, half)))
    return tmp_path


def stand_in(error: float = 0.0, seconds: float = 0.001) -> Callable[[Path], Runner]:
    """The toy in numpy, a little off and as slow as it should be."""

    def prepare(pixels: Array) -> Call:
        rows = 3 * (
            image_reference(pixels) + error * np.eye(DIM)[0]
        )  # of no unit length: that must not matter

        def call() -> Array:
            time.sleep(seconds * len(pixels))
            return rows.astype(np.float32)

        return call

    return lambda folder: Runner(prepare, "numpy")


def failing(folder: Path) -> Runner:
    raise RuntimeError("no such | engine\nmore")


def only_small(folder: Path) -> Runner:
    def prepare(pixels: Array) -> Call:
        if len(pixels) > 6:
            raise ValueError("too many rows")
        return lambda: image_reference(pixels)

    return Runner(prepare, "small")


def dying(folder: Path) -> Runner:
    """Not at once: after it was warm."""
    logging.getLogger("edgeclip.runtime").warning("the CPU runs 12 Attention")

    def prepare(pixels: Array) -> Call:
        left = iter(range(gpu.WARM_UP + 2))

        def call() -> Array:
            if next(left, None) is None:
                raise RuntimeError("out of memory")
            return image_reference(pixels)

        return call

    return Runner(prepare, "numpy")


def test_contestants_are_measured_side_by_side(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "TURN_S", 0.02)
    contestants = [
        Contestant("exact", stand_in(seconds=0.002)),
        Contestant("off", stand_in(0.05)),
        Contestant("edgeclip on the CPU", on_engine("onnxruntime-cpu", "fp16")),
        Contestant("fails", failing),
        Contestant("only small", only_small),
        Contestant("dies", dying),
    ]
    exact, off, cpu, failed, small, dead = gpu.measure(contestants, folder, PIXELS, [1, 8], 2, LATER)
    assert exact["relative_distance"] < 1e-5
    want = image_reference(PIXELS)
    moved = want + 0.05 * np.eye(DIM)[0]
    moved /= np.linalg.norm(moved, axis=1, keepdims=True)
    between = [np.linalg.norm(a - b) for i, a in enumerate(want) for b in want[:i]]
    error = np.linalg.norm(moved - want, axis=1).mean() / np.median(between)
    assert off["relative_distance"] == pytest.approx(error, rel=1e-3)
    assert off["cosine_min"] == pytest.approx((moved * want).sum(axis=1).min(), abs=1e-6)
    assert cpu["relative_distance"] < 1e-5
    assert cpu["uses"] == "CPUExecutionProvider, image-fp16"
    for batch, least in (("1", 2), ("8", 16)):
        assert least <= exact["batches"][batch]["p50_ms"] < 20 * least
        rate = exact["batches"][batch]["pictures_per_s"]
        assert rate == pytest.approx(1000 * int(batch) / exact["batches"][batch]["p50_ms"], rel=1e-2)
    assert (failed["failed"], failed["batches"]) == ("RuntimeError: no such | engine", {})
    assert "p50_ms" in small["batches"]["1"]
    assert small["batches"]["8"] == {"failed": "ValueError: too many rows"}
    assert dead["batches"] == {size: {"failed": "RuntimeError: out of memory"} for size in ("1", "8")}
    assert dead["notes"] == ["the CPU runs 12 Attention"]


def test_fidelity_needs_the_unit_length(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_unit", broken(gpu._unit, "np.linalg.norm(wide, axis=1, keepdims=True)", "1.0"))
    (row,) = gpu.measure([Contestant("exact", stand_in())], folder, PIXELS, [], 1, LATER)
    assert row["relative_distance"] > 0.1


def test_turns_begin_with_another_one_each_round() -> None:
    seen: list[int] = []
    calls = {i: (partial(seen.append, i), 1) for i in range(3)}
    times = gpu._turns(calls, 3, LATER)  # type: ignore[arg-type]
    assert seen == [0, 1, 2, 1, 2, 0, 2, 0, 1]
    assert [len(found) for found in times.values()] == [3, 3, 3]


def test_what_was_measured_is_kept_at_each_step(folder: Path) -> None:
    """A process that ends anywhere leaves the figures so far, and the name of whom it was busy with."""
    kept: list[str] = []
    contestants = [Contestant("small", only_small), Contestant("fails", failing)]
    gpu.measure(contestants, folder, PIXELS, [1, 8], 1, LATER, lambda rows: kept.append(json.dumps(rows)))
    assert len(kept) == 2 + 1 + 2
    busy = [[row.get("failed", "")[:13] for row in json.loads(text)] for text in kept[:2]]
    assert busy == [["the run ended", ""], ["", "the run ended"]]
    assert "p50_ms" not in kept[2]
    assert "p50_ms" in kept[3]


def test_what_the_time_does_not_reach_is_said(folder: Path) -> None:
    (row,) = gpu.measure([Contestant("late", stand_in())], folder, PIXELS, [1], 1, time.monotonic() - 1)
    assert row == {"contestant": "late", "batches": {}, "failed": "left out: the time was up"}


def test_openings_leave_time_for_the_batches(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that takes minutes to build must not cost the others their figures."""

    def slow(folder: Path) -> Runner:
        time.sleep(0.6)
        return stand_in()(folder)

    monkeypatch.setattr(gpu, "TURN_S", 0.0)
    contestants = [Contestant(name, slow) for name in ("first", "second", "third")]
    first, second, third = gpu.measure(contestants, folder, PIXELS, [1], 1, time.monotonic() + 2.0)
    assert "p50_ms" in first["batches"]["1"]
    assert "p50_ms" in second["batches"]["1"]
    assert third["failed"] == "left out: the time was up"


def test_files(folder: Path) -> None:
    contestants = [Contestant("small", only_small), Contestant("fails", failing)]
    rows = gpu.measure(contestants, folder, PIXELS, [1, 8], 1, LATER)
    found = {"machine": {"gpu": "X"}, "rounds": 1, "rows": rows}
    for model in ("b32", "l14", "b32"):
        gpu.write(folder / "results/gpu_x", model, found)
    assert list(json.loads((folder / "results/gpu_x.json").read_text())) == ["b32", "l14"]
    text = (folder / "results/gpu_x.md").read_text()
    assert sorted(path.name for path in (folder / "results").iterdir()) == ["gpu_x.json", "gpu_x.md"]
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1
    assert text.count("RuntimeError: no such / engine") == 2
    assert "ValueError: too many rows" in text
    assert "gpu X." in text


def test_without_a_gpu_it_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("edgeclip.runtime.engines.nvidia.has_gpu", lambda: False)
    with pytest.raises(
        SystemExit, match=r"no NVIDIA GPU with a driver on this machine; see `edgeclip doctor`\."
    ):
        gpu.main([])
    with pytest.raises(SystemExit):
        gpu.main(["--help"])
    assert "pip install onnxruntime-gpu " in capsys.readouterr().out
    assert {name.split()[1] for name in (c.name for c in CONTESTANTS) if name.startswith("edgeclip")} == {
        "onnxruntime-cuda", "tensorrt", "tensorrt-rtx", "onnxruntime-tensorrt", "onnxruntime-tensorrt-rtx"
    }  # fmt: skip
