"""Copies have times of their own on a real GPU, and what a process holds there is counted: pytest -m gpu."""

from __future__ import annotations

from pathlib import Path

import pytest

import edgeclip
from edgeclip.bench.between import Nothing
from edgeclip.bench.memory import measure_memory
from edgeclip.bench.settings import preset
from edgeclip.bench.stages import measure_stages
from edgeclip.bench.tasks import open_task
from edgeclip.runtime.engines.onnxruntime_cuda import NAME, present
from tests.bench.test_stages import jpegs
from tests.runtime.toy import make_bundle

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not present(), reason="needs an NVIDIA GPU and onnxruntime-gpu"),
]
SETTINGS = preset("quick", part_seconds=0.5, engines=(NAME,), labels=("a cat", "a dog"))


def test_copies_are_told_apart(tmp_path: Path) -> None:
    with edgeclip.load(make_bundle(tmp_path / "toy"), engine=NAME) as model:
        found = measure_stages(model, open_task("classify", model, jpegs(4), SETTINGS), SETTINGS, Nothing())
    times = {stage.name: stage.time.p50.ms for stage in found.stages}
    assert min(times["copy in"], times["image tower"], times["copy out"]) > 0
    assert sum(stage.time.mean_ms for stage in found.stages) == pytest.approx(found.whole.mean_ms)
    assert "overlap is off" in found.notes[0]


def test_what_the_process_holds_there(tmp_path: Path) -> None:
    pytest.importorskip("pynvml")
    found = measure_memory(make_bundle(tmp_path / "toy"), SETTINGS, jpegs(2))
    assert found.device_bytes is not None
    assert found.device_bytes > 10 << 20, "CUDA's own context at least"
