"""What is drawn: where, in which colours, and that every letter is one."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeclip.errors import InputError
from edgeclip.runtime.detections import Detections
from edgeclip.runtime.video import lettering as letters
from edgeclip.runtime.video.draw import colours_of, depths_of, draw
from edgeclip.runtime.video.lettering import lettering
from tests.mutants import broken


def seen(boxes: list[list[float]], labels: tuple[str, ...] = ("a cup",), **others: object) -> Detections:
    """Detections with scores that fall, in a picture of 200 x 300."""
    count = len(boxes)
    return Detections(
        np.array(boxes, np.float32).reshape(count, 4),
        np.linspace(0.9, 0.5, count, dtype=np.float32),
        np.arange(count) % len(labels),
        labels,
        (200, 300),
        **others,  # type: ignore[arg-type]
    )


def picture(level: int = 128) -> NDArray[np.uint8]:
    """Grey."""
    return np.full((200, 300, 3), level, np.uint8)


def test_a_box_stands_where_it_is_and_nothing_else_changes() -> None:
    found = draw(picture(), seen([[100, 80, 200, 160]]))
    colour = colours_of(("a cup",))[0]
    assert tuple(found[120, 100]) == colour == tuple(found[120, 199])
    assert tuple(found[159, 150]) == colour
    changed = (found != 128).any(axis=2)
    changed[60:164, 96:204] = False  # the box with its rim, and the plate above
    assert not changed.any()
    assert (found[85:155, 105:195] == 128).all()  # what is within stays to be seen
    assert (picture() == 128).all()


def test_a_shifted_box_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeclip.runtime.video import draw as module

    monkeypatch.setattr(module, "_box", broken(module._box, "x1 - 1", "x1 + 3"))
    with pytest.raises(AssertionError):
        test_a_box_stands_where_it_is_and_nothing_else_changes()


@pytest.mark.parametrize("level", [0, 128, 255])
def test_text_and_box_are_readable_on_any_background(level: int) -> None:
    labels = tuple(f"label {i}" for i in range(12))
    for i in range(len(labels)):
        found = draw(picture(level), seen([[100, 80, 200, 160]], (labels[i],)))
        own = colours_of((labels[i],))[0]
        plate = found[60:79, 100:].reshape(-1, 3).astype(int)
        light = plate @ [0.299, 0.587, 0.114]
        shown = light[(plate == own).all(axis=1)]
        assert len(shown) > 100
        ink = light[(plate == 0).all(axis=1) | (plate == 255).all(axis=1)]
        assert np.abs(ink - shown[0]).max() > 100  # of 255
        assert {own, (0, 0, 0)} <= {
            *map(tuple, found[120, 95:106].tolist())
        }  # on a ground of its own colour too


def test_boxes_beyond_the_picture_and_tiny_pictures() -> None:
    boxes = [
        [-50, -40, 20, 30],
        [250, 150, 900, 700],
        [-9, -9, 999, 999],
        [10, 10, 10, 10],
        [400, 400, 500, 500],
    ]
    assert draw(picture(), seen(boxes)).shape == (200, 300, 3)
    for size in ((1, 1), (3, 40), (40, 3)):
        found = Detections(
            np.array([[0, 0, 2, 2]], np.float32), np.ones(1, np.float32), np.zeros(1, np.int64), ("a",), size
        )
        assert draw(np.zeros((*size, 3), np.uint8), found).shape == (*size, 3)
    assert (draw(picture(), seen([])) == 128).all()


def test_colours_stay_when_other_prompts_come() -> None:
    before, after = colours_of(("a cup", "a dog")), colours_of(("a tree", "a dog", "a cup"))
    assert before[0] == after[2]
    assert before[1] == after[1]
    many = colours_of(tuple(f"label {i}" for i in range(36)))
    assert len(set(many)) == 36
    assert (
        colours_of(tuple(map(str, range(50))))[49] in many
    )  # more than there are: shared, and no end of searching


def test_a_track_has_its_own_colour() -> None:
    boxes = [[10, 80, 80, 160], [150, 80, 220, 160]]
    tracked = seen(boxes, track_ids=np.array([3, 4]))
    by_label, by_track = draw(picture(), tracked), draw(picture(), tracked, by="track")
    assert (by_label[120, 10] == by_label[120, 150]).all()
    assert (by_track[120, 10] != by_track[120, 150]).any()
    assert (draw(picture(), seen(boxes)) != by_label).any()  # the ids are written


def test_children_are_thinner() -> None:
    assert depths_of(np.array([-1, 0, 1, -1, 3]), 5).tolist() == [0, 1, 2, 0, 1]
    assert depths_of(None, 2).tolist() == [0, 0]
    assert depths_of(np.array([1, 0]), 2).max() <= 2  # a circle, from outside, ends
    large = np.full((1000, 1000, 3), 128, np.uint8)
    boxes = np.array([[100, 100, 400, 400], [600, 600, 900, 900]], np.float32)
    found = Detections(
        boxes, np.ones(2, np.float32), np.zeros(2, np.int64), ("a",), (1000, 1000), np.array([-1, 0])
    )
    drawn = draw(large, found)
    thick = [
        (drawn[row, column - 20 : column + 20] != 128).any(axis=1).sum()
        for row, column in ((250, 100), (750, 600))
    ]
    assert thick[0] > thick[1] > 0


def test_letters_beyond_ascii_are_drawn_by_a_font_that_has_them(caplog: pytest.LogCaptureFixture) -> None:
    if not letters._fonts():
        pytest.skip("no fonts on this machine")
    masks = [lettering(text, 20) for text in ("кошка", "собака", "ü", "ä")]
    if "no font on this machine" in caplog.text:
        pytest.skip("no font with Cyrillic on this machine")
    assert all(mask.max() > 200 for mask in masks)
    assert not np.array_equal(masks[2], masks[3])  # neither "?" nor an empty box
    assert abs(masks[0].shape[0] - 20) < 12


def test_letters_that_no_font_has_are_escaped_once_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(letters, "_fonts", lambda: ())
    for cache in (letters._font_for, letters._drawn):
        cache.cache_clear()
    for score in ("0.91", "0.92"):
        wanted = lettering(f"\\u732b {score}", 18)
        np.testing.assert_array_equal(lettering(f"猫 {score}", 18), wanted)
    assert caplog.text.count("no font on this machine has all of '猫'") == 1
    for cache in (letters._font_for, letters._drawn):
        cache.cache_clear()
    with pytest.raises(InputError, match=r"nowhere\.ttf: cannot be read as a font"):
        lettering("猫", 18, "nowhere.ttf")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((200, 300), np.uint8), r"expected \(H, W, 3\) uint8 RGB, got \(200, 300\) uint8"),
        (np.zeros((200, 300, 3), np.float32), "got .* float32"),
        (
            np.zeros((100, 300, 3), np.uint8),
            r"of a picture of \(200, 300\) \(H, W\), got one of \(100, 300\)",
        ),
    ],
)
def test_another_picture_is_refused(image: NDArray[np.uint8], message: str) -> None:
    with pytest.raises(InputError, match=message):
        draw(image, seen([[0, 0, 10, 10]]))
