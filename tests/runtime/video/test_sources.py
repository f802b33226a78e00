"""What a text names, and what comes out of it: compared with frames that OpenCV and PyAV decode by themselves."""

from __future__ import annotations

import traceback
from functools import partial
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from edgeclip.errors import InputError, MissingExtraError
from edgeclip.runtime.video import opencv_source, pipelines
from edgeclip.runtime.video.frames import Buffers, Frame, FrameSource
from edgeclip.runtime.video.opencv_source import OpenCVSource
from edgeclip.runtime.video.picture_source import PictureSource
from edgeclip.runtime.video.pyav_source import PyAVSource
from edgeclip.runtime.video.reader import NewestFrame, Patience
from edgeclip.runtime.video.sources import open_source, shown
from tests.mutants import broken
from tests.runtime.detectors import scene
from tests.runtime.video.clips import (
    BLUE,
    CELL,
    RED,
    crossing,
    read_all,
    served,
    transport_stream,
    turned,
    until,
    write_clip,
)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 frames; red is seen apart from blue."""
    return write_clip(tmp_path_factory.mktemp("clip") / "crossing.mp4", crossing())


def frames(source: FrameSource) -> list[Frame]:
    """All of them."""
    found = []
    while (frame := source.read()) is not None:
        found.append(frame)
    source.close()
    return found


def test_a_video_gives_every_frame_in_rgb_with_its_time(clip: Path) -> None:
    got = frames(open_source(str(clip)))
    assert [frame.number for frame in got] == list(range(24))
    np.testing.assert_allclose([frame.time_s for frame in got], np.arange(24) / 25, atol=1e-3)
    for frame, wanted in zip(got, read_all(clip), strict=True):
        np.testing.assert_array_equal(frame.image, wanted)  # after all were read: no memory was used twice
    assert got[0].image[2 * CELL + 8, 8, 0] > 240 > 20 > got[0].image[2 * CELL + 8, 8, 2]


def test_blue_for_red_would_be_seen(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    swapped = broken(OpenCVSource._rgb, "cv2.cvtColor(frame, code, dst=image)", "image[:] = frame")
    monkeypatch.setattr(OpenCVSource, "_rgb", swapped)
    with pytest.raises(AssertionError):
        test_a_video_gives_every_frame_in_rgb_with_its_time(clip)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_turned_video_is_upright_in_both_libraries(tmp_path: Path, degrees: int) -> None:
    plain = write_clip(tmp_path / "wide.mp4", [scene({(0, 0): RED, (0, 7): BLUE}, 128, 96, CELL)] * 3)
    stored = read_all(plain)[0]
    wanted = np.rot90(stored, -degrees // 90)  # numpy turns the other way
    path = str(turned(plain, degrees))
    for source in (open_source(path), PyAVSource(path, path, {}, 5.0)):
        got = frames(source)[0].image
        assert got.shape == wanted.shape
        np.testing.assert_allclose(
            got.astype(int), wanted, atol=6
        )  # two YUV conversions differ by some levels


def test_each_nth_frame_keeps_its_own_number_and_time(clip: Path) -> None:
    source = open_source(str(clip), every=5)
    assert source.fps == 5.0
    got = frames(source)
    assert [frame.number for frame in got] == [0, 5, 10, 15, 20]
    np.testing.assert_allclose([frame.time_s for frame in got], np.arange(5) / 5, atol=1e-3)
    np.testing.assert_array_equal(got[3].image, read_all(clip)[15])
    with pytest.raises(InputError, match="every: expected 1 or more, got 0"):
        open_source(str(clip), every=0)


def test_pyav_gives_the_same_frames(clip: Path) -> None:
    got = frames(PyAVSource("clip", str(clip), {}, 5.0))
    assert [frame.number for frame in got] == list(range(24))
    np.testing.assert_allclose([frame.time_s for frame in got], np.arange(24) / 25, atol=1e-3)
    for frame, wanted in zip(got, read_all(clip), strict=True):
        np.testing.assert_allclose(frame.image.astype(int), wanted, atol=6)


def test_without_ffmpeg_in_opencv_pyav_opens_a_file(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opencv_source, "has_backend", lambda api: False)
    assert isinstance(open_source(str(clip)), PyAVSource)
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'edgeclip\[video\]'"):
        open_source(str(clip))


def test_the_transport_reaches_pyav(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def opened(target: str, **options: object) -> object:
        asked.update(target=target, **options)
        raise av.FFmpegError(5, "Input/output error")

    monkeypatch.setattr(av, "open", opened)
    with pytest.raises(InputError, match=r"rtsp://me:\*\*\*@camera/1: cannot be opened as a video") as error:
        open_source("rtsp://me:secret@camera/1", transport="udp", timeout_s=3)
    assert asked == {
        "target": "rtsp://me:secret@camera/1",
        "options": {"rtsp_transport": "udp"},
        "timeout": 3,
    }
    assert "secret" not in str(error.value)


def test_pictures_in_order_upright_and_a_bad_one_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, level in (("b.png", 20), ("a.png", 10), ("c.png", 30)):
        Image.new("RGB", (4, 2), (level, 0, 0)).save(tmp_path / name)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (4, 2), (40, 0, 0)).save(tmp_path / "d.jpg", exif=exif, quality=100)
    (tmp_path / "b2.png").write_bytes(b"no picture")
    (tmp_path / "notes.txt").write_text("no picture either")
    got = frames(open_source(str(tmp_path)))
    assert [Path(frame.name).name for frame in got] == ["a.png", "b.png", "c.png", "d.jpg"]
    assert [int(frame.image[0, 0, 0]) for frame in got][:3] == [10, 20, 30]
    assert got[3].image.shape == (4, 2, 3)
    assert "b2.png" in caplog.text
    assert [frame.picture for frame in got] == [True] * 4
    assert len(frames(open_source(str(tmp_path / "[ab].png")))) == 2
    with pytest.raises(InputError, match=r"b2\.png"):
        frames(open_source(str(tmp_path / "b2.png")))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nowhere.mp4", "nowhere.mp4: no such source. Expected a picture, a folder"),
        ("gopher://x/1", "unknown kind of address 'gopher'"),
        ("csi://front", "expected csi:// and the sensor's number, e.g. csi://0"),
        ("videotestsrc ! appsink", "built without GStreamer. JetPack's own has it"),
        ("csi://0", "built without GStreamer"),
        ("/dev/video987", "Is the camera there"),
    ],
)
def test_what_cannot_be_opened_is_told_in_one_line(text: str, message: str) -> None:
    if "GStreamer" in message and opencv_source.has_backend(cv2.CAP_GSTREAMER):
        pytest.skip("this OpenCV has GStreamer")
    with pytest.raises(InputError) as error:
        open_source(text)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_are_no_videos(tmp_path: Path, clip: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "film.mp4").write_bytes(b"no film" * 100)
    for opened in (open_source, lambda path: PyAVSource(path, path, {}, 5.0)):
        with pytest.raises(InputError, match=r"film\.mp4: (cannot be opened|.*no frame)"):
            frames(opened(str(tmp_path / "film.mp4")))
    with pytest.raises(InputError, match="the folder holds no pictures"):
        open_source(str(tmp_path))
    with pytest.raises(InputError, match="names no picture; give each video as a source of its own"):
        open_source(str(tmp_path / "*.mp4"))


def test_a_pipeline_goes_to_opencv_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    class Refuses:
        def __init__(self, *arguments: object) -> None:
            opened.append(arguments[:2])

        def isOpened(self) -> bool:
            return False

    monkeypatch.setattr(cv2, "VideoCapture", Refuses)
    text = "videotestsrc num-buffers=3 ! videoconvert ! video/x-raw,format=BGR ! appsink"
    for source, options in (
        (text, {}),
        ("rtsp://cam/1", {"decoder": "jetson", "codec": "h265"}),
        ("csi://1", {"size": (1920, 1080)}),
        ("0", {}),
    ):
        with pytest.raises(InputError):
            open_source(source, **options)  # type: ignore[arg-type]
    assert opened[:3] == [
        (text, cv2.CAP_GSTREAMER),
        (pipelines.rtsp("rtsp://cam/1", "jetson", "h265"), cv2.CAP_GSTREAMER),
        (pipelines.csi(1, (1920, 1080)), cv2.CAP_GSTREAMER),
    ]
    assert opened[3][0] == 0


# As NVIDIA's "Accelerated GStreamer" guide and GStreamer's plugin reference name elements, properties and pads.
JETSON = "nvv4l2decoder enable-max-performance=1 ! nvvidconv ! video/x-raw,format=BGRx ! videoconvert ! video/x-raw,format=BGR"


def test_pipelines_for_decoding_in_hardware() -> None:
    assert pipelines.rtsp("rtsp://cam:554/1", "jetson") == (
        'rtspsrc location="rtsp://cam:554/1" protocols=tcp latency=100 drop-on-latency=true ! rtph264depay ! h264parse ! '
        f"{JETSON} ! appsink drop=true max-buffers=1 sync=false"
    )
    assert pipelines.file("/data/a film.MKV", "jetson", "h265") == (
        f'filesrc location="/data/a film.MKV" ! matroskademux ! h265parse ! {JETSON} ! appsink max-buffers=4 sync=false'
    )
    assert pipelines.csi(1, (1920, 1080), 60) == (
        "nvarguscamerasrc sensor-id=1 ! video/x-raw(memory:NVMM),width=1920,height=1080,framerate=60/1 ! nvvidconv ! "
        "video/x-raw,format=BGRx ! videoconvert ! video/x-raw,format=BGR ! appsink drop=true max-buffers=1 sync=false"
    )
    assert "rtph265depay ! h265parse ! nvh265dec ! cudadownload ! videoconvert" in pipelines.rtsp(
        "rtsp://c", "nvdec", "h265", "udp"
    )
    assert "protocols=udp" in pipelines.rtsp("rtsp://c", "nvdec", "h265", "udp")
    assert "qtdemux ! h264parse ! vah264dec ! vapostproc ! " in pipelines.file("a.mp4", "vaapi")


def test_a_name_cannot_become_an_element() -> None:
    hostile = 'rtsp://x" ! filesink location="/etc/passwd'
    assert pipelines.rtsp(hostile, "jetson").startswith(
        'rtspsrc location="rtsp://x\\" ! filesink location=\\"/etc/passwd" protocols'
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: pipelines.rtsp("rtsp://c", "cuda"),
            "decoder: expected one of jetson, nvdec, vaapi, got 'cuda'",
        ),  # type: ignore[arg-type]
        (lambda: pipelines.rtsp("rtsp://c", "jetson", "av1"), "codec: expected h264 or h265, got 'av1'"),  # type: ignore[arg-type]
        (
            lambda: pipelines.rtsp("rtsp://c", "jetson", transport="quic"),  # type: ignore[arg-type]
            "transport: expected tcp or udp",
        ),
        (lambda: pipelines.file("a.flv", "jetson"), "a.flv: expected .mp4, .mov"),
    ],
)
def test_pipelines_that_cannot_be(call: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()  # type: ignore[operator]


def test_passwords_are_hidden() -> None:
    assert shown("rtsp://me:p@ss:w@cam/1") == "rtsp://me:***@cam/1"
    assert shown("rtsp://cam:554/1") == "rtsp://cam:554/1"
    assert shown("http://me@cam/1") == "http://me@cam/1"
    assert shown("rtsp://cam:554/a@b") == "rtsp://cam:554/a@b"
    assert shown("http://cam/v.cgi?user=me&pwd=secret&fps=5") == "http://cam/v.cgi?user=me&pwd=***&fps=5"
    for source, options in (
        ("rtspsrc location=rtsp://me:secret@cam ! appsink", {}),
        ('rtspsrc location=rtsp://cam user-pw="my secret" ! appsink', {}),
        ("rtsp://me:my/secret@127.0.0.1:1/1", {}),  # as it is typed, where %2F was meant
        ("rtsp://me:secret@127.0.0.1:1/1", {"transport": "udp"}),  # PyAV's own error holds the address
        ("csi://me:secret@0", {}),
    ):
        with pytest.raises(InputError) as error:
            open_source(source, **options)  # type: ignore[arg-type]
        assert "secret" not in "".join(traceback.format_exception(error.value))


def test_memory_is_used_again_only_when_nobody_holds_it() -> None:
    buffers = Buffers()
    first = buffers.take((4, 4, 3))
    crop = first[1:, :2]
    at = first.ctypes.data
    del first
    assert buffers.take((4, 4, 3)).ctypes.data != at  # the crop is still somebody's
    del crop
    again = [buffers.take((4, 4, 3)) for _ in range(2)]
    assert at in [array.ctypes.data for array in again]
    assert buffers.take((2, 2, 3)).shape == (2, 2, 3)  # another size


def test_a_single_picture_is_a_source(tmp_path: Path) -> None:
    Image.new("RGB", (4, 2)).save(tmp_path / "one.png")
    source = open_source(str(tmp_path / "one.png"))
    assert isinstance(source, PictureSource)
    assert not source.live


@pytest.mark.parametrize("transport", ["tcp", "udp"])  # by OpenCV, by PyAV
def test_a_network_stream_is_opened_again_when_it_breaks_off(
    clip: Path, transport: pipelines.Transport, caplog: pytest.LogCaptureFixture
) -> None:
    pages = {"/clip.mp4": (clip.read_bytes(), True), "/live.ts": (transport_stream(crossing(12)), False)}
    with served(pages) as address:
        recording = open_source(f"{address}/clip.mp4", transport=transport)
        assert not recording.live
        assert len(frames(recording)) == 24

        opener = partial(open_source, f"{address}/live.ts", transport=transport, timeout_s=5)
        source = opener()
        assert source.live
        source.close()
        reader = NewestFrame(opener, Patience(attempts=9, first_s=0.01))
        until(lambda: reader.reconnects >= 2)
        reader.close()
    assert reader._number >= 24  # twelve frames each time, and all of them counted
    assert reader.dropped >= 23
    assert "live.ts: no frame came" in caplog.text
