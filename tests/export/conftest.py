"""Exports of many small towers in one process: what torch makes anew for each is made once."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cache

import pytest


@pytest.fixture(scope="module", autouse=True)
def operators_read_once() -> Iterator[None]:
    """torch's table of ONNX operators, the same for every export at an opset: reading it takes 1 of the 5 s that a tiny one needs."""
    if "torch" not in sys.modules:  # a file that exports nothing, and need not wait for torch
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
