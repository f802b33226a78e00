"""The demo of a planted detector, serving."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import edgeclip
from edgeclip.demo import Demo
from edgeclip.demo.server import TOKEN
from tests.runtime.detectors import make_detector, scene

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
CELL = 40  # pixels of the scene's cells: five of the detector's
CELLS = {(1, 1): RED, (2, 5): GREEN, (6, 6): BLUE}


def png(cells: dict[tuple[int, int], tuple[int, int, int]] = CELLS) -> bytes:
    """A scene of 320 x 320 pixels, encoded."""
    stream = io.BytesIO()
    Image.fromarray(scene(cells, 8 * CELL, 8 * CELL, CELL)).save(stream, "PNG")
    return stream.getvalue()


class Served:
    """A demo, and requests as a browser makes them."""

    def __init__(self, demo: Demo) -> None:
        self.demo = demo

    def send(
        self, method: str, path: str, body: bytes | None = None, **headers: str | None
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers (names in lower case) and body. `headers`: None leaves one out."""
        own: dict[str, str | None] = {"Host": f"localhost:{self.demo.port}", TOKEN: self.demo.token}
        own |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection = http.client.HTTPConnection("127.0.0.1", self.demo.port, timeout=20)
        with contextlib.closing(connection):
            connection.putrequest(method, path, skip_host=True)
            if body is not None and "Content-Length" not in own:
                own["Content-Length"] = str(len(body))
            for name, value in own.items():
                if value is not None:
                    connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()

    def post(self, path: str, picture: bytes = b"", **line: Any) -> tuple[int, dict[str, Any]]:
        """Status and JSON of a request of the page."""
        body = json.dumps({"page": "p", **line}).encode() + b"\n" + picture
        status, headers, said = self.send("POST", path, body)
        assert headers["content-type"] == "application/json"
        return status, json.loads(said)


@contextlib.contextmanager
def serving(bundle: Any, **options: Any) -> Iterator[Served]:
    """A demo of the bundle in a thread, at a port that is free."""
    with edgeclip.load(bundle, threads=1) as model:
        demo = Demo(model, port=0, **options)
        thread = threading.Thread(target=demo.run)
        thread.start()
        try:
            yield Served(demo)
        finally:
            demo.stop()
            thread.join()
            demo.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder: Path = tmp_path_factory.mktemp("demo")
    (folder / "scene.png").write_bytes(png())
    with serving(make_detector(folder / "planted"), pictures=[folder / "scene.png"], prompts="red") as found:
        yield found


@pytest.fixture
def looks(served: Served, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A word for each run of the detector's graph by the demo."""
    found: list[str] = []
    model = served.demo.asking._model
    for name in ("propose", "detect"):
        original = getattr(model, name)

        def counted(*a: Any, original: Any = original, name: str = name, **k: Any) -> Any:
            found.append(name)
            return original(*a, **k)

        monkeypatch.setattr(model, name, counted)
    return found
