"""Graph files: damage is found before usearch, which trusts what it reads, walks along it."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from edgeclip.errors import InputError
from edgeclip.runtime.index.graph import GraphFile, build, open_walker, walk
from edgeclip.runtime.index.types import IndexSettings
from tests.mutants import broken
from tests.vectors import clip_like

pytest.importorskip("usearch")
COUNT, DIM = 600, 20
SETTINGS = IndexSettings(connectivity=4, exact_below=0)  # few links, several levels


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("graph") / "graph.usearch"
    build(
        path, np.arange(COUNT) * 3, clip_like(COUNT, DIM).astype(np.float16), DIM, "fp16", SETTINGS, None, 1
    )
    return path.read_bytes()


def opened(tmp_path: Path, data: bytes) -> GraphFile:
    path = tmp_path / "graph.usearch"
    path.write_bytes(data)
    return GraphFile.open(path, COUNT, DIM, "fp16")


def test_what_the_file_says_is_what_usearch_says(tmp_path, whole):
    from usearch.index import Index

    file = opened(tmp_path, whole)
    other = Index.restore(str(file.path))
    keys = file.keys()
    assert sorted(keys.tolist()) == sorted(int(key) for key in other.keys)
    np.testing.assert_array_equal(file.codes, np.stack([other.get(int(key)) for key in keys.tolist()]))
    assert int(file.levels.max()) == file.top == other.max_level >= 2
    for level in range(file.top + 1):
        assert int((file.levels >= level).sum()) == other.level_stats(level).nodes
    file.check_links()


def test_a_walk_reads_what_was_mapped_although_the_name_is_gone(tmp_path, whole):
    file = opened(tmp_path, whole)
    walker = open_walker(file, SETTINGS)
    file.path.unlink()
    assert walk(walker, file.codes[5:6], 1, 64).tolist() == [[15]]
    keys = walk(walker, file.codes[:3], 700, 700)
    assert keys.shape == (3, 600) or (keys[:, 600:] == -1).all()
    assert set(keys[0][keys[0] >= 0].tolist()) <= set(range(0, 3 * COUNT, 3))


def places(whole: bytes) -> dict[str, int]:
    """Where the fields lie, worked out here from usearch's own source."""
    head = 8 + COUNT * DIM * 2
    shape = head + 64
    levels = shape + 40
    return {
        "rows": 0, "bytes of a row": 4, "magic": head, "metric": head + 13, "scalar": head + 14, "present": head + 17,
        "removed": head + 25, "dimensions": head + 33, "multi": head + 41, "nodes": shape, "links": shape + 8, "links below": shape + 16,
        "top": shape + 24, "first": shape + 32, "a level": levels + 2 * 100,
    }  # fmt: skip


def test_every_field_is_compared(tmp_path, whole):
    for place in places(whole).values():
        for value in (255, whole[place] ^ 1):
            data = bytearray(whole)
            data[place] = value
            with pytest.raises(InputError, match=r"graph\.usearch: damaged: .* not as the rest says"):
                opened(tmp_path, bytes(data))


@pytest.mark.parametrize("cut", [0, 3, 8, 24_050, 24_100, 24_200, -1])
def test_a_file_that_ends_early(tmp_path, whole, cut):
    with pytest.raises(InputError, match=r"damaged|cannot be read"):
        opened(tmp_path, whole[:cut])


def a_node(whole: bytes, above: int) -> int:
    """Where a node begins that reaches this level."""
    start = places(whole)["a level"] - 200
    levels = np.frombuffer(whole, "<i2", COUNT, start)
    sizes = 10 + 4 + 4 * 8 + levels.astype(int) * (4 + 4 * 4)
    slot = int(np.flatnonzero(levels >= above)[0])
    return start + 2 * COUNT + int(sizes[:slot].sum())


@pytest.mark.parametrize(
    ("above", "offset", "value"),
    [
        (0, 10, 9),  # more links than there is room for
        (0, 10, 1 << 31),
        (0, 14, COUNT),  # a link to a node that is not there
        (0, 14, (1 << 32) - 1),
        (1, 10 + 4 + 4 * 8, 5),  # the same a level higher
        (1, 10 + 4 + 4 * 8 + 4, COUNT),
    ],
)
def test_links_that_leave_the_graph(tmp_path, whole, above, offset, value):
    data = bytearray(whole)
    struct.pack_into("<I", data, a_node(whole, above) + offset, value)
    file = opened(tmp_path, bytes(data))
    with pytest.raises(InputError, match="leaves the graph on level"):
        open_walker(file, SETTINGS)
    with pytest.raises(InputError, match="leaves the graph on level"):
        build(tmp_path / "new", np.arange(1), np.zeros((1, DIM), np.float16), DIM, "fp16", SETTINGS, file, 1)


def test_links_to_a_node_that_has_no_such_level_and_two_levels_that_differ(tmp_path, whole):
    start = places(whole)["a level"] - 200
    low = int(np.flatnonzero(np.frombuffer(whole, "<i2", COUNT, start) == 0)[0])
    data = bytearray(whole)
    struct.pack_into("<I", data, a_node(whole, 1) + 10 + 4 + 4 * 8 + 4, low)
    with pytest.raises(InputError, match="below level 1"):
        opened(tmp_path, bytes(data)).check_links()
    data = bytearray(whole)
    data[a_node(whole, 0) + 8] ^= 1
    with pytest.raises(InputError, match="two that differ"):
        opened(tmp_path, bytes(data)).check_links()


@pytest.mark.parametrize(
    ("old", "new", "missed"),
    [
        ("table[:, 0].max(initial=0) <= most", "True", ["count"]),
        ("linked.max(initial=0) < self.count", "True", ["link"]),
        ("if level:", "if False:", ["level"]),
    ],
)
def test_these_tests_notice(tmp_path, whole, monkeypatch, old, new, missed):
    monkeypatch.setattr(GraphFile, "_check", broken(GraphFile._check, old, new))
    low = int(np.flatnonzero(np.frombuffer(whole, "<i2", COUNT, places(whole)["a level"] - 200) == 0)[0])
    faults = {"count": (0, 10, 9), "link": (0, 14, COUNT), "level": (1, 10 + 4 + 4 * 8 + 4, low)}
    found = []
    for name, (above, offset, value) in faults.items():
        data = bytearray(whole)
        struct.pack_into("<I", data, a_node(whole, above) + offset, value)
        try:
            opened(tmp_path, bytes(data)).check_links()
            found.append(name)
        except InputError:
            pass
    assert found == missed
