"""Files that are whole or absent, with every frame at its time."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from edgeclip.errors import InputError
from edgeclip.runtime.video import sinks
from edgeclip.runtime.video.frames import Frame
from edgeclip.runtime.video.sinks import JsonLines, PictureSink, VideoSink, Window, fitted, open_sink
from tests.runtime.detectors import scene
from tests.runtime.video.clips import RED, read_all


def frame(number: int, time_s: float, name: str = "camera", picture: bool = False) -> Frame:
    """Without content: what is written is the drawn picture."""
    return Frame(np.zeros((1, 1, 3), np.uint8), number, time_s, time.monotonic(), name, picture)


def drawn(column: int, size: tuple[int, int] = (96, 128)) -> NDArray[np.uint8]:
    """A red cell in one of 8 columns."""
    return scene({(1, column): RED}, size[1], size[0], 16)


def times(path: Path) -> list[float]:
    """Of each frame, by PyAV."""
    with av.open(str(path)) as container:
        return [float(one.time or 0) for one in container.decode(video=0)]


@pytest.mark.parametrize("codec", ["h264", "mp4v"])
def test_a_video_has_every_frame(tmp_path: Path, codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if codec == "mp4v":
        monkeypatch.setitem(sys.modules, "av", None)
    path = tmp_path / "out" / "film.mp4"
    sink = open_sink(str(path), 25.0)
    for i in range(8):
        sink.write(frame(i, i / 25), drawn(i))
        assert not path.exists()
    sink.close()
    monkeypatch.undo()
    found = read_all(path)
    assert len(found) == 8
    for i, image in enumerate(found):
        assert np.abs(image[20:28, i * 16 + 4 : i * 16 + 12].astype(int) - RED).max() < 40
    np.testing.assert_allclose(times(path), np.arange(8) / 25, atol=2e-3)
    assert [p.name for p in path.parent.iterdir()] == ["film.mp4"]
    plain = tmp_path / "plain"
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode  # others may read it, as any file of this user's
    sink.close()


@pytest.mark.parametrize("codec", ["h264", "mp4v"])
def test_frames_that_were_dropped_leave_their_time(
    tmp_path: Path, codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if codec == "mp4v":
        monkeypatch.setitem(sys.modules, "av", None)
    path = tmp_path / "film.mp4"
    sink = VideoSink(path, 10.0)
    for i, at in enumerate((5.0, 5.1, 5.5, 6.0, 900.0)):
        sink.write(frame(i, at), drawn(i))
    sink.close()
    monkeypatch.undo()
    found, clock = read_all(path), times(path)
    if codec == "h264":
        np.testing.assert_allclose(clock, [0, 0.1, 0.5, 1.0, 895.0], atol=2e-3)
    else:
        columns = [int(image[20, :, 0].argmax()) // 16 for image in found]
        assert columns == [0, 1, 2, 2, 2, 2, 3, 3, 3, 3, 3, *[4] * 11]  # an hour away is one second


def test_sizes_that_video_cannot_have_and_sizes_that_change(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    sink = VideoSink(path, 10.0)
    for i, size in enumerate(((97, 129), (96, 128), (48, 64), (200, 100))):
        sink.write(frame(i, i / 10), np.full((*size, 3), 200, np.uint8))
    sink.close()
    assert [image.shape for image in read_all(path)] == [(96, 128, 3)] * 4


def test_fitting_keeps_the_aspect() -> None:
    wide = fitted(np.full((50, 200, 3), 9, np.uint8), (100, 100))
    assert wide.shape == (100, 100, 3)
    rows = np.flatnonzero(wide.any(axis=(1, 2)))
    assert (rows[0], rows[-1], len(rows)) == (37, 61, 25)
    same = np.arange(99 * 100 * 3, dtype=np.uint8).reshape(99, 100, 3)
    np.testing.assert_array_equal(fitted(same, (98, 100)), same[:98])


def test_without_a_frame_there_is_no_file(tmp_path: Path) -> None:
    VideoSink(tmp_path / "film.mp4", 10.0).close()
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in ("film.mp4", "folder"):
        with pytest.raises(InputError, match="cannot be"):
            open_sink(str(tmp_path / "file" / path), None)
    with pytest.raises(InputError, match="cannot be written"):
        JsonLines(str(tmp_path))
    with pytest.raises(InputError, match=r"cannot save as \.xyz\. Expected a video \(\.mp4"):
        open_sink(str(tmp_path / "film.xyz"), None)


def test_an_encoder_that_fails_is_told_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Fails:
        def write(self, image: object, time_s: float) -> None:
            raise OSError(28, "No space left on device")

        def close(self) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sinks, "_encoder", lambda *_: Fails())
    sink = VideoSink(tmp_path / "film.mp4", 10.0)
    with pytest.raises(
        InputError, match=r"film\.mp4: the video cannot be written \(No space left on device\)"
    ):
        sink.write(frame(0, 0.0), drawn(0))
    with pytest.raises(InputError, match="No space left"):
        sink.close()
    assert list(tmp_path.iterdir()) == []


def test_pictures_keep_their_names(tmp_path: Path) -> None:
    sink = open_sink(str(tmp_path / "out"), None)
    assert isinstance(sink, PictureSink)
    sink.write(frame(0, 0, "a/cat.png", picture=True), drawn(0))
    sink.write(frame(1, 0, "b/cat.jpg", picture=True), drawn(1))
    sink.write(frame(12, 0, "camera.x"), drawn(2))
    sink.close()
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names == ["cat-1.jpg", "cat.jpg", "frame-000012.jpg"]
    image = cv2.imread(str(tmp_path / "out" / "frame-000012.jpg"))
    assert image is not None
    assert image[24, 40, 2] > 200 > 60 > image[24, 40, 0]
    with pytest.raises(InputError, match=r"out: holds .*cat\.png itself"):
        sink.write(frame(2, 0, str(tmp_path / "out" / "cat.png"), picture=True), drawn(0))


def test_a_picture_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fills_the_disk(self: object, place: Path, **_: object) -> None:
        place.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sinks.Pillow.Image, "save", fills_the_disk)
    with pytest.raises(InputError, match=r"frame-000000\.jpg: cannot be written \(No space left"):
        PictureSink(tmp_path).write(frame(0, 0), drawn(0))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_lines_that_do_not_fit_name_their_file() -> None:
    sink = JsonLines("/dev/full")
    with pytest.raises(InputError, match=r"/dev/full: cannot be written \(No space left"):
        sink.write({"frame": 0})
    sink.close()  # or its own error, without a name, would be told instead


def test_lines_can_be_followed_while_they_are_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sink = JsonLines(str(tmp_path / "new" / "out.jsonl"))
    sink.write({"frame": 0, "label": "猫", "path": "\udcff.png"})  # a name that is no Unicode
    text = (tmp_path / "new" / "out.jsonl").read_text(encoding="utf-8")
    assert text == '{"frame": 0, "label": "猫", "path": "\\udcff.png"}\n'
    sink.close()
    stdout = JsonLines("-")
    stdout.write({"label": "猫"})
    stdout.close()
    assert json.loads(capsys.readouterr().out) == {"label": "猫"}


def test_a_window_that_cannot_open_is_one_line() -> None:
    if "NONE" not in cv2.getBuildInformation().partition("GUI:")[2][:60]:
        pytest.skip("this OpenCV has windows")
    with pytest.raises(InputError, match="--show: this OpenCV has no windows") as error:
        Window("edgeclip test")
    assert "\n" not in str(error.value)
