"""Who takes what: counts against plain Python, token by token; where patches lie; and what is refused."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeclip import load
from edgeclip.bundle import Bundle, seal
from edgeclip.bundle.manifest import Experts
from edgeclip.errors import BundleError, EngineError, InputError
from edgeclip.runtime.experts import ExpertUse, UseCounter, grid_of
from edgeclip.runtime.images.preprocess import preprocess
from edgeclip.runtime.model import Model
from tests.runtime.mixtures import (
    BLOCKS,
    COUNTS,
    MOST,
    PATCH,
    TOP_K,
    image_shares,
    make_mixtures,
    text_shares,
)
from tests.runtime.toy import PREPROCESSING, make_bundle, picture

PICTURES = [picture(seed, 48, 40 + seed) for seed in range(11)]  # one batch and a rest
TEXTS = ["a cat", "a photo of a dog", "bicycle", "a photo of a cat a dog"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_mixtures(tmp_path_factory.mktemp("mixtures") / "toy", text=True)


@pytest.fixture(scope="module")
def model(bundle: Bundle) -> Iterator[Model]:
    with load(bundle, threads=1, decode="exact") as opened:
        yield opened


def taken(picture: NDArray[np.uint8]) -> list[list[dict[int, float]]]:
    return image_shares(preprocess(picture, PREPROCESSING))


def tallied(samples: list[list[list[dict[int, float]]]]) -> tuple[Counter[Any], Counter[Any]]:
    """(mixture, expert) -> tokens that took it, and the sum of their shares."""
    chosen: Counter[Any] = Counter()
    shares: Counter[Any] = Counter()
    for sample in samples:
        for i, tokens in enumerate(sample):
            for token in tokens:
                for expert, share in token.items():
                    chosen[i, expert] += 1
                    shares[i, expert] += share  # type: ignore[assignment]
    return chosen, shares


def check(use: ExpertUse, samples: list[list[list[dict[int, float]]]]) -> None:
    chosen, shares = tallied(samples)
    assert (use.samples, use.tokens) == (len(samples), sum(len(sample[0]) for sample in samples))
    for i, experts in enumerate(use.experts):
        assert use.chosen[i].tolist() == [chosen[i, e] for e in range(use.chosen.shape[1])]
        for e in range(experts):
            assert use.shares[i, e] == pytest.approx(shares[i, e], abs=1e-4)
            assert use.choices[i, e] == chosen[i, e] / (use.tokens * use.top_k)
            assert use.mean_shares[i, e] == pytest.approx(shares[i, e] / max(chosen[i, e], 1), abs=1e-5)


def test_counts_of_pictures(model: Model) -> None:
    use = model.expert_use(PICTURES)
    check(use, [taken(one) for one in PICTURES])
    assert (use.blocks, use.experts, use.top_k, use.skipped) == (BLOCKS, COUNTS, TOP_K, 0)
    assert use.below(0) == [(4, 3, 0.0)], "an expert that is not there is not one that is never used"


def test_counts_of_texts_without_their_padding(model: Model) -> None:
    encoded = model.encode_texts(TEXTS)
    assert len(set(encoded.lengths)) == 4, "texts of one length need no padding"
    ids = [[int(one) for one in row[:n]] for row, n in zip(encoded.input_ids, encoded.lengths, strict=True)]
    for size in (1, 3, 8):
        check(model.expert_use(texts=iter(TEXTS), batch_size=size), [text_shares(one) for one in ids])


def test_the_order_of_pictures_does_not_matter(bundle: Bundle) -> None:
    found = []
    for pictures in (PICTURES, PICTURES[::-1]):
        with load(bundle, threads=1) as model:
            found.append(model.expert_use(pictures, batch_size=1))
    assert (found[0].chosen == found[1].chosen).all()
    assert (found[0].shares == found[1].shares).all()
    shares = np.random.default_rng(0).random((3000, 1, 5, 4), np.float32) ** 8
    orders = [range(3000), range(2999, -1, -1)]
    counters = [UseCounter("image", Experts((0,), (4,), 1)) for _ in orders]
    for counter, order in zip(counters, orders, strict=True):
        for number in order:
            counter.add(number, shares[number])
    one, other = (counter.use().shares.tolist() for counter in counters)
    assert one == other, "sums of float64 would differ in their last bits"
    assert one == pytest.approx(shares.sum(axis=(0, 1, 2), dtype=np.float64)[None], rel=1e-6)


def test_a_picture_that_cannot_be_used_is_counted_and_warned_of(
    model: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = tmp_path / "b.png"
    bad.write_bytes(b"none")
    with caplog.at_level(logging.WARNING):
        use = model.expert_use([bad, PICTURES[0], b"", PICTURES[1]], keep=4)
    check(use, [taken(one) for one in PICTURES[:2]])
    assert use.skipped == 2
    assert [record.getMessage() for record in caplog.records if str(bad) in record.getMessage()]
    numbers = {one.picture for kept in use.surest.values() for one in kept}
    assert numbers == {1, 3}, "of the pictures as they were given"
    nothing = model.expert_use([b""])
    assert (nothing.samples, nothing.skipped, nothing.choices.sum()) == (0, 1, 0)


def test_maps_lie_over_the_picture_that_the_tower_saw(model: Model) -> None:
    for one, routing in zip(PICTURES, model.routing_of(PICTURES), strict=True):
        expected = taken(one)
        assert routing.grid == (4, 4)
        for i, block in enumerate(BLOCKS):
            best = [max(token, key=lambda e, token=token: token[e]) for token in expected[i][1:]]  # type: ignore[misc]
            assert routing.map_of(block).tolist() == np.reshape(best, (4, 4)).tolist()
    single = model.routing_of(PICTURES[0])
    assert single.patches(4).shape == (4, 4, MOST)
    with pytest.raises(
        InputError, match=r"block 2: has no mixture of experts; the image tower's are 1, 3, 4"
    ):
        single.map_of(2)
    with pytest.raises(InputError, match="its 17 tokens are no grid"):
        replace(single, grid=None).map_of(1)


def test_a_patch_lies_where_the_picture_differs(model: Model) -> None:
    """A picture of one colour but for one patch: the map differs there alone."""
    side = 4 * PATCH
    flat = np.full((side, side, 3), 90, np.uint8)
    spotted = flat.copy()
    row, column = 2, 1
    spotted[row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH] = picture(3, PATCH, PATCH)
    changed = [
        model.routing_of(spotted).patches(block) != model.routing_of(flat).patches(block) for block in BLOCKS
    ]
    places = np.argwhere(np.any(changed, axis=(0, 3)))
    assert places.tolist() == [[row, column]]


def test_the_surest_patches(model: Model) -> None:
    use = model.expert_use(PICTURES, keep=3, batch_size=4)
    samples = [taken(one) for one in PICTURES]
    for i, block in enumerate(BLOCKS):
        for expert in range(COUNTS[i]):
            kept = use.surest.get((block, expert), ())
            best = [
                max((token.get(expert, 0.0), n) for n, token in enumerate(sample[i][1:]))
                for sample in samples
            ]
            numbers = sorted(range(len(best)), key=lambda n: -best[n][0])
            wanted = [n for n in numbers if best[n][0] > 0][:3]
            assert [one.picture for one in kept] == wanted
            assert [4 * one.row + one.column for one in kept] == [best[n][1] for n in wanted]
            np.testing.assert_allclose([one.share for one in kept], [best[n][0] for n in wanted], atol=1e-5)


def test_equal_shares_favour_no_corner() -> None:
    counter = UseCounter("image", Experts((0,), (1,), 1), grid=(8, 8), keep=50)
    for number in range(200):
        counter.add(number, np.ones((1, 65, 1), np.float32))
    kept = counter.use().surest[0, 0]
    assert len({(one.row, one.column) for one in kept}) > 25
    assert max(one.picture for one in kept) > 100, "the first pictures are not preferred either"


def test_balance_by_hand() -> None:
    counter = UseCounter("image", Experts((0, 1, 2), (4, 4, 1), 1))
    shares = np.zeros((3, 4, 4), np.float32)
    shares[0, range(4), range(4)] = 1  # all alike
    shares[1, :2, 0] = shares[1, 2:, 3] = 1  # two of four: ln 2 / ln 4
    shares[2, :, 0] = 1  # the only one
    counter.add(0, shares)
    use = counter.use()
    assert use.balance.tolist() == pytest.approx([1, 0.5, 1])
    assert use.below(0) == [(1, 1, 0.0), (1, 2, 0.0)]
    assert use.to_dict()["blocks"][1] == {
        "block": 1, "tokens": [2, 0, 0, 2], "choices": [0.5, 0, 0, 0.5], "mean_share": [1, 0, 0, 1], "balance": 0.5,
    }  # fmt: skip
    one = UseCounter("image", Experts((0,), (4,), 1))
    one.add(0, np.tile(np.array([1, 0, 0, 0], np.float32), (1, 9, 1)))
    assert one.use().balance.tolist() == [0]
    assert not math.copysign(1, float(one.use().balance[0])) < 0, "-0 % is no figure"


@pytest.mark.parametrize(
    ("tokens", "size", "grid"),
    [
        (197, (224, 224), (14, 14)),
        (196, (224, 224), (14, 14)),  # no class token
        (577, (336, 336), (24, 24)),
        (2, (32, 32), (1, 1)),
        (1 + 12 * 24, (192, 384), (12, 24)),
        (1 + 24 * 12, (384, 192), (24, 12)),
        (198, (224, 224), None),
        (1, (224, 384), None),
    ],
)
def test_grids(tokens: int, size: tuple[int, int], grid: tuple[int, int] | None) -> None:
    assert grid_of(tokens, size) == grid


def test_refusals(tmp_path: Path, model: Model) -> None:
    with pytest.raises(InputError, match="expected either images or texts"):
        model.expert_use()
    with pytest.raises(InputError, match="expected either images or texts"):
        model.expert_use([], texts=[])
    with pytest.raises(InputError, match=r"batch_size: expected 1 or more, got 0"):
        model.expert_use(texts=["a"], batch_size=0)
    with pytest.raises(InputError, match=r"images\[0\]"):
        model.routing_of([b""])
    cases = [
        (make_bundle(tmp_path / "dense"), "no tower of this bundle has mixtures of experts"),
        (make_mixtures(tmp_path / "texts", image=False, text=True), r"in the text tower only\. Pass texts"),
        (
            make_mixtures(tmp_path / "old", routing=False),
            r"no graph of this bundle tells.*`edgeclip export` adds one",
        ),
    ]
    for bundle, said in cases:
        with load(bundle, threads=1) as other, pytest.raises(EngineError, match=said):
            other.expert_use([PICTURES[0]])
    other = load(make_mixtures(tmp_path / "pictures"), threads=1)
    with other, pytest.raises(EngineError, match=r"in the image tower only\. Pass pictures"):
        other.expert_use(texts=["a"])
    with pytest.raises(EngineError, match="was closed"):
        other.routing_of(PICTURES[0])


def test_a_graph_that_contradicts_its_bundle_is_refused(tmp_path: Path) -> None:
    bundle = make_mixtures(tmp_path / "toy")
    wrong = tuple(
        replace(v, experts=replace(v.experts, blocks=(0, 1), counts=(4, 4))) if v.experts else v
        for v in bundle.manifest.variants
    )
    damaged = seal(bundle.root, replace(bundle.manifest, variants=wrong))
    with (
        load(damaged, threads=1) as model,
        pytest.raises(BundleError, match="gives 3 mixtures of 4 experts, the bundle says 2 of 4"),
    ):
        model.expert_use([PICTURES[0]])


def test_a_bundle_of_one_precision_still_tells(bundle: Bundle) -> None:
    """The routing graph is fp32 whatever else is asked for."""
    with load(bundle, threads=1, precision="fp32", variants=["image-fp32"]) as model:
        assert model.expert_use(PICTURES[:1]).samples == 1
