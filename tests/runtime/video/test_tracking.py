"""Ids that stay: through crossings, occlusions and dropped frames, never shared by two labels."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeclip.errors import MissingExtraError
from edgeclip.runtime.detections import Detections
from edgeclip.runtime.video import tracking
from edgeclip.runtime.video.tracking import ByteTrack, TrackSettings
from tests.mutants import broken

pytest.importorskip("trackers", reason="tracking is an extra: edgeclip[track]")

FPS = 25.0
Box = tuple[float, float]  # left top corner; 40 x 40 pixels


def seen(things: list[tuple[str, Box]], labels: tuple[str, ...] = ("red", "green")) -> Detections:
    """Detections of these things, in this order."""
    corners = np.array([box for _, box in things], np.float32).reshape(-1, 2)
    return Detections(
        np.concatenate([corners, corners + 40], axis=1),
        np.linspace(0.9, 0.3, len(things), dtype=np.float32),
        np.array([labels.index(name) for name, _ in things], np.int64),
        labels,
        (480, 640),
    )


def ids(found: Detections) -> list[int]:
    """Of each detection."""
    assert found.track_ids is not None
    return found.track_ids.tolist()


def meeting(i: int) -> list[tuple[str, Box]]:
    """Two red things that cross at frame 25, 20 pixels apart; the order changes from frame to frame."""
    things = [("red", (100.0 + 8 * i, 100.0)), ("red", (500.0 - 8 * i, 120.0))]
    return things if i % 2 else things[::-1]


def follow(tracker: ByteTrack) -> set[tuple[int, ...]]:
    """(id of the one that goes right, of the one that goes left) in every frame but the first."""
    pairs = set()
    for i in range(50):
        found = ids(tracker.update(seen(meeting(i)), i / FPS))
        pairs.add(tuple(found if i % 2 else found[::-1]) if i else (0, 0))
    pairs.discard((0, 0))
    return pairs


def test_two_of_a_kind_cross_and_keep_their_ids() -> None:
    pairs = follow(ByteTrack(fps=FPS))
    assert len(pairs) == 1
    assert set(pairs.pop()) == {0, 1}


def test_ids_given_back_in_the_trackers_own_order_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = broken(tracking._Lane.update, 'local[found.data["row"]]', "local[:]")
    monkeypatch.setattr(tracking._Lane, "update", lost)
    with pytest.raises(AssertionError):
        test_two_of_a_kind_cross_and_keep_their_ids()


def test_one_out_of_sight_for_a_while_keeps_its_id_and_for_long_gets_another() -> None:
    def places(hidden: range, until: int) -> list[list[int]]:
        tracker = ByteTrack(TrackSettings(lost_s=1.0), FPS)
        return [
            ids(tracker.update(seen([] if i in hidden else [("red", (100.0 + 3 * i, 100.0))]), i / FPS))
            for i in range(until)
        ]

    short = places(range(10, 22), 40)
    assert short[9] == short[22] == short[39] == [0]
    assert short[15] == []
    long = places(range(10, 60), 80)
    assert long[79] == [1]


def test_two_labels_never_share_an_id_even_in_one_place() -> None:
    tracker = ByteTrack(fps=FPS)
    for i in range(20):
        here = (100.0, 100.0)
        name = "red" if i < 10 else "green"
        found = ids(tracker.update(seen([(name, here)]), i / FPS))
    assert found == [1]
    both = [ids(tracker.update(seen([("green", here), ("red", here)]), (20 + i) / FPS)) for i in range(5)]
    assert both[-1] == [1, 0]


def test_labels_are_known_by_their_text_when_prompts_change() -> None:
    tracker = ByteTrack(fps=FPS)
    for i in range(5):
        found = ids(tracker.update(seen([("red", (100, 100)), ("green", (300, 100))]), i / FPS))
    assert sorted(found) == [0, 1]
    again = tracker.update(seen([("green", (300, 100))], ("blue", "green")), 5 / FPS)
    assert ids(again) == [found[1]]


def test_frames_that_were_dropped_count_by_their_time() -> None:
    def moved(step: int) -> list[int]:
        tracker = ByteTrack(TrackSettings(lost_s=1.0), FPS)
        last: list[int] = []
        for i in [*range(0, 20), *range(20, 80, step)]:  # 4 pixels a frame; 40 wide
            last = ids(tracker.update(seen([("red", (10.0 + 4 * i, 100.0))]), i / FPS))
        return last

    assert moved(1) == moved(15) == [0]  # 60 pixels between two looks: only motion over time finds it again


def test_memory_does_not_grow_with_what_has_gone() -> None:
    tracker = ByteTrack(TrackSettings(lost_s=0.2), FPS)
    for i in range(120):
        steady, passing = ("red", (10.0, 10.0)), ("red", (100.0 + 97 * (i // 4 % 5), 300.0))  # 30 of them
        tracker.update(seen([steady, passing]), i / FPS)
    assert tracker._next >= 30
    assert len(tracker._lanes["red"].ids) <= 6
    for i in range(120, 240):  # prompts that change and change
        name = f"thing {i // 10}"
        tracker.update(seen([(name, (10.0, 10.0))], (name,)), i / FPS)
    assert len(tracker._lanes) <= 2


def test_the_same_as_the_library_where_there_is_one_label() -> None:
    import supervision
    import trackers

    def boxes(i: int) -> NDArray[np.float32]:
        return seen(
            [("red", (20.0 + 5 * i, 40.0)), ("red", (300.0, 20.0 + 6 * i)), ("red", (600.0 - 7 * i, 300.0))]
        ).boxes

    theirs = trackers.ByteTrackTracker(
        lost_track_buffer=30, frame_rate=FPS, track_activation_threshold=0.0, high_conf_det_threshold=0.0
    )
    ours = ByteTrack(fps=FPS)
    for i in range(30):
        rows = boxes(i)
        names = ["red"] * 3
        found = ours.update(seen([(n, tuple(r[:2])) for n, r in zip(names, rows, strict=True)]), i / FPS)  # type: ignore[misc]
        given = supervision.Detections(
            xyxy=rows.astype(float), confidence=np.full(3, 0.9), data={"row": np.arange(3)}
        )
        wanted = theirs.update(given, timestamp=i / FPS)
        order = np.argsort(wanted.data["row"])
        assert ids(found) == wanted.tracker_id[order].tolist()


def test_nothing_seen_gives_no_ids() -> None:
    assert ids(ByteTrack(fps=FPS).update(seen([]), 0.0)) == []


def test_without_the_package_one_line_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trackers", None)
    with pytest.raises(MissingExtraError, match=r"tracking needs the package `trackers`.*edgeclip\[track\]"):
        ByteTrack()
