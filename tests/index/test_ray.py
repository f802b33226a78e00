"""Builds by Ray: the whole path with a stand-in for Ray, and with Ray itself (it takes half a minute to start on a busy machine)."""

from __future__ import annotations

import random
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import edgeclip
from edgeclip.errors import EngineError, InputError
from edgeclip.runtime.index.away import ray_build
from edgeclip.runtime.index.away.ray_build import RayOptions, build_with_ray
from edgeclip.runtime.index.build import build_index
from edgeclip.runtime.index.build_words import BuildSettings
from edgeclip.runtime.index.index import Index
from tests.mutants import broken

PICTURES = Path(__file__).parents[2] / "examples" / "pictures"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Five pictures and what is none."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for path in sorted(PICTURES.glob("*.png"))[:5]:
        shutil.copy(path, folder)
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


class Rows:
    """What `ray.data` is asked for, in this process; rows come back in disorder."""

    def __init__(self, rows: list[dict[str, Any]], asked: list[dict[str, Any]]) -> None:
        self.rows, self.asked = rows, asked

    def map_batches(self, worker: Any, *, fn_constructor_args: Any, **settings: Any) -> Rows:
        self.asked.append({"arguments": fn_constructor_args, **settings})
        made = worker(*fn_constructor_args)
        results = [
            made({name: np.array([value], object) for name, value in row.items()}) for row in self.rows
        ]
        self.rows = [{name: column[0] for name, column in one.items()} for one in results]
        return self

    def iter_rows(self) -> Iterator[dict[str, Any]]:
        random.Random(3).shuffle(self.rows)
        return iter(self.rows)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Ray with one machine of four CPUs; what its data sets were asked for."""
    asked: list[dict[str, Any]] = []
    data = SimpleNamespace(
        from_items=lambda rows, override_num_blocks: Rows(rows, asked),
        ActorPoolStrategy=lambda size: size,
        DataContext=SimpleNamespace(get_current=lambda: SimpleNamespace(enable_progress_bars=True)),
    )
    ray = SimpleNamespace(
        data=data,
        exceptions=SimpleNamespace(RayError=ZeroDivisionError),
        is_initialized=lambda: True,
        nodes=lambda: [{"Alive": True, "Resources": {"CPU": 4.0}}],
        cluster_resources=lambda: {"CPU": 4.0},
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray.data", data)
    monkeypatch.setattr(ray_build, "SENT", 2)
    return asked


def same(one: Path, other: Path) -> None:
    """Both indexes hold the same, in the same order."""
    with Index.open(one) as a, Index.open(other) as b:
        assert list(a.items()) == list(b.items())
        keys = list(a.keys())
        np.testing.assert_allclose(a.vectors(keys), b.vectors(keys), rtol=0, atol=1e-6)


def compare(photos: Path, folder: Path, **options: Any) -> None:
    """Built by Ray and by this process; again, it sends nothing."""
    made = build_with_ray(photos, folder / "ray.index", "nano", ray=RayOptions(cpus=1, **options))
    with edgeclip.load("nano") as model:
        local = build_index(photos, folder / "local.index", model)
    assert (made.added, made.failures) == (local.added, local.failures) == (5, made.failures)
    assert [key for key, _ in made.failures] == ["broken.png"]
    same(folder / "ray.index", folder / "local.index")


def test_equal_to_a_local_build(photos: Path, tmp_path: Path, stand_in: list[dict[str, Any]]) -> None:
    compare(photos, tmp_path)
    assert [one["compute"] for one in stand_in] == [3]  # rows of two entries
    again = build_with_ray(photos, tmp_path / "ray.index", "nano")
    assert (again.unchanged, again.embedded) == (5, 0)
    assert [len(one["arguments"]) for one in stand_in] == [3, 3]  # the broken one is tried again


def test_waves_and_captions(
    photos: Path, tmp_path: Path, stand_in: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_build, "WAVE_ENTRIES", 2)
    compare(photos, tmp_path)
    assert len(stand_in) == 3
    words = tmp_path / "words.txt"
    words.write_text("a cat\na dog\na red bicycle\n")
    how = BuildSettings(captions=True)
    build_with_ray(words, tmp_path / "ray-words.index", "nano", how=how)
    with edgeclip.load("nano") as model:
        build_index(words, tmp_path / "words.index", model, how=how)
    same(tmp_path / "ray-words.index", tmp_path / "words.index")


def test_a_worker_that_dies_is_one_line(
    photos: Path, tmp_path: Path, stand_in: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("Traceback:\n  somewhere\nBundleError: /there: no such folder.")

    monkeypatch.setattr(Rows, "map_batches", dies)
    with pytest.raises(EngineError, match=r"^Ray: BundleError: /there: no such folder\.$"):
        build_with_ray(photos, tmp_path / "ray.index", "nano")


def test_a_bundle_that_workers_do_not_have(
    photos: Path, tmp_path: Path, stand_in: list[dict[str, Any]]
) -> None:
    how = BuildSettings(elsewhere=ray_build.Spread(str(tmp_path / "nowhere")))
    with (
        edgeclip.load("nano") as model,
        pytest.raises(EngineError, match=r"^Ray: a worker: .*nowhere: no such bundle"),
    ):
        build_index(photos, tmp_path / "no.index", model, how=how)


def test_sizes() -> None:
    def nodes(*cpus: float) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": one}} for one in cpus]

    size = ray_build._size
    assert size(RayOptions(), nodes(16, 2), {"CPU": 18.0}) == (4, 4)
    assert size(RayOptions(), nodes(2), {"CPU": 2.0}) == (1, 2)
    assert size(RayOptions(gpus=0.5), nodes(64), {"CPU": 64.0, "GPU": 2.0}) == (4, 4)
    assert size(RayOptions(workers=3), nodes(2), {"CPU": 2.0}) == (3, 2)
    with pytest.raises(EngineError, match="the cluster has 8 CPUs and 0 GPUs; a worker needs 1 and 1"):
        size(RayOptions(gpus=1), nodes(8), {"CPU": 8.0})
    with pytest.raises(InputError, match="Ray: expected 1 or more workers and cpus"):
        RayOptions(cpus=0)


@pytest.fixture
def begun(stand_in: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that Ray, not begun yet, was begun with."""
    found: list[str] = []
    monkeypatch.setattr(sys.modules["ray"], "is_initialized", lambda: False)
    monkeypatch.setattr(sys.modules["ray"], "init", lambda address, **_: found.append(address), raising=False)
    monkeypatch.setattr(sys.modules["ray"], "shutdown", lambda: None, raising=False)
    return found


@pytest.mark.parametrize("address", ["ray://127.0.0.1:{port}", "127.0.0.1:{port}"])
def test_a_cluster_that_does_not_answer_is_one_line(begun: list[str], address: str) -> None:
    with socket.socket() as held:  # bound, so nobody else gets it; not listening, so nobody answers
        held.bind(("127.0.0.1", 0))
        address = address.format(port=held.getsockname()[1])
        with (
            pytest.raises(EngineError, match=f"^Ray: {address}: expected a cluster's head, nothing answers"),
            ray_build.cluster(RayOptions(address)),
        ):
            pass
        assert begun == []
        held.listen()
        with ray_build.cluster(RayOptions(address)):
            assert begun == [address]


@pytest.mark.parametrize(
    "address", ["ray://host:port", "host", "host:", "", "ray://", "[::1:6379", "host:70000"]
)
def test_an_address_that_is_none(begun: list[str], address: str) -> None:
    with (
        pytest.raises(InputError, match=r"^Ray: expected auto, ray://HOST:PORT or HOST:PORT, got '"),
        ray_build.cluster(RayOptions(address)),
    ):
        pass
    assert begun == []


def test_names_are_left_to_ray(begun: list[str]) -> None:
    for address in ("auto", "local", "anyscale://here:1", None):
        with ray_build.cluster(RayOptions(address)):
            pass
    assert begun == ["auto", "local", "anyscale://here:1", "local"]


def test_the_comparison_sees(
    photos: Path, tmp_path: Path, stand_in: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    mutant = broken(ray_build.OnRay._embed, "while turn in early:", "for turn in list(early):")
    monkeypatch.setattr(ray_build.OnRay, "_embed", mutant)
    with pytest.raises((AssertionError, ValueError)):  # the wrong vectors, or a region too few
        compare(photos, tmp_path)


@pytest.mark.parity
def test_ray_itself(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray_build, "SENT", 3)  # several rows, so that they may come in disorder
    for name, value in ray_build._ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    try:
        ray.init(
            "local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20
        )
        compare(photos, tmp_path)
        assert ray.is_initialized()  # what the caller started stays
        spread = ray_build.Spread(str(tmp_path / "nowhere"), {}, RayOptions(cpus=1))
        how = BuildSettings(elsewhere=spread)
        with (
            edgeclip.load("nano") as model,
            pytest.raises(EngineError, match=r"^Ray: a worker: .*nowhere: no such bundle"),
        ):
            build_index(photos, tmp_path / "no.index", model, how=how)
    finally:
        ray.shutdown()
