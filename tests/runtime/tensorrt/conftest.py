"""A cache of its own for each test; a machine with stand-in GPUs."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeclip.bundle import Bundle, open_bundle
from edgeclip.runtime.engines import EngineOptions, tensorrt_place
from edgeclip.runtime.tensorrt.store import Store, store_of
from tests.runtime.tensorrt.cuda_stand_in import StandIn
from tests.runtime.tensorrt.stand_ins import forget, install
from tests.runtime.toy import make_bundle


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Not there yet."""
    monkeypatch.setenv("EDGECLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("EDGECLIP_ENGINE_KEY", raising=False)
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The toy bundle, which no test changes."""
    return make_bundle(tmp_path_factory.mktemp("toy") / "bundle")


@pytest.fixture
def store(cache: Path, toy: Bundle) -> Store:
    """The toy's own, empty."""
    return store_of(open_bundle(toy.root), EngineOptions())


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[StandIn]:
    """Whatever a test does, nothing is freed too early, nothing twice, and nothing is left."""
    stand_in = install(monkeypatch)
    gc.freeze()  # what is there already need not be looked through each time
    yield stand_in
    caplog.get_records("call").clear()  # errors in them hold whatever raised them
    tensorrt_place._places.clear()
    gc.collect()
    gc.unfreeze()
    assert stand_in.faults == []
    assert stand_in.live() == 0
    forget()


@pytest.fixture
def broken_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """For faults that are planted: what is left behind does not matter."""
    yield install(monkeypatch)
    forget()
