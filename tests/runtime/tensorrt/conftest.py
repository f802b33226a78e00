"""A cache of its own for each test."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeclip.bundle import Bundle, open_bundle
from edgeclip.runtime.engines import EngineOptions
from edgeclip.runtime.tensorrt.store import Store, store_of
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
