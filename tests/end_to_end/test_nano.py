"""The embedded model, as a user meets it: whole, small, and right about the pictures of the examples."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

import edgeclip
from edgeclip.runtime.verify import verify

EXAMPLES = Path(__file__).parents[2] / "examples"
PICTURES = sorted((EXAMPLES / "pictures").glob("*.png"))
LABELS = [line for line in (EXAMPLES / "labels.txt").read_text().splitlines() if not line.startswith("#")]


def run_example(*arguments: str) -> str:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=EXAMPLES, capture_output=True, text=True, check=True).stdout


def test_is_whole_small_and_licensed() -> None:
    bundle = edgeclip.open_bundle("nano")
    size = sum(path.stat().st_size for path in bundle.root.rglob("*") if path.is_file())
    assert size < 8e6
    verify(bundle).require()
    assert bundle.manifest.licence.weights == "Apache-2.0"
    assert not bundle.manifest.licence.warnings
    assert all(v.fidelity and v.fidelity.relative_distance <= 0.01 for v in bundle.manifest.variants)


def test_names_drawings_that_it_was_not_trained_on() -> None:
    """13 pictures of clip art and 13 held-out emoji: 17 are right, chance is 1."""
    with edgeclip.load("nano") as model:
        results = model.classify(PICTURES, LABELS)
    right = [
        slug(str(result.label)).endswith(path.stem) for path, result in zip(PICTURES, results, strict=True)
    ]
    assert len(right) == len(LABELS) == 26
    assert sum(right) >= 15, [(p.stem, r.label) for p, r in zip(PICTURES, results, strict=True)]


def test_finds_drawings_that_it_was_not_trained_on() -> None:
    """Eight held-out emoji in a scene, one of them small: six are found, at a score of 0.2."""
    wanted = {
        "a train": (20, 210, 150), "a poodle": (200, 250, 110), "a sparkler": (390, 210, 100), "a moon": (400, 20, 84),
        "socks": (330, 300, 76), "a person cartwheeling": (40, 30, 120), "flag algeria": (210, 60, 130),
    }  # fmt: skip
    with edgeclip.load("nano") as model:
        found = model.detect(EXAMPLES / "scenes/park.png", list(wanted), threshold=0.2)
        seen = model.propose(EXAMPLES / "scenes/park.png")
        again = model.detect_in(seen, list(wanted), threshold=0.2)
        shown = edgeclip.Example(EXAMPLES / "scenes/park.png", (390, 210, 490, 310), "this firework")
        by_picture = model.detect(EXAMPLES / "scenes/park.png", examples=[shown], threshold=0.0)
    right = {
        name for name, box in zip(found.names, found.boxes, strict=True) if _overlap(box, *wanted[name]) > 0.5
    }
    assert len(right) >= 5, (found.names, found.boxes)
    np.testing.assert_array_equal(again.boxes, found.boxes)
    assert _overlap(by_picture.boxes[0], *wanted["a sparkler"]) > 0.5, "a box on a picture finds it, too"


def _overlap(box: np.ndarray, left: int, top: int, side: int) -> float:
    """Of a box and a square, intersection over union. The drawings are a little narrower than their squares."""
    low, high = np.maximum(box[:2], (left, top)), np.minimum(box[2:], (left + side, top + side))
    shared = float(np.clip(high - low, 0, None).prod())
    return shared / (float((box[2:] - box[:2]).prod()) + side * side - shared)


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def test_backgrounds_do_not_decide(tmp_path: Path) -> None:
    apple = Image.open(EXAMPLES / "pictures/apple.png").convert("RGBA")
    with edgeclip.load("nano") as model:
        for colour in ("white", "lightblue", "black"):
            canvas = Image.new("RGBA", apple.size, colour)
            canvas.alpha_composite(apple)
            assert model.classify(canvas.convert("RGB"), LABELS).label == "an apple", colour


def test_no_text_and_odd_texts_give_unit_vectors() -> None:
    with edgeclip.load("nano") as model:
        vectors = model.embed_texts(["", "🍎", "ein Apfel", "a " * 200])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_example_ranks_a_folder() -> None:
    lines = run_example("rank_folder.py", "pictures", "a vehicle").splitlines()
    best = [Path(line.split()[1]).stem for line in lines]
    assert len(best) == 3
    assert set(best[:2]) == {"train", "car"}


def test_example_draws_a_sheet(tmp_path: Path) -> None:
    run_example("label_sheet.py", "pictures", "labels.txt", str(tmp_path / "sheet.png"))
    sheet = Image.open(tmp_path / "sheet.png")
    assert sheet.width > 1000
    assert np.asarray(sheet.convert("L")).std() > 20, "nothing was drawn"
