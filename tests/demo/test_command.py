"""`edgeclip demo`."""

from __future__ import annotations

import signal
import subprocess
import sys
import urllib.request
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import edgeclip.demo
from edgeclip.cli import run
from edgeclip.demo import Demo
from tests.demo.conftest import png
from tests.runtime.detectors import make_detector


def test_it_prints_its_address_and_ends_by_ctrl_c(tmp_path: Path) -> None:
    make_detector(tmp_path / "planted")
    command = [
        sys.executable,
        "-m",
        "edgeclip",
        "demo",
        "-b",
        str(tmp_path / "planted"),
        "--port",
        "0",
        "--no-browser",
    ]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(  # a job in the background ignores it
            signal.SIGINT, signal.default_int_handler
        ),
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        with urllib.request.urlopen(url, timeout=20) as page:
            assert b"<title>edgeclip demo</title>" in page.read()
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=20) == ("", "edgeclip: ended.\n")
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("screen", [True, False])
def test_who_hears_of_it(
    screen: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bound wider, a warning; with a screen, a browser; pictures that are none are told."""
    seen: dict[str, Any] = {}

    def serve(
        model: Any,
        host: str,
        port: int,
        *,
        pictures: list[Path],
        prompts: str,
        ready: Callable[[Demo], object],
    ) -> None:
        seen.update(pictures=pictures, prompts=prompts)
        demo = Demo(model, host, port)
        ready(demo)
        demo.close()

    monkeypatch.setattr(edgeclip.demo, "serve", serve)
    monkeypatch.setattr(webbrowser, "open", lambda url: seen.update(url=url))
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    if screen:
        monkeypatch.setenv("WAYLAND_DISPLAY", "wayland-0")
    make_detector(tmp_path / "planted")
    (tmp_path / "a.png").write_bytes(png())
    words = [
        "demo",
        tmp_path / "a.png",
        tmp_path / "b.png",
        "-b",
        tmp_path / "planted",
        "--prompts",
        "red",
        "--port",
        "0",
    ]
    assert run([*map(str, words), *([] if screen else ["--host", "0.0.0.0"])]) == 0
    said = capsys.readouterr()
    assert (seen["pictures"], seen["prompts"]) == ([tmp_path / "a.png"], "red")
    assert ("url" in seen) is screen
    assert said.out.startswith("http://")
    assert "b.png: no such file" in said.err
    assert ("camera to https and to localhost only" in said.err) is not screen
