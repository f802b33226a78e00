"""Set-up that all tests share."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Generator, Iterator
from functools import cache

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

SLOW = ("parity", "gpu")  # markers that ask for their own -m


# With several processes a file's tests stay in one, for what they share: module fixtures, traced towers. Each of these is apart.
APART = ("test_families.py",)
TRACED = (
    "test_towers.py",
    "test_graph_rules.py",
    "test_floor.py",
    "test_tensorrt_rules.py",
    "test_uint8_input.py",
    "test_int8.py",
)  # share tests/export/traced.py


@pytest.hookimpl(wrapper=True)  # before pytest-xdist reads the groups, in the same hook
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> Generator[None, None, None]:
    """Without -m, leave the slow tiers out; say which tests belong in one process."""
    for item in items:
        if item.path.name not in APART:
            group = (
                "traced" if item.path.name in TRACED else item.path.relative_to(config.rootpath).as_posix()
            )
            item.add_marker(pytest.mark.xdist_group(group))
    if not config.getoption("-m"):
        kept = [item for item in items if not any(item.get_closest_marker(name) for name in SLOW)]
        if len(kept) < len(items):
            config.hook.pytest_deselected(items=[item for item in items if item not in kept])
            items[:] = kept
    return (yield)


@pytest.fixture
def forks() -> Iterator[None]:
    """For a test that forks: its children collect nothing of this process's. Freeing a session of onnxruntime waits for its threads,
    which a child does not have."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module", autouse=True)
def operators_read_once() -> Iterator[None]:
    """torch's table of ONNX operators, the same for every export at an opset: reading it takes 1 of the 5 s that a tiny one needs."""
    if "edgeclip.export.onnx_graph" not in sys.modules:  # nothing is exported, so nobody waits for torch
        yield
        return
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(_table()))
        yield


@cache
def _table() -> object:
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    return cache(ONNXRegistry.from_torchlib)
