"""The page, in a real browser: what a user clicks, types and draws, and what is to be seen then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.demo.browser import PROGRAM, Browser, browser
from tests.demo.conftest import CELL, Served
from tests.runtime.detectors import box_of

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="needs Chromium (apt install chromium)")

NEAR = 3  # pixels of 320: the camera's film is compressed
ROWS = """[...document.querySelectorAll('#results li')].map(row => [row.children[1].textContent, row.dataset.box.split(',').map(Number)])"""
COUNT = "document.querySelector('#count').textContent"


def film(place: Path, frames: int = 30) -> None:
    """A camera's film for Chromium, 320 x 320: a blue cell at (4, 2) on black. Y, then U and V of half the size."""
    y, u, v = (
        np.full((320, 320), 16, np.uint8),
        np.full((160, 160), 128, np.uint8),
        np.full((160, 160), 128, np.uint8),
    )
    rows, columns = slice(4 * CELL, 5 * CELL), slice(2 * CELL, 3 * CELL)
    y[rows, columns] = 41
    halves = slice(2 * CELL, 5 * CELL // 2), slice(CELL, 3 * CELL // 2)
    u[halves], v[halves] = 240, 110
    frame = b"FRAME\n" + y.tobytes() + u.tobytes() + v.tobytes()
    place.write_bytes(b"YUV4MPEG2 W320 H320 F30:1 Ip A1:1 C420jpeg\n" + frame * frames)


def found(page: Browser) -> dict[str, list[list[float]]]:
    """The list beside the picture."""
    result: dict[str, list[list[float]]] = {}
    for label, box in page.value(ROWS):
        result.setdefault(label, []).append(box)
    return result


def pixel(page: Browser, x: float, y: float) -> list[int]:
    """RGB of the canvas at a place of the picture, in its pixels."""
    script = f"(() => {{ const c = document.querySelector('canvas'), s = c.width / 320; return [...c.getContext('2d').getImageData({x} * s, {y} * s, 1, 1).data].slice(0, 3) }})()"
    return list(page.value(script))


def on_screen(page: Browser, x: float, y: float) -> list[float]:
    """Where a place of the picture is on the screen."""
    place = page.value(
        "(() => { const b = document.querySelector('canvas').getBoundingClientRect(); return [b.x, b.y, b.width] })()"
    )
    return [place[0] + x * place[2] / 320, place[1] + y * place[2] / 320]


def test_a_session(served: Served, looks: list[str], tmp_path: Path) -> None:
    film(tmp_path / "film.y4m")
    camera = [
        "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-video-capture={tmp_path / 'film.y4m'}",
    ]  # fmt: skip
    with browser(tmp_path / "profile", *camera) as page:
        page.call("Page.navigate", url=served.demo.url)
        page.until("document.querySelector('#pictures button') && !document.querySelector('#bar').inert")
        assert page.value("document.querySelector('#prompts').value") == "red"

        page.press("#pictures button")
        page.until(f"{COUNT} === '1 found'")
        (red,) = found(page)["red"]
        np.testing.assert_allclose(red, box_of(1, 1, 255, CELL), atol=NEAR)
        assert pixel(page, 60, 60)[0] > 250  # the red cell itself
        rim = pixel(page, red[0] + 0.6, 60)
        colour = page.value("getComputedStyle(document.querySelector('#results i')).backgroundColor")
        assert f"rgb({', '.join(map(str, rim))})" == colour  # the box, drawn where the answer says
        assert pixel(page, red[0] - 8, 60) == [0, 0, 0]

        page.type("#prompts", "green, blue")
        page.until(f"{COUNT} === '2 found'")
        np.testing.assert_allclose(found(page)["green"], [box_of(2, 5, 255, CELL)], atol=NEAR)
        page.value(
            "(t => { t.value = 1; t.dispatchEvent(new Event('input')) })(document.querySelector('#threshold'))"
        )
        page.until(f"{COUNT} === 'Nothing found'")
        page.value(
            "(t => { t.value = 0.3; t.dispatchEvent(new Event('input')) })(document.querySelector('#threshold'))"
        )
        page.until(f"{COUNT} === '2 found'")
        page.type("#prompts", "green [")
        page.until("document.querySelector('#error').textContent.startsWith('prompts, column ')")
        page.type("#prompts", "green")
        page.until(f"document.querySelector('#error').hidden && {COUNT} === '1 found'")

        page.press("#pick")  # and a box drawn by hand around the red cell
        page.mouse(on_screen(page, 32, 32), on_screen(page, 70, 75), on_screen(page, 88, 88))
        page.until(f"{COUNT} === '2 found'")
        np.testing.assert_allclose(found(page)["like 1"], [box_of(1, 1, 255, CELL)], atol=NEAR)
        assert looks == ["propose"]  # the picture was looked at once, whatever was asked
        page.press("#likes button")
        page.until(f"{COUNT} === '1 found'")

        page.type("#prompts", "blue")
        page.press("#camera")
        page.until(
            "!document.querySelector('#pause').disabled && document.querySelector('#times').innerText.includes('frames a second')"
        )
        page.until(f"{COUNT} === '1 found'")
        assert looks[:1] == ["propose"]
        assert len(looks) > 2  # frame after frame
        sides = page.value("[shown.width, shown.height]")
        (blue,) = found(page)["blue"]
        # the film is square; the camera's frames may have bars beside it
        scale = min(sides) / 320
        moved = np.array([max(sides[0] - sides[1], 0) / 2, max(sides[1] - sides[0], 0) / 2] * 2)
        centre = (np.array(blue[:2]) + blue[2:]) / 2
        np.testing.assert_allclose(
            centre, moved[:2] + scale * np.array([2.5, 4.5]) * CELL, atol=scale * CELL / 4
        )
        page.type("#prompts", "")  # frames that nobody asked about...
        page.until(f"{COUNT} === 'Nothing yet'")
        page.press("#pause")
        page.until("!busy && document.querySelector('#pause').textContent === 'Go on'")
        before = len(looks)
        page.type("#prompts", "blue")
        page.until(f"{COUNT} === '1 found'")
        assert len(looks) == before + 1  # ...of which the last one is looked at now
        before = len(looks)
        page.press("#results button")  # more like it, of a frame
        page.until("document.querySelector('#likes li') !== null && !busy")
        assert len(looks) - before in (1, 2)
        page.value("void (window.lens = video.srcObject.getTracks()[0])")
        page.press("#camera")
        page.until("document.querySelector('canvas').hidden")
        assert page.value("lens.readyState") == "ended"  # its light is off
        assert page.value("video.srcObject") is None
        refused: list[Any] = [line for line in page.said if "400" not in line]
        assert refused == []
