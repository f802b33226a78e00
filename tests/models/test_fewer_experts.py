"""Experts counted, dropped and merged: what must stay the same function does, and what cannot reach an embedding counts for nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from edgeclip.errors import InputError
from edgeclip.models import merged_experts
from edgeclip.models.expert_use import ExpertsSeen, Tower, counted_tokens, expert_use, towers_with_experts
from edgeclip.models.feed_forward import MoeMlp, gates, moe_layers, recorded
from edgeclip.models.fewer_experts import merged, pruned
from edgeclip.models.merged_experts import Expert, aligned, likeness, merge, merge_alike
from edgeclip.models.source import Source
from edgeclip.models.sources import load_source, save_source
from tests.export.sources import EOS, PAD, PREPROCESSING, TEXT, clip_source
from tests.export.traced import PIXELS, make_ids
from tests.mixtures import moe_source
from tests.mutants import broken

IDS = torch.from_numpy(make_ids(8)).long()
INPUTS: dict[Tower, Tensor] = {"image": torch.from_numpy(PIXELS), "text": IDS}


def embeddings(source: Source) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return source.model.encode_image(INPUTS["image"]), source.model.encode_text(IDS)


def seen_of(source: Source) -> dict[str, ExpertsSeen]:
    towers = towers_with_experts(source.model)
    return expert_use(source.model, {tower: INPUTS[tower] for tower in towers})


# ---- use


def test_use_is_the_share_of_the_choices_of_tokens_that_reach_the_embedding() -> None:
    source = moe_source(text=(3, 3))
    seen = seen_of(source)
    with torch.no_grad(), recorded(source.model) as heard:
        embeddings(source)
    taken = [(share > 0).double() for share in heard.shares]
    pooled = (IDS == EOS).int().argmax(1)
    before = torch.arange(IDS.shape[1]) <= pooled[:, None]
    wanted = {
        "image.blocks.0.mlp": taken[0].flatten(0, 1),
        "image.blocks.1.mlp": taken[1][:, 0],  # the class token alone
        "text.blocks.0.mlp": taken[2][before],
        "text.blocks.1.mlp": taken[3][torch.arange(len(IDS)), pooled],
    }
    assert list(seen) == list(wanted)
    for name, chosen in wanted.items():
        assert seen[name].tokens == len(chosen)
        torch.testing.assert_close(seen[name].use, chosen.mean(0) / 2, rtol=0, atol=1e-12)


def test_ids_behind_a_texts_end_change_no_use() -> None:
    source = moe_source(text=(3, 3))
    other = torch.where(torch.arange(IDS.shape[1]) > (IDS == EOS).int().argmax(1)[:, None], 7, IDS)
    assert not torch.equal(other, IDS)
    a, b = (expert_use(source.model, {"text": ids}) for ids in (IDS, other))
    assert all(torch.equal(a[name].use, b[name].use) for name in a)


@pytest.mark.parametrize(
    ("shape", "kind", "first", "last"),
    [
        ("openclip-avg", "image", "all", "all"),
        ("siglip", "image", "all", "all"),
        ("siglip", "text", "all", "last"),  # padding is attended to: it counts
        ("coca", "text", "all", "first"),
        ("coca-avg", "text", "given", "pooled"),
        ("resnet", "text", "given, class", "class"),
    ],
)
def test_what_counts_follows_the_pool(shape: str, kind: Tower, first: str, last: str) -> None:
    tower = getattr(clip_source(shape).model, kind)
    inputs = INPUTS[kind]
    tokens = {"image": 16 + int(shape == "openclip-avg"), "text": IDS.shape[1] + int(shape == "resnet")}[kind]
    order, every = torch.arange(tokens), torch.ones(len(inputs), tokens, dtype=torch.bool)
    given = IDS != PAD
    wanted = {
        "all": every,
        "last": every & (order == tokens - 1),
        "first": every & (order == 0),
        "given": given,
        "pooled": every[:, :20] & (order[:20] == (IDS == EOS).int().argmax(1)[:, None]),
        "given, class": torch.cat([every[:, :1], given[:, :-1], every[:, :1]], 1),  # hidden one position late
        "class": every & (order == tokens - 1),
    }
    for block, what in enumerate((first, last)):
        assert torch.equal(counted_tokens(tower, f"blocks.{block}.mlp", inputs), wanted[what]), block


def test_a_tower_without_mixtures_has_no_use() -> None:
    with pytest.raises(InputError, match="the text tower has no mixture of experts"):
        expert_use(moe_source().model, {"text": IDS})


# ---- pruned


def test_dropping_unused_experts_changes_nothing() -> None:
    source = moe_source(text=(3, 3))
    with torch.no_grad():
        for layer in moe_layers(source.model).values():  # the last expert's logit is below all others
            layer.router.weight[-1] = -4 * layer.router.weight[0]
            layer.router.weight[1] = layer.router.weight[0]
    seen = {}
    for name, found in seen_of(source).items():  # whatever is chosen is kept
        seen[name] = found
    used = {name: int((found.use > 0).sum()) for name, found in seen.items()}
    fewer = pruned(source, seen, below=1e-9)
    counts = {name: len(groups) for name, groups in fewer.groups.items()}
    assert counts == used
    assert min(used[name] - len(seen[name].use) for name in used) < 0, "nothing was dropped"
    for a, b in zip(embeddings(source), embeddings(fewer.source), strict=True):
        # batched sums of other sizes: noise is 3e-7; a router row too many or in another order moves 1e-3
        torch.testing.assert_close(a, b, rtol=0, atol=3e-6)


def test_shares_of_those_left_are_the_softmax_of_the_rest() -> None:
    source = moe_source((4, 4), top_k=4)
    seen = seen_of(source)
    left = pruned(
        source, {n: replace(s, use=torch.tensor([0.1, 0.4, 0.2, 0.3])) for n, s in seen.items()}, keep=2
    )
    assert left.groups["image.blocks.0.mlp"] == ((1,), (3,))
    with torch.no_grad(), recorded(source.model) as before, recorded(left.source.model) as after:
        embeddings(source), embeddings(left.source)
    shares = before.shares[0][..., [1, 3]]
    torch.testing.assert_close(after.shares[0], shares / shares.sum(-1, keepdim=True), rtol=0, atol=1e-6)


def test_one_expert_left_is_a_dense_block() -> None:
    source = moe_source((4, 0), (0, 2))
    fewer = pruned(source, seen_of(source), keep=1)
    assert moe_layers(fewer.source.model) == {}
    config = fewer.source.model.config  # type: ignore[attr-defined]
    assert config.image.blocks.moe is None
    assert config.text.blocks.moe is None
    ((number,),) = fewer.groups["image.blocks.0.mlp"]
    old = moe_layers(source.model)["image.blocks.0.mlp"].experts[number]
    new = fewer.source.model.image.blocks[0].mlp  # type: ignore[union-attr,index]
    assert all(torch.equal(a, b) for a, b in zip(old.parameters(), new.parameters(), strict=True))


def test_it_is_another_model_that_saves_and_loads(tmp_path: Path) -> None:
    source = moe_source(text=(3, 0))
    fewer = pruned(source, seen_of(source), keep=3).source
    assert fewer.digest != source.digest
    save_source(
        tmp_path / "fewer", model=fewer.model, preprocessing=PREPROCESSING, text=TEXT,
        tokenizer_json=fewer.tokenizer_json, licence=fewer.licence,
    )  # fmt: skip
    again = load_source(str(tmp_path / "fewer"))
    assert again.digest == fewer.digest
    for a, b in zip(embeddings(fewer), embeddings(again), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 5}, "keep 5: expected 1 to 4, the most experts that a block has"),
        ({"keep": 0}, "keep 0: expected 1 to 4"),
        ({"below": 1.5}, "below 1.5: expected a share above 0"),
        ({}, "expected one of keep and below"),
        ({"keep": 2, "below": 0.1}, "expected one of keep and below"),
    ],
)
def test_wishes_that_cannot_be(options: dict[str, float], message: str) -> None:
    source = moe_source()
    with pytest.raises(InputError, match=message):
        pruned(source, seen_of(source), **options)  # type: ignore[arg-type]


def test_every_mixture_must_have_been_measured() -> None:
    source = moe_source(text=(2, 2))
    with pytest.raises(InputError, match=r"text\.blocks\.0\.mlp: its experts' use was not measured"):
        pruned(source, expert_use(source.model, {"image": INPUTS["image"]}), keep=1)
    with pytest.raises(InputError, match="made-up: no mixture of experts"):
        merged(clip_source(), {}, keep=1)


# ---- merged


def expert(seed: int, use: float = 0.25, row: Tensor | None = None) -> Expert:
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw) / shape[-1] ** 0.5

    weights = normal(64, 16), normal(64), normal(16, 64), normal(16)
    return Expert(*weights, normal(16) * 2 if row is None else row, use, "gelu", (seed,))


def tokens(seed: int, count: int = 512) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    # a mean that is not 0, as behind a LayerNorm with a bias: what all tokens share is where a row finds its constant
    return torch.randn(count, 16, generator=draw) + torch.randn(16, generator=draw.manual_seed(99))


def mixed(experts: list[Expert], x: Tensor, k: int) -> Tensor:
    shares = gates(x @ torch.stack([e.row for e in experts]).T, min(k, len(experts)))
    return torch.stack([share[:, None] * e(x) for share, e in zip(shares.T, experts, strict=True)]).sum(0)


def shuffled(e: Expert, seed: int = 5) -> Expert:
    order = torch.randperm(64, generator=torch.Generator().manual_seed(seed))
    return replace(
        e, fc1_weight=e.fc1_weight[order], fc1_bias=e.fc1_bias[order], fc2_weight=e.fc2_weight[:, order]
    )


def test_equal_experts_that_are_all_there_is_merge_exactly() -> None:
    a = expert(1)
    found = merge_alike([a, replace(shuffled(a), of=(2,), row=-a.row)], tokens(1), 2)
    assert [e.of for e in found] == [(1, 2)]
    # units of the one are those of the other in another order: their mean is the same function
    torch.testing.assert_close(found[0](tokens(2)), a(tokens(2)), rtol=0, atol=1e-6)


def test_without_the_match_of_hidden_units_a_merge_is_no_expert(monkeypatch: pytest.MonkeyPatch) -> None:
    a = expert(1)
    b = shuffled(a)
    monkeypatch.setattr(merged_experts, "aligned", lambda one, to: one)
    found = merge([a, b], 0, 1, tokens(1), 2)
    assert (found(tokens(2)) - a(tokens(2))).norm() > 0.3 * a(tokens(2)).norm()


def test_relatives_of_one_base_stay_in_their_order() -> None:
    a = expert(1)
    noise = expert(2)
    b = replace(
        a, fc1_weight=a.fc1_weight + 0.3 * noise.fc1_weight, fc2_weight=a.fc2_weight + 0.3 * noise.fc2_weight
    )
    assert aligned(b, a) is b


def test_equal_experts_with_equal_rows_change_nothing_where_a_token_takes_one() -> None:
    a, c = expert(1), expert(3)
    before = [a, replace(a, of=(2,)), c]
    merged_ = merge(before, 0, 1, tokens(1), 1)
    x = tokens(2)
    assert torch.equal(merged_.row, a.row)
    torch.testing.assert_close(mixed([merged_, c], x, 1), mixed(before, x, 1), rtol=0, atol=1e-6)


def test_shares_of_two_add_where_a_token_takes_both() -> None:
    a, c = expert(1), expert(3)
    before = [a, replace(a, of=(2,), row=a.row + 0.2 * expert(4).row), c]
    x = tokens(2)
    want = mixed(before, x, 3)

    def error(row: Tensor) -> float:
        found = mixed([replace(merge(before, 0, 1, tokens(1), 3), row=row), c], x, 3)
        return float((found - want).norm() / want.norm())

    fitted = merge(before, 0, 1, tokens(1), 3).row
    mean = (before[0].row + before[1].row) / 2
    assert error(mean) > 0.1  # the pair has lost half of its weight
    assert error(fitted) < 0.3 * error(mean)


def test_two_equal_among_three_then_take_the_third() -> None:
    """With two a token, a token that took both equals now takes one of them and the third: by the softmax of all three."""
    a = expert(1)
    c = expert(3, row=a.row + 0.3 * (expert(4).row - expert(5).row))
    before = [a, replace(a, of=(2,)), c]
    x = tokens(2)
    found = mixed([merge(before, 0, 1, tokens(1), 2), c], x, 2)
    both = gates(x @ torch.stack([e.row for e in before]).T, 2)[:, 2] == 0
    assert 0.2 < both.double().mean() < 0.9
    rows = torch.stack([a.row, a.row, c.row])
    want = (x @ rows.T).softmax(1)[:, :2].sum(1, keepdim=True)
    want = want * a(x) + (1 - want) * c(x)
    unmerged = mixed(before, x, 2)
    assert (found - want)[both].norm() < 0.5 * (found - unmerged)[both].norm()


def test_a_double_is_not_alike() -> None:
    a, x = expert(1), tokens(1)
    twice = replace(a, fc2_weight=2 * a.fc2_weight, fc2_bias=2 * a.fc2_bias)
    shares = torch.full((len(x), 2), 0.5)
    assert float(likeness([a(x), a(x)], shares)[0, 1]) == pytest.approx(1)
    assert float(likeness([a(x), twice(x)], shares)[0, 1]) == pytest.approx(0.8)  # 2 * 2 / (1 + 4)
    # tokens that take neither say nothing
    far = torch.where(torch.arange(len(x))[:, None] < 100, a(x), -a(x))
    only = torch.zeros(len(x), 2)
    only[:100, 0] = 1
    assert float(likeness([a(x), far], only)[0, 1]) == pytest.approx(1)


def test_the_mean_is_by_use() -> None:
    a, b = expert(1, use=0.3), expert(2, use=0.1)
    found = merge([a, replace(b, fc1_weight=a.fc1_weight, fc1_bias=a.fc1_bias)], 0, 1, tokens(1), 2)
    torch.testing.assert_close(found.fc2_bias, 0.75 * a.fc2_bias + 0.25 * b.fc2_bias)
    assert found.use == pytest.approx(0.4)


def test_only_pairs_that_are_alike_enough_are_merged() -> None:
    source = moe_source((4, 4), spread=1.0)
    with torch.no_grad():
        for layer in moe_layers(source.model).values():
            for own, other in zip(layer.experts[3].parameters(), layer.experts[1].parameters(), strict=True):
                own.copy_(other)
    fewer = merged(source, seen_of(source), above=0.999)
    assert set(fewer.groups.values()) == {((0,), (1, 3), (2,))}
    assert fewer.source.digest != source.digest
    layer = moe_layers(fewer.source.model)["image.blocks.1.mlp"]
    assert isinstance(layer, MoeMlp)
    assert layer.router.weight.shape[0] == 3


def test_a_plain_mean_of_the_rows_would_be_seen() -> None:
    a, c = expert(1), expert(3)
    before = [a, replace(a, of=(2,)), c]
    mutant = broken(merge, "row=_corrected(found.row, inputs, wanted)", "row=found.row")
    x, want = tokens(2), mixed(before, tokens(2), 3)
    off = [(mixed([how(before, 0, 1, tokens(1), 3), c], x, 3) - want).norm() for how in (merge, mutant)]
    assert off[0] < 0.3 * off[1]
