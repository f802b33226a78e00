"""The directions that a graph is walked by."""

from __future__ import annotations

import numpy as np
import pytest

from edgeclip.errors import InputError
from edgeclip.runtime.index import narrow as module
from edgeclip.runtime.index.narrow import Narrow, fit_narrow
from tests.mutants import broken
from tests.vectors import clip_like


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    return clip_like(2100, 512)


def nearest(vectors: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    distances = ((queries.astype(np.float64)[:, None] - vectors.astype(np.float64)[None]) ** 2).sum(-1)
    return np.argsort(distances, axis=1)[:, :k]


def kept(fit, vectors) -> float:
    """Share of the 10 nearest of 2,100 vectors of width 512 that are among the 30 nearest by codes."""
    queries = clip_like(20, 512, "text", seed=4)
    found = fit(vectors)
    want = np.argsort(-queries @ vectors.T, axis=1)[:, :10]
    got = nearest(found.codes(vectors), found.codes(queries), 30)
    return float(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(got, want, strict=True)]))


def test_candidates_by_codes_hold_the_nearest(clip):
    assert kept(fit_narrow, clip) >= 0.99


@pytest.mark.parametrize(
    ("old", "new"),
    [("directions[:, ::-1]", "directions"), ("_KEPT))", "0.2))")],
)
def test_the_comparison_notices(clip, old, new):
    """The least directions; a range that cuts most of what differs."""
    try:
        assert kept(broken(fit_narrow, old, new), clip) < 0.98
    except AttributeError:  # no directions were enough
        return


def test_directions_are_orthonormal_hold_what_they_must_and_are_the_same_each_time(clip):
    vectors = clip
    found = fit_narrow(vectors)
    assert found.dim % 16 == 0
    assert found.dim <= 128
    np.testing.assert_allclose(found.axes.T @ found.axes, np.eye(found.dim), atol=1e-5)
    centred = vectors - vectors.mean(axis=0)
    assert ((centred @ found.axes) ** 2).sum() >= module.HELD * (centred**2).sum()
    assert fit_narrow(vectors).to_bytes() == found.to_bytes()


def test_none_where_vectors_differ_in_all_directions_or_are_few():
    random = np.random.default_rng(0).normal(size=(3000, 64)).astype(np.float32)
    assert fit_narrow(random / np.linalg.norm(random, axis=1, keepdims=True)) is None
    assert fit_narrow(clip_like(2000, 512)) is None
    assert fit_narrow(clip_like(1, 4)) is None


def test_a_round_through_bytes_and_damage(clip):
    from safetensors.numpy import save

    found = fit_narrow(clip)
    again = Narrow.from_bytes(found.to_bytes(), 512, found.dim)
    vectors = clip_like(30, 512, seed=9)
    np.testing.assert_array_equal(again.codes(vectors), found.codes(vectors))
    for data, dim in (
        (found.to_bytes(), 256),
        (found.to_bytes()[:-3], 512),
        (b"", 512),
        (save({"mean": found.mean}), 512),
    ):
        with pytest.raises(InputError, match="damaged"):
            Narrow.from_bytes(data, dim, found.dim)
