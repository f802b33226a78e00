"""Vectors in memory answer as an index on disk does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeclip import InputError
from edgeclip.runtime.index.index import Index
from edgeclip.runtime.index.memory import Memory
from edgeclip.runtime.index.types import Item, Origin
from tests.vectors import clip_like


@pytest.mark.parametrize(
    "options", [{}, {"k": 3}, {"k": 40, "threshold": 0.6}, {"where": "n < 9"}, {"where": {"n": 4}, "threshold": -1.0}, {"where": "n >= 20", "threshold": 0.3}],
    ids=str,
)  # fmt: skip
def test_as_on_disk(options: dict[str, Any], tmp_path: Path) -> None:
    rows, items = clip_like(40, 32), [Item(f"key {i}", {"n": i}) for i in range(40)]
    memory = Memory(rows, items)
    with Index.create(tmp_path / "x.index", Origin("1" * 64, "planted", 32)) as index:
        index.add(rows, items)
        for query in clip_like(3, 32, seed=1):
            here, there = (where.search(query, **options) for where in (memory, index))
            assert [(hit.key, hit.id, hit.record) for hit in here] == [(hit.key, hit.id, hit.record) for hit in there]  # fmt: skip
            np.testing.assert_allclose([hit.score for hit in here], [hit.score for hit in there], atol=1e-6)
            assert 0 < len(here) < 40
        np.testing.assert_allclose(memory.vectors(["key 7", "key 3"]), index.vectors(["key 7", "key 3"]), atol=1e-6)  # fmt: skip
        assert memory.get(["key 7", "none"]) == index.get(["key 7", "none"])
        assert [item for *_, some in memory.batches(7) for item in some] == items
    with pytest.raises(InputError, match="no item 'none' among 40"):
        memory.vectors(["key 7", "none"])
