"""A clip in, the right boxes out; prompts that change; drops, lost sources and Ctrl-C. The planted detector knows colours."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgeclip
from edgeclip.errors import InputError
from edgeclip.runtime.detect.examples import Example
from edgeclip.runtime.detections import Detections
from edgeclip.runtime.model import Model
from edgeclip.runtime.video.frames import SourceLost
from edgeclip.runtime.video.reader import Patience
from edgeclip.runtime.video.stream import Session, stream
from tests.mutants import broken
from tests.runtime.detectors import box_of, make_detector, scene
from tests.runtime.video.clips import (
    CELL,
    FPS,
    GREEN,
    HandSource,
    Opener,
    cells_of,
    crossing,
    until,
    write_clip,
)

QUICK = Patience(stall_s=1e9, attempts=1, first_s=0.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """The planted detector."""
    with edgeclip.load(make_detector(tmp_path_factory.mktemp("planted") / "bundle"), threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Red goes right, green goes left, a cell every three frames."""
    return str(write_clip(tmp_path_factory.mktemp("clip") / "crossing.mp4", crossing()))


def places(found: Detections) -> dict[str, list[float]]:
    """Label to box; each label once."""
    assert len(set(found.names)) == len(found)
    return dict(zip(found.names, found.boxes.tolist(), strict=True))


def wanted(number: int) -> dict[str, list[float]]:
    """Of a frame of the clip, cut at the border as detections are."""
    (red, green) = cells_of(number)
    return {
        name: np.clip(box_of(*cell, 255, CELL), 0, 128).tolist()
        for name, cell in (("red", red), ("green", green))
    }


def check(session: Session) -> list[Any]:
    """Every frame in order, each with its two boxes."""
    results = list(session)
    assert [result.frame.number for result in results] == list(range(24))
    for result in results:
        got, want = places(result.detections), wanted(result.frame.number)
        assert got.keys() == want.keys(), result.frame.number
        for name, box in want.items():  # compression moves a cell's brightness by a level or two
            np.testing.assert_allclose(got[name], box, atol=1.0)
        assert result.detections.size == result.frame.image.shape[:2]
    return results


def test_every_frame_of_a_clip_has_its_boxes(model: Model, clip: str) -> None:
    with stream(model, clip, ["red", "green"]) as session:
        results = check(session)
    np.testing.assert_allclose([r.frame.time_s for r in results], np.arange(24) / FPS, atol=1e-3)
    last = results[-1].stats
    assert (last.frames, last.dropped, last.reconnects) == (24, 0, 0)
    assert 0 < last.p50_ms <= last.p90_ms
    assert last.fps > 0
    assert len({id(r.frame.image) for r in results}) == 24
    assert not (
        results[0].frame.image == results[-1].frame.image
    ).all()  # frames that were kept stay as they were


def test_blue_seen_as_red_would_be_seen(model: Model, clip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    turned = broken(Session.__next__, "frame.image, asked", "frame.image[..., ::-1].copy(), asked")
    monkeypatch.setattr(Session, "__next__", turned)
    with pytest.raises(AssertionError), stream(model, clip, ["red", "green"]) as session:
        check(session)


def test_tracks_are_stable_while_squares_cross(model: Model, clip: str) -> None:
    pytest.importorskip("trackers", reason="tracking is an extra: edgeclip[track]")
    ids: dict[str, set[int]] = {"red": set(), "green": set()}
    with stream(model, clip, ["red", "green"], track=True) as session:
        for result in session:
            found = result.detections
            assert found.track_ids is not None
            for name, number in zip(found.names, found.track_ids.tolist(), strict=True):
                if result.frame.number > 0:
                    ids[name].add(number)
    assert sorted(map(len, ids.values())) == [1, 1]
    assert ids["red"] | ids["green"] == {0, 1}


def test_prompts_change_at_a_frames_border(model: Model, clip: str) -> None:
    with stream(model, clip, ["red"], threshold={"red": 0.4}) as session:
        for result in session:
            number = result.frame.number
            labels, name = (("red",), "red") if number < 10 else (("the green", "blue"), "the green")
            assert result.detections.labels == labels
            assert result.detections.names == [name]
            if number == 9:
                changer = threading.Thread(target=session.set_prompts, args=(["the green", "blue"],))
                changer.start()
                changer.join()
            if number == 15:
                with pytest.raises(InputError, match="label"):
                    session.set_prompts([""])  # the old ones stay
                with pytest.raises(InputError, match="threshold"):
                    session.set_prompts(["red"], threshold=7)
    assert number == 23


def test_frames_go_on_while_texts_are_embedded(model: Model, clip: str) -> None:
    class Slow:
        """Embeds texts when it is let."""

        going, embedding = threading.Event(), threading.Event()

        def __getattr__(self, name: str) -> Any:
            return getattr(model, name)

        def make_prompts(self, labels: Any, **options: Any) -> Any:
            if labels == ["green"]:
                self.embedding.set()
                assert self.going.wait(20)
            return model.make_prompts(labels, **options)

    slow = Slow()
    with stream(slow, clip, ["red"]) as session:  # type: ignore[arg-type]
        changer = threading.Thread(target=session.set_prompts, args=(["green"],))
        changer.start()
        assert slow.embedding.wait(20)
        assert [next(session).detections.names for _ in range(5)] == [["red"]] * 5
        slow.going.set()
        changer.join()
        assert next(session).detections.names == ["green"]


def test_examples_are_looked_at_once(model: Model, clip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    real = type(model._detector).propose

    def counted(self: Any, *arguments: Any, **options: Any) -> Any:
        looked.append(1)
        return real(self, *arguments, **options)

    monkeypatch.setattr(type(model._detector), "propose", counted)
    picture = scene({(4, 4): GREEN}, 128, 128, CELL)
    example = Example(picture, (64, 64, 80, 80), "like this")
    with stream(model, clip, examples=[example]) as session:
        assert {name for result in session for name in result.detections.names} == {"like this"}
    assert len(looked) == 1


class Slow:
    """A model that takes one frame at a time from a test."""

    def __init__(self) -> None:
        self.let, self.seen = threading.Semaphore(0), list[int]()

    def detect(self, image: Any, labels: Any, **options: Any) -> Detections:
        """Let through by the test."""
        assert self.let.acquire(timeout=20)
        self.seen.append(int(image[0, 0, 0]))
        none = np.empty(0)
        return Detections(none.reshape(0, 4), none, none.astype(int), ("a",), image.shape[:2])

    def detect_each(self, images: Any, labels: Any, **options: Any) -> list[Any]:
        """Nothing to check."""
        return []

    def make_prompts(self, labels: Any, **options: Any) -> Any:
        """Nothing to embed."""
        return labels


def test_a_slow_model_sees_the_newest_frame_and_drops_are_counted() -> None:
    source, model = HandSource(), Slow()
    session = stream(model, "hand", ["a"], patience=QUICK, open_with=Opener(source))  # type: ignore[arg-type]
    results: list[Any] = []
    worker = threading.Thread(target=lambda: results.extend(session))
    worker.start()
    source.give(1)
    reader: Any = session._feeds[0].reader
    until(lambda: reader._number == 1 and reader._frame is None)  # the model works on it
    source.give(2, 3, 4, 5, 6)
    until(lambda: reader.dropped == 4)
    model.let.release()
    until(lambda: len(results) == 1 and reader._frame is None)
    source.give(7)
    until(lambda: reader._number == 7)
    for _ in range(2):
        model.let.release()
    until(lambda: len(results) == 3)
    source.items.put(None)
    session.close()
    worker.join(timeout=20)
    assert model.seen == [1, 6, 7]
    assert [r.frame.number for r in results] == [0, 5, 6]
    assert results[-1].stats.dropped == 4


def test_several_sources_take_turns(model: Model, clip: str, tmp_path: Path) -> None:
    other = str(write_clip(tmp_path / "other.mp4", crossing(6)))
    with stream(model, [clip, other], ["red", "green"]) as session:
        order = [(result.source, result.frame.number) for result in session]
    assert order[:12] == [(i % 2, i // 2) for i in range(12)]
    assert order[12:] == [(0, i) for i in range(6, 24)]


def test_one_of_two_cameras_that_is_lost_does_not_end_the_other(caplog: pytest.LogCaptureFixture) -> None:
    sources, model = [HandSource("left"), HandSource("right")], Slow()
    opener = Opener(*sources, InputError("left: no route."), InputError("right: no route."))
    model.let.release(10)
    session = stream(model, ["left", "right"], ["a"], patience=QUICK, open_with=opener)  # type: ignore[arg-type]
    sources[0].give(SourceLost("left: gone."))
    until(lambda: session._feeds[0].reader.ready)
    for level in (1, 2):
        sources[1].give(level)
        assert next(session).source == 1
    assert "left: no route. Given up after 1 attempts in a row. The other sources go on." in caplog.text
    sources[1].give(SourceLost("right: gone."))
    with pytest.raises(SourceLost, match="right: no route"):
        next(session)
    session.close()


def test_a_recording_as_if_it_were_a_camera(model: Model, clip: str) -> None:
    begun = time.monotonic()
    with stream(model, clip, ["red", "green"], newest=True) as session:
        numbers = []
        for result in session:
            numbers.append(result.frame.number)
            time.sleep(0.05 if len(numbers) < 3 else 0)
    assert time.monotonic() - begun > 23 / FPS - 0.1  # at its own pace
    assert numbers == sorted(set(numbers))
    assert result.stats.dropped == numbers[-1] + 1 - len(numbers)


def test_closing_ends_an_iteration_that_waits() -> None:
    source = HandSource()
    session = stream(Slow(), "hand", ["a"], patience=QUICK, open_with=Opener(source))  # type: ignore[arg-type]
    worker = threading.Thread(target=lambda: list(session))
    worker.start()
    source.items.put(None)
    session.close()
    worker.join(timeout=20)
    assert not worker.is_alive()


@pytest.mark.parametrize(
    ("sources", "prompts", "message"),
    [
        ([], ["red"], "sources: expected one or more, got none"),
        ("nowhere.mp4", ["red"], "no such source"),
        (["CLIP", "nowhere.mp4"], ["red"], "no such source"),
        ("CLIP", None, "none baked in"),
        ("CLIP", "a cup", "label"),
        ("CLIP", "[a cup [", "prompt"),
    ],
)
def test_what_cannot_begin_is_told(model: Model, clip: str, sources: Any, prompts: Any, message: str) -> None:
    named = [clip if s == "CLIP" else s for s in ([sources] if isinstance(sources, str) else sources)]
    with pytest.raises(InputError, match=message):
        stream(model, named, prompts)


def test_growth_is_bytes_a_frame() -> None:
    from benchmarks.stream_memory import growth

    assert growth([5_000_000 + 700 * i for i in range(2000)]) == 700
    assert growth([10**9] * 500 + [5_000_000] * 1500) == 0  # what goes on before frame 500 is no leak


@pytest.mark.parity
def test_memory_does_not_grow_with_frames(model: Model, tmp_path: Path) -> None:
    """A reduced `benchmarks.stream_memory`: all sinks and tracking; of 700 frames the last 400 count."""
    pytest.importorskip("trackers", reason="tracking is an extra: edgeclip[track]")
    from benchmarks import stream_memory

    clip = write_clip(tmp_path / "long.mp4", list(stream_memory.frames(700, (128, 160))))
    prompts = ["red", "green", "blue", "yellow"]
    resident, last = stream_memory.follow(model, clip, tmp_path, prompts, newest=False)
    assert last.stats.frames == 700
    assert stream_memory.growth(resident, first=300) < 1000
