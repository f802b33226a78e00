"""Which region stands for an example's box: the rule, and transformers' own code on the same arrays."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgeclip.runtime.detect import examples
from edgeclip.runtime.detect.examples import query_of
from edgeclip.runtime.detect.proposals import Proposals
from tests.mutants import broken


def seen_by(seed: int, regions: int = 60) -> Proposals:
    """Boxes of every size in a picture of 1 x 1 pixel, as transformers has them."""
    random = np.random.default_rng(seed)
    low = random.uniform(0, 0.6, (regions, 2))
    high = low + random.uniform(0.05, 0.9, (regions, 2))
    rows = random.normal(size=(regions, 8))
    return Proposals(
        boxes=np.concatenate([low, high.clip(0, 1)], axis=1).astype(np.float32),
        embeddings=(rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32),
        logit_scales=np.ones(regions, np.float32),
        logit_biases=np.zeros(regions, np.float32),
        objectness=random.random(regions).astype(np.float32),
        size=(1, 1),
        model_id="m",
    )


def test_chosen_by_overlap_then_by_unlikeness(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 5], [50, 50, 60, 60]], np.float32)
    vectors = np.array([[1, 0, 0], [0.6, 0.8, 0], [0, 0, 1], [1, 0, 0]], np.float32)
    ones = np.ones(4, np.float32)
    seen = Proposals(boxes, vectors, ones, ones, None, (100, 100), "m")
    bright = replace(seen, objectness=np.array([0.1, 0.2, 0.9, 0.3], np.float32))

    def check() -> None:
        def at(box: Any, of: Proposals = seen) -> list[float]:
            return examples.query_of(of, box, "examples[0]").tolist()

        assert at((0, 0, 10, 10)) == vectors[1].tolist(), (
            "0.9 of the overlap is as good, and it is less like the mean"
        )
        assert at((0, 0, 10, 4)) == vectors[2].tolist()
        assert at((80, 80, 90, 90)) == vectors[3].tolist(), "the nearest where none overlaps"
        assert at(None, bright) == vectors[2].tolist()

    check()
    for old, new in (
        ("_AS_GOOD * best", "best"),
        ("np.argmin(likeness)", "np.argmax(likeness)"),
        ("if not overlap.any()", "if False"),
        ("np.argmax(seen.objectness)", "np.argmin(seen.objectness)"),
    ):
        monkeypatch.setattr(examples, "query_of", broken(query_of, old, new))
        with pytest.raises(AssertionError):
            check()


@pytest.mark.parity
def test_equals_transformers() -> None:
    import torch

    import tests.torchvision_shim  # noqa: F401

    transformers = pytest.importorskip("transformers")

    for seed in range(8):
        seen = seen_by(seed)
        low, high = torch.from_numpy(seen.boxes[None, :, :2]), torch.from_numpy(seen.boxes[None, :, 2:])
        centres = torch.cat([(low + high) / 2, high - low], dim=-1)
        assert seen.objectness is not None
        rows, shown = torch.from_numpy(seen.embeddings[None]), torch.from_numpy(seen.objectness[None])
        stub: Any = SimpleNamespace(
            class_predictor=lambda _, rows=rows: (None, rows),
            box_predictor=lambda *_, centres=centres: centres,
            objectness_predictor=lambda _, shown=shown: shown,
        )
        features = torch.zeros(1, len(seen), 1)
        query, _, _ = transformers.OwlViTForObjectDetection.embed_image_query(stub, features, None)
        np.testing.assert_allclose(
            query_of(replace(seen, objectness=None), None, "x"), query.numpy().ravel(), atol=1e-7
        )
        query, _, _ = transformers.Owlv2ForObjectDetection.embed_image_query(stub, features, None)
        np.testing.assert_allclose(query_of(seen, None, "x"), query.numpy().ravel(), atol=1e-7)
