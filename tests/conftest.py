"""Set-up that all tests share."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

SLOW = ("parity", "gpu")  # markers that ask for their own -m


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without -m, leave the slow tiers out."""
    if not config.getoption("-m"):
        kept = [item for item in items if not any(item.get_closest_marker(name) for name in SLOW)]
        if len(kept) < len(items):
            config.hook.pytest_deselected(items=[item for item in items if item not in kept])
            items[:] = kept
