"""Detectors on onnxruntime-cuda say what they say on the CPU: pytest -m gpu."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import edgeclip
from edgeclip.runtime.engines.onnxruntime_cuda import PROVIDER, present
from tests.runtime.detectors import make_detector, pack_of, scene

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not present(), reason="needs an NVIDIA GPU and onnxruntime-gpu"),
]
SCENES = sorted((Path(__file__).parents[2] / "examples/scenes").glob("*.png"))
PROMPTS = ["an apple", "a dog", "a tree", "a cup", "a bicycle", "a car"]


def test_nano_finds_the_same() -> None:
    found = []
    for engine in ("onnxruntime-cpu", "onnxruntime-cuda"):
        with edgeclip.load("nano", engine=engine) as model:
            seen = model.propose(SCENES)
            found.append((seen, model.detect(SCENES, PROMPTS, threshold=0.2, nms_iou=1.0)))
            used = model.info().towers["detector"]
    assert (used["engine"], used["provider"]) == ("onnxruntime-cuda", PROVIDER)
    (cpu_seen, cpu), (cuda_seen, cuda) = found
    for want, got in zip(cpu_seen, cuda_seen, strict=True):
        side = max(want.size)
        np.testing.assert_allclose(got.boxes / side, want.boxes / side, rtol=0, atol=1e-4)
        np.testing.assert_allclose(got.embeddings, want.embeddings, rtol=0, atol=1e-4)
    for one, other in zip(cpu, cuda, strict=True):
        assert len(one)
        assert abs(len(one) - len(other)) <= 1  # one may lie on the threshold
        count = min(len(one), len(other))
        np.testing.assert_allclose(other.scores[:count], one.scores[:count], rtol=0, atol=1e-3)


def test_every_batch_of_a_made_up_detector(tmp_path: Path) -> None:
    make_detector(tmp_path / "made", objectness=True)
    pictures = [scene({(i, 3): (255, 0, 0), (2, i): (0, 200 + i, 0)}) for i in range(8)]
    found = []
    for engine in ("onnxruntime-cpu", "onnxruntime-cuda"):
        with edgeclip.load(tmp_path / "made", engine=engine) as model:
            pack = pack_of(["red", "green"])
            boxes = [
                [one.boxes for one in model.detect(pictures[:count], pack, threshold=0.5, batch_size=count)]
                for count in (1, 3, 8)
            ]
        found.append(boxes)
    for want, got in zip(*found, strict=True):
        for one, other in zip(want, got, strict=True):
            assert len(one) == 2
            np.testing.assert_allclose(other, one, rtol=0, atol=0.05)  # pixels
