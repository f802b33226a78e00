"""`edgeclip detect --source` from the command line to the files it leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeclip.cli import live_prompts, run
from edgeclip.cli.live_prompts import parse_prompts
from edgeclip.errors import InputError
from edgeclip.runtime.model import Model
from edgeclip.runtime.video.stream import Session
from tests.runtime.detectors import box_of, make_detector
from tests.runtime.video.clips import CELL, FPS, cells_of, crossing, read_all, until, write_clip


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The planted detector: it knows colours."""
    return str(make_detector(tmp_path_factory.mktemp("planted") / "bundle").root)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """24 frames of red going right and green going left."""
    return str(write_clip(tmp_path_factory.mktemp("clip") / "crossing.mp4", crossing()))


def lines_of(text: str) -> list[dict[str, Any]]:
    """JSON Lines."""
    return [json.loads(line) for line in text.splitlines()]


def test_a_clip_end_to_end(
    bundle: str, clip: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("trackers", reason="tracking is an extra: edgeclip[track]")
    film, lines = tmp_path / "out" / "seen.mp4", tmp_path / "out" / "seen.jsonl"
    arguments = ["detect", "-b", bundle, "--source", clip, "--prompts", "red, the green", "--threads", "1"]
    assert run([*arguments, "--track", "--save", str(film), "--jsonl", str(lines)]) == 0

    rows = lines_of(lines.read_text())
    assert [row["frame"] for row in rows] == list(range(24))
    np.testing.assert_allclose([row["time_s"] for row in rows], np.arange(24) / FPS, atol=1e-3)
    ids: dict[str, set[int]] = {"red": set(), "the green": set()}
    for row in rows:
        assert (row["source"], row["dropped"], row["size"]) == (clip, 0, [128, 128])
        found = {one["label"]: one for one in row["detections"]}
        assert found.keys() == ids.keys()
        for name, cell in zip(ids, cells_of(row["frame"]), strict=True):
            wanted = np.clip(box_of(*cell, 255, CELL), 0, 128)
            np.testing.assert_allclose(found[name]["box"], wanted, atol=1.0)
            if row["frame"]:
                ids[name].add(found[name]["track_id"])
    assert sorted(map(len, ids.values())) == [1, 1]
    assert ids["red"] != ids["the green"]

    drawn, plain = read_all(film), read_all(Path(clip))
    assert len(drawn) == 24
    assert all((a.astype(int) - b).__abs__().max() > 100 for a, b in zip(drawn, plain, strict=True))
    assert sorted(p.name for p in film.parent.iterdir()) == ["seen.jsonl", "seen.mp4"]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"{clip}: 24 frames, " in captured.err
    assert "0 dropped." in captured.err


def test_lines_on_stdout_for_people_and_for_programs(
    bundle: str, clip: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["detect", "-b", bundle, "--source", clip, "--label", "red", "--every", "10"]
    assert run(arguments) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split(" ")[1] for line in shown] == ["0", "10", "20"]
    assert shown[1].startswith(f"{clip} 10 0.400 s: red 0.9")
    assert run([*arguments, "--jsonl", "-", "--max-frames", "2"]) == 0
    assert [row["frame"] for row in lines_of(capsys.readouterr().out)] == [0, 10]


def test_several_sources_have_a_video_each(bundle: str, clip: str, tmp_path: Path) -> None:
    other = str(write_clip(tmp_path / "other.mp4", crossing(5)))
    arguments = ["detect", "-b", bundle, "--source", clip, "--source", other, "--prompts", "red"]
    assert run([*arguments, "--save", str(tmp_path / "out" / "seen.mkv")]) == 0
    found = {path.name: len(read_all(path)) for path in (tmp_path / "out").iterdir()}
    assert found == {"seen-0.mkv": 24, "seen-1.mkv": 5}


def test_a_folder_of_pictures_is_a_source(bundle: str, tmp_path: Path) -> None:
    import cv2

    for i, image in enumerate(crossing(4)):
        cv2.imwrite(str(tmp_path / f"{i}.png"), image[..., ::-1])
    (tmp_path / "2b.png").write_bytes(b"none")
    out = tmp_path / "out"
    arguments = ["detect", "-b", bundle, "--source", str(tmp_path), "--prompts", "red", "--save", str(out)]
    assert run(arguments) == 0
    assert sorted(p.name for p in out.iterdir()) == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]


def test_an_interruption_leaves_whole_files(
    bundle: str, clip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, count = Model.detect, [0]

    def interrupted(self: Model, *arguments: Any, **options: Any) -> Any:
        count[0] += 1
        if count[0] > 10:
            raise KeyboardInterrupt
        return real(self, *arguments, **options)

    monkeypatch.setattr(Model, "detect", interrupted)
    film, lines = tmp_path / "seen.mp4", tmp_path / "seen.jsonl"
    arguments = ["detect", "-b", bundle, "--source", clip, "--prompts", "red"]
    assert run([*arguments, "--save", str(film), "--jsonl", str(lines)]) == 130
    assert len(read_all(film)) == 10 == len(lines_of(lines.read_text()))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["seen.jsonl", "seen.mp4"]


@pytest.mark.parity
def test_a_real_ctrl_c(bundle: str, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "long.mp4", crossing() * 50)  # 48 s at its own pace
    film, lines = tmp_path / "seen.mp4", tmp_path / "seen.jsonl"
    child = subprocess.Popen(
        [sys.executable, "-c", "from edgeclip.cli import main; main()", "detect", "-b", bundle, "--source", str(clip),
         "--newest", "--prompts", "red", "--save", str(film), "--jsonl", str(lines)],
        stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        until(lambda: lines.exists() and len(lines.read_text().splitlines()) >= 3, 60)
        child.send_signal(signal.SIGINT)
        _, told = child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode == 130, told
    assert "frames, " in told
    assert "Traceback" not in told
    rows = len(lines_of(lines.read_text()))
    assert rows >= 3
    assert rows - len(read_all(film)) in (0, 1)  # the interruption may fall between the two files


def test_prompts_follow_a_file_while_frames_go_on(
    bundle: str,
    clip: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    watched = tmp_path / "prompts.txt"
    watched.write_text("red")
    monkeypatch.setattr(live_prompts, "WATCH_S", 0.005)
    changed: list[str] = []
    real_set, real_next = Session.set_prompts, Session.__next__

    def set_prompts(self: Session, prompts: Any = None, **options: Any) -> None:
        try:
            real_set(self, prompts, **options)
        finally:
            changed.append(str(prompts))

    def following(self: Session) -> Any:
        result = real_next(self)
        edits = {5: "[green [", 8: "# none\nthe green # of grass\n blue\n"}
        if text := edits.get(result.frame.number):
            before = len(changed)
            watched.write_text(text)
            until(lambda: len(changed) > before)
            time.sleep(0.02)  # the note on stderr
        return result

    monkeypatch.setattr(Session, "set_prompts", set_prompts)
    monkeypatch.setattr(Session, "__next__", following)
    arguments = ["detect", "-b", bundle, "--source", clip, "--watch", str(watched), "--jsonl", "-"]
    assert run(arguments) == 0
    captured = capsys.readouterr()
    names = [[one["label"] for one in row["detections"]] for row in lines_of(captured.out)]
    assert names == [["red"]] * 9 + [["the green"]] * 15
    assert "The prompts stay as they were." in captured.err
    assert "prompts: # none the green # of grass blue" in captured.err


def test_prompts_typed_at_a_terminal(
    bundle: str, clip: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ours, theirs = os.openpty()
    changed: list[Any] = []
    real_set, real_next = Session.set_prompts, Session.__next__

    def set_prompts(self: Session, prompts: Any = None, **options: Any) -> None:
        real_set(self, prompts, **options)
        changed.append(prompts)

    def following(self: Session) -> Any:
        result = real_next(self)
        if result.frame.number == 3:
            os.write(ours, b"the green, ")
            os.write(ours, b"blue\n\n")
            until(lambda: bool(changed))
        return result

    monkeypatch.setattr(live_prompts, "WATCH_S", 0.01)
    monkeypatch.setattr(Session, "set_prompts", set_prompts)
    monkeypatch.setattr(Session, "__next__", following)
    lines = tmp_path / "seen.jsonl"
    with os.fdopen(theirs) as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        assert run(["detect", "-b", bundle, "--source", clip, "--prompts", "red", "--jsonl", str(lines)]) == 0
        assert not [t for t in threading.enumerate() if t.name.startswith("edgeclip-prompts")]
    os.close(ours)
    assert changed == [["the green", "blue"]]
    names = [row["detections"][0]["label"] for row in lines_of(lines.read_text())]
    assert names == ["red"] * 4 + ["the green"] * 20


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--source", "nowhere.mp4", "--prompts", "red"], "nowhere.mp4: no such source"),
        (["--source", "CLIP", "--prompts", "red", "--save", "a.xyz"], "a.xyz: cannot save as .xyz"),
        (["--source", "CLIP", "--watch", "nowhere.txt"], "--watch nowhere.txt: cannot read the file"),
        (["--source", "CLIP", "--prompts", "red", "--camera-size", "big"], "expected WIDTHxHEIGHT in pixels"),
        (["--source", "CLIP", "--prompts", "red", "--save", "CLIP"], "crossing.mp4: is the source itself"),
        (["--source", "", "--prompts", "red"], "got an empty text"),  # an unset variable: not the current folder
        (["--source", "9" * 20, "--prompts", "red"], "no such source"),
        (["--source", "rtsp://a:secret@[::1/1", "--prompts", "red"], "rtsp://a:***@[::1/1: cannot be opened"),
        (["rtsp://a:secret@127.0.0.1:9/1", "--prompts", "red"], "for an address, pass --source"),
        (["--source", "CLIP", "--prompts", "red", "--decoder", "jetson"], "built without GStreamer"),
        (["--source", "CLIP", "--prompts", "red", "--show"], "--show: this OpenCV has no windows"),
        (["--source", "rtsp://a:secret@127.0.0.1:9/1", "--prompts", "red"], "rtsp://a:***@127.0.0.1:9/1: cannot be opened"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line(
    bundle: str, clip: str, more: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    import cv2

    if "OpenCV" in message or "GStreamer" in message:
        built = cv2.getBuildInformation()
        windows = "NONE" not in built.partition("GUI:")[2][:60]
        if windows or cv2.videoio_registry.hasBackend(cv2.CAP_GSTREAMER):
            pytest.skip("this OpenCV has windows or GStreamer")
    arguments = [clip if word == "CLIP" else word for word in more]
    assert run(["detect", "-b", bundle, *arguments]) == 2
    # The libraries below say nothing of their own; but FFmpeg was asked for that too late here, when it wrote the clip.
    told = [line for line in capfd.readouterr().err.splitlines() if not line.startswith("[tcp @")]
    assert len(told) == 1
    assert message in told[0]
    assert "secret" not in told[0]


def test_prompts_as_they_are_typed() -> None:
    assert parse_prompts(" a cup, a dog\n") == ["a cup", "a dog"]
    assert parse_prompts("a cup\n# nothing\na dog # a pet") == ["a cup", "a dog"]
    assert parse_prompts(" [a face [an eye]] ") == "[a face [an eye]]"
    with pytest.raises(InputError, match="prompts: expected one or more"):
        parse_prompts(" , \n# none")
