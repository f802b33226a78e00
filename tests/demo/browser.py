"""A headless Chromium, driven as its own developer tools do it: JSON through two pipes, each message ended by a zero byte."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Browser:
    """One page."""

    def __init__(self, asks: int, answers: int) -> None:
        self._asks, self._answers, self._rest, self._number = asks, answers, b"", 0
        self.session: str | None = None
        self.said: list[str] = []  # errors of the page's script, and what its policy refused

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self._asks, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return dict(answer["result"])
            self._hear(answer)

    def value(self, script: str) -> Any:
        """What an expression of the page is worth."""
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, script: str, seconds: float = 30) -> Any:
        """Wait for an expression to be true."""
        end = time.monotonic() + seconds
        while not (found := self.value(script)):
            assert time.monotonic() < end, (
                f"never true: {script}; the page: {self.value('document.body.innerText')}"
            )
            time.sleep(0.05)
        return found

    def press(self, selector: str) -> None:
        """A click with the mouse in the middle of an element."""
        box = self.value(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'nearest'}});"
            " const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2] })()"
        )
        self.mouse(box)

    def mouse(self, *places: list[float]) -> None:
        """Press the button at the first place, let go at the last."""
        for i, (x, y) in enumerate([*places, places[-1]]):
            kind = "mousePressed" if i == 0 else "mouseReleased" if i == len(places) else "mouseMoved"
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def type(self, selector: str, text: str) -> None:
        """In place of what stands in a field."""
        self.value(f"document.querySelector({json.dumps(selector)}).select()")
        self.call("Input.insertText", text=text)

    def picture(self, place: Path) -> None:
        place.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            assert select.select([self._answers], [], [], 60)[0], "the browser says nothing"
            more = os.read(self._answers, 1 << 20)
            assert more, "the browser has ended"
            self._rest += more
        message, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(message))

    def _hear(self, event: dict[str, Any]) -> None:
        if event.get("method") == "Runtime.exceptionThrown":
            self.said.append(str(event["params"]["exceptionDetails"]))
        if event.get("method") == "Log.entryAdded" and event["params"]["entry"]["level"] == "error":
            self.said.append(event["params"]["entry"]["text"])


@contextlib.contextmanager
def browser(profile: Path, *flags: str, size: tuple[int, int] = (1280, 800)) -> Iterator[Browser]:
    """Start one with an empty page. `profile`: a folder of its own."""
    assert PROGRAM is not None
    asks_in, asks = os.pipe()
    answers, answers_out = os.pipe()
    command = [
        PROGRAM, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-extensions",
        "--disable-background-networking", "--disable-component-update", "--mute-audio", "--hide-scrollbars",
        f"--window-size={size[0]},{size[1]}", f"--user-data-dir={profile}", "--remote-debugging-pipe", *flags, "about:blank",
    ]  # fmt: skip
    process = subprocess.Popen(
        ["bash", "-c", f'exec "$@" 3<&{asks_in} 4>&{answers_out}', "bash", *command],
        pass_fds=(asks_in, answers_out),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(asks_in)
    os.close(answers_out)
    try:
        found = Browser(asks, answers)
        (page,) = (one for one in found.call("Target.getTargets")["targetInfos"] if one["type"] == "page")
        found.session = found.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Log"):
            found.call(f"{domain}.enable")
        yield found
        found.session = None
        with contextlib.suppress(AssertionError):  # it ends before it answers
            found.call("Browser.close")
        process.wait(30)
    finally:
        process.kill()
        process.wait()
        os.close(asks)
        os.close(answers)
