"""A small bundle, pictures in class folders, a toy method in place of int8, and a clock that says what a test wants."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from edgeclip.bundle import Bundle
from edgeclip.export import precision
from edgeclip.export.compress import bench
from edgeclip.export.compress.latency import Latency
from edgeclip.export.samples import made_up_pictures
from tests.export.compress import toy_method
from tests.export.compress.small import make_small


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Two towers of two blocks in fp32."""
    return make_small(tmp_path_factory.mktemp("tiny") / "b")


@pytest.fixture(scope="session")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 pictures in the folders of two labels, one of them damaged, one there twice."""
    folder = tmp_path_factory.mktemp("classes")
    for i, picture in enumerate(made_up_pictures(24)):
        path = folder / ("a cat" if i % 2 else "a dog") / f"{i:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(picture).save(path)
    (folder / "a cat" / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    (folder / "a cat" / "01 again.png").write_bytes((folder / "a cat" / "01.png").read_bytes())
    return folder


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """The toy method stands for int8; the yielded dict plants what layers lose."""
    for name, activations in (("int8", "static"), ("int8-dynamic", "dynamic")):
        method = precision.Method("int8", activations, toy_method.__name__, True, 18)  # type: ignore[arg-type]
        monkeypatch.setitem(precision.METHODS, name, method)  # type: ignore[arg-type]
    toy_method.bad.clear()
    toy_method.asked.clear()
    yield toy_method.bad
    toy_method.bad.clear()


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Every comparison of latencies finds this ratio; nothing is really timed."""

    def settle(ratio: float) -> None:
        found = Latency(10 / ratio, 10, ratio, ratio - 0.05, ratio + 0.05, 9, 1)
        monkeypatch.setattr(bench, "compare", lambda reference, candidate, threads: found)

    settle(1.9)
    return settle
