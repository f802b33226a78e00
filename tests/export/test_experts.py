"""The three forms of a mixture of experts against PyTorch, on onnxruntime.

One mixture is traced for each form, with a free batch and length; tests put weights of their own into its graph. Whole towers are of the
slow tier, because it is tracing that takes the time.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor

from edgeclip.bundle import Port
from edgeclip.errors import CheckFailed
from edgeclip.export.clip_towers import ClassText, expected
from edgeclip.export.experts import (
    CapacityExperts,
    DenseExperts,
    ExpertForm,
    GatherExperts,
    TracedExperts,
)
from edgeclip.export.onnx_graph import capture, check, count, write
from edgeclip.export.routing_towers import image_routing, text_routing
from edgeclip.export.targets import PORTABLE
from edgeclip.export.tensorrt_rules import problems
from edgeclip.export.towers import TracedTower, tower_of
from edgeclip.models.feed_forward import MoeMlp, chosen, ranks, recorded
from tests.export.traced import PIXELS, assert_rows, make_ids, opened, wanted
from tests.mixtures import moe_source
from tests.mutants import broken

Array = NDArray[Any]
WIDTH, HIDDEN, EXPERTS, TOP, LONGEST = 16, 24, 4, 2, 20
CAPACITY = (3, 5, 20, 4)
# Noise is 2e-7 here, an expert's smallest part in an output 1e-3.
TOLERANCE = 2e-6
FORMS = ("dense", "gather", "capacity")
# The graph of "dense" is made of what the graph of "capacity" is made of.
GRAPHS = (pytest.param("dense", marks=pytest.mark.parity), "gather", "capacity")


def mixture(seed: int = 0, top_k: int = TOP, experts: int = EXPERTS) -> MoeMlp:
    """Experts that differ, by a router that sends tokens to all of them."""
    torch.manual_seed(seed)
    moe = MoeMlp(WIDTH, HIDDEN, "quick_gelu", experts, top_k).eval()
    with torch.no_grad():
        moe.router.weight.normal_()
    return moe


def traceable(moe: MoeMlp, form: str, capacity: tuple[int, ...] = CAPACITY) -> TracedExperts:
    if form == "capacity":
        return CapacityExperts(moe, capacity).eval()
    return (DenseExperts if form == "dense" else GatherExperts)(moe).eval()


class _WithLive(torch.nn.Module):
    """A mixture whose first input says by its first column which tokens are read."""

    def __init__(self, experts: TracedExperts) -> None:
        super().__init__()
        self.tower = experts

    def forward(self, x: Tensor, live: Tensor) -> Tensor:
        return self.tower(x, live)  # type: ignore[no-any-return]


@cache
def one(form: str) -> tuple[TracedTower, onnx.ModelProto]:
    """One mixture with free batch and length, and its graph."""
    module = traceable(mixture(), form)
    ports = (Port("x", "float32", ("N", "L", WIDTH)), Port("live", "float32", ("N", "L", 1)))
    examples = torch.randn(2, LONGEST, WIDTH), torch.ones(2, LONGEST, 1)
    output = (Port("y", "float32", ("N", "L", WIDTH)),)
    tower = TracedTower("image", _WithLive(module), examples, ports, output, expected(module, 0), (PORTABLE,))
    proto = ir.to_proto(write(capture(tower), tower, PORTABLE)[0])
    onnx.checker.check_model(proto, full_check=True)
    return tower, proto


def run(form: str, moe: MoeMlp, x: Tensor, live: Tensor | None = None) -> Tensor:
    """What the graph gives with the weights of `moe` in place of its own."""
    graph = onnx.ModelProto()
    graph.CopyFrom(one(form)[1])
    weights = {name: value.numpy() for name, value in traceable(moe, form).named_parameters()}
    for tensor in graph.graph.initializer:
        if tensor.name in weights:
            tensor.CopyFrom(numpy_helper.from_array(weights.pop(tensor.name), tensor.name))
    assert not weights, f"not in the graph: {', '.join(weights)}"
    ones = torch.ones(*x.shape[:2], 1)
    (y,) = opened(graph).run(None, {"x": x.numpy(), "live": (ones if live is None else live).numpy()})
    return torch.from_numpy(y)


def of_torch(moe: MoeMlp, x: Tensor) -> Tensor:
    with torch.no_grad():
        return moe(x)  # type: ignore[no-any-return]


def tokens(n: int, length: int = LONGEST, seed: int = 5) -> Tensor:
    return torch.randn(n, length, WIDTH, generator=torch.Generator().manual_seed(seed))


def agree(got: Tensor, want: Tensor, what: str = "") -> None:
    np.testing.assert_allclose(got.numpy(), want.numpy(), rtol=0, atol=TOLERANCE, err_msg=what)


def slow_capacity(moe: MoeMlp, x: Tensor, capacity: tuple[int, ...], renormalise: bool = True) -> Tensor:
    """The form "capacity", token by token."""
    y = torch.zeros_like(x)
    with torch.no_grad():
        for n, sample in enumerate(x):
            shares = []
            for logits in moe.logits(sample).tolist():
                best = sorted(range(len(logits)), key=lambda e: (-logits[e], e))[: moe.top_k]
                parts = {e: float(np.exp(logits[e] - logits[best[0]])) for e in best}
                shares.append({e: part / sum(parts.values()) for e, part in parts.items()})
            for e, limit in enumerate(capacity):
                takers = sorted(
                    (t for t in range(len(shares)) if e in shares[t]), key=lambda t: (-shares[t][e], t)
                )
                for t in takers[limit:]:
                    shares[t][e] = 0.0
            for t, parts in enumerate(shares):
                whole = sum(parts.values()) if renormalise else 1.0
                for e, part in parts.items():
                    if part:
                        y[n, t] += moe.experts[e](sample[t]) * part / whole
    return y


def dropped(moe: MoeMlp, x: Tensor, capacity: tuple[int, ...]) -> int:
    counts = chosen(moe.logits(x), moe.top_k).sum(dim=1)  # (N, E)
    return int((counts - torch.tensor(capacity)).clamp_min(0).sum())


@pytest.mark.parametrize("form", GRAPHS[:2])
def test_exact_forms_agree_at_every_batch_and_length(form: str) -> None:
    moe = mixture(1)
    for n in (1, 3, 8):
        for length in (1, 2, 7, LONGEST):
            x = tokens(n, length)
            agree(run(form, moe, x), of_torch(moe, x), f"batch {n}, length {length}")


def test_capacity_is_exact_where_nothing_overflows_and_drops_the_least_wanted_elsewhere() -> None:
    moe, exact, over = mixture(1), 0, 0
    for n in (1, 3, 8):
        for length in (1, 2, 7, LONGEST):
            x = tokens(n, length)
            y = run("capacity", moe, x)
            agree(y, slow_capacity(moe, x, CAPACITY), f"batch {n}, length {length}")
            if dropped(moe, x, CAPACITY):
                over += 1
                assert (y - of_torch(moe, x)).abs().max() > 1e-2
            else:
                exact += 1
                agree(y, of_torch(moe, x))
    assert exact > 2
    assert over > 2
    alone = torch.cat([run("capacity", moe, row[None]) for row in tokens(8)])
    agree(run("capacity", moe, tokens(8)), alone, "a sample depends on its neighbours")


@pytest.mark.parametrize("form", GRAPHS)
def test_of_equal_logits_the_lower_expert_is_taken(form: str) -> None:
    moe = mixture(2)
    with torch.no_grad():
        moe.router.weight[1:] = moe.router.weight[1]  # 0 alone or behind three equal ones
    x = tokens(3, 3)
    taken = chosen(moe.logits(x), TOP)
    assert taken[..., 0].any()
    assert (~taken[..., 0]).any()
    assert not taken[..., 3].any()
    want = of_torch(moe, x)
    agree(run(form, moe, x), want)
    with torch.no_grad():  # that the experts behind are told apart
        moe.experts[1].fc2.bias += 1
        moved = of_torch(moe, x) - want
    assert moved.abs().amax(dim=-1).min() > 1e-3
    agree(run(form, moe, x) - want, moved)


@pytest.mark.parametrize("form", GRAPHS)
def test_every_expert_is_reached_and_one_that_no_token_takes_is_not(form: str) -> None:
    moe, x = mixture(1), tokens(8)
    before = run(form, moe, x)
    for expert in moe.experts:
        with torch.no_grad():
            expert.fc1.weight *= 1.1
        after = run(form, moe, x)
        assert (after - before).abs().max() > 1e-3
        before = after
    x = torch.cat([x.abs()[:1]] * 3)
    with torch.no_grad():
        moe.router.weight[2] = -100.0
        assert not chosen(moe.logits(x), TOP)[..., 2].any()
        want = run(form, moe, x[:1])
        if form != "capacity":
            agree(want, of_torch(moe, x[:1]))
        moe.experts[2].fc2.weight.normal_(std=10)
    agree(run(form, moe, x), want.expand(3, -1, -1))


def test_a_token_that_nothing_reads_takes_no_place_and_no_product() -> None:
    moe, x = mixture(1), tokens(3)
    live = torch.ones(3, LONGEST, 1)
    live[:, 9:] = 0
    moe.router.weight.data *= 0.2  # shares that differ little, so that padding would win places
    x[:, 9:] *= 50
    capacity_alone = slow_capacity(moe, x[:, :9], CAPACITY)
    assert dropped(moe, x[:, :9], CAPACITY)
    assert (slow_capacity(moe, x, CAPACITY)[:, :9] - capacity_alone).abs().max() > 1e-2
    for form, want in (("gather", of_torch(moe, x[:, :9])), ("capacity", capacity_alone)):
        got = run(form, moe, x, live)
        agree(got[:, :9], want, form)
        assert not got[:, 9:].any()


@pytest.mark.parametrize(("top_k", "experts"), [(1, 2), (3, 3), (2, 5)])
def test_other_numbers_of_experts(top_k: int, experts: int) -> None:
    moe, x = mixture(3, top_k, experts), tokens(2)
    for form in FORMS:
        with torch.no_grad():
            agree(traceable(moe, form, (LONGEST,) * experts)(x), of_torch(moe, x), form)
            if form == "capacity":
                small = tuple(range(2, 2 + experts))
                agree(traceable(moe, form, small)(x), slow_capacity(moe, x, small))


def test_a_token_dropped_by_all_gets_nothing_and_equal_shares_go_to_the_earlier() -> None:
    moe = mixture(1)
    x = tokens(1, 1).expand(1, 6, -1)  # equal tokens: the same experts and shares
    takers = chosen(moe.logits(x[0, 0]), TOP)
    capacity = tuple(2 if taken else 1 for taken in takers)
    with torch.no_grad():
        y = traceable(moe, "capacity", capacity)(x)
    agree(y[:, :2], of_torch(moe, x[:, :2]))
    assert not y[:, 2:].any()


def test_ranks_are_a_stable_sort() -> None:
    values = torch.tensor([[0.5, 1.0, 0.5, 2.0, 1.0, 0.0]])
    assert ranks(values).tolist() == [[3, 1, 4, 0, 2, 5]]
    logits = torch.randint(0, 3, (50, 5)).float()
    first = logits.argsort(dim=-1, descending=True, stable=True)
    for k in (1, 2, 5):
        want = torch.zeros(50, 5, dtype=torch.bool).scatter(1, first[:, :k], True)
        assert torch.equal(chosen(logits, k), want)


FAULTS: dict[str, tuple[str, type, str, str, str]] = {
    "the first expert's rows where the second's are meant": ("gather", GatherExperts, "mix", "chose.flatten().long().cumsum(0)", "chose.long().cumsum(1)"),
    "shares forgotten": ("gather", GatherExperts, "mix", " * weights[:, i : i + 1]", ""),
    "one choice alone": ("gather", GatherExperts, "mix", "for i in range(self.top_k)", "for i in range(1)"),
    "one place fewer": ("capacity", CapacityExperts, "mix", "places < self.limits", "places < self.limits - 1"),
    "a hole where a choice was dropped": ("capacity", CapacityExperts, "mix", "kept / torch.where(total > 0, total, 1.0)", "kept"),
    "the earliest tokens, not the most wanted": ("capacity", CapacityExperts, "mix", "ranks(shares.transpose(1, 2))", "ranks((shares.transpose(1, 2) > 0).float())"),
    "every expert chosen": ("dense", TracedExperts, "shares", "self.top_k)", "self.top_k + 1)"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_exceed_the_tolerance(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    form, owner, name, old, new = FAULTS[fault]
    moe, x = mixture(1), tokens(3)
    want = slow_capacity(moe, x, CAPACITY) if form == "capacity" else of_torch(moe, x)
    with torch.no_grad():
        agree(traceable(moe, form)(x), want)
        monkeypatch.setattr(owner, name, broken(getattr(owner, name), old, new))
        assert (traceable(moe, form)(x) - want).abs().max() > 1000 * TOLERANCE


@pytest.mark.parametrize("form", GRAPHS)
def test_only_gather_needs_more_than_tensorrt_reads(form: str) -> None:
    tower, proto = one(form)
    graph = ir.from_proto(proto)
    counts = count(graph)
    assert counts["mixtures"] == 1
    assert counts["linears"] == 1 + 2 * EXPERTS
    assert counts["attentions"] == 0
    reasons = problems(graph, "10.3")
    assert bool(reasons) == (form == "gather"), reasons
    if form == "gather":
        promised = replace(tower, expected=expected(traceable(mixture(), "dense"), 0))
        with pytest.raises(CheckFailed, match="expected 0 NonZero in the graph, found 4"):
            check(graph, promised, PORTABLE)


@pytest.mark.parametrize("form", GRAPHS)
def test_all_forms_hold_the_same_weights_by_the_same_names(form: str) -> None:
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in one(form)[1].graph.initializer}
    want = dict(DenseExperts(mixture()).named_parameters())
    assert {"router.weight", "experts.2.fc1.weight", "experts.3.fc2.bias"} <= set(want)
    assert len(want) == 1 + 4 * EXPERTS
    for name, value in want.items():
        np.testing.assert_array_equal(tensors[name], value.numpy())
    assert {name for name in tensors if name.endswith((".weight", ".bias"))} == set(want)


@pytest.mark.parametrize("capacity", [(3, 5), (3, 5, 0, 4)])
def test_capacities_that_fit_no_expert_are_refused(capacity: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected 1 token or more for each of 4 experts"):
        CapacityExperts(mixture(), capacity)


def test_routing_says_what_pytorch_does_and_nothing_of_tokens_that_the_text_does_not_read() -> None:
    source = moe_source((4, 3), (0, 2))
    ids = make_ids(8)
    for kind, inputs, make in (("image", PIXELS, image_routing), ("text", ids, text_routing)):
        module, counts = make(getattr(source.model, kind))  # type: ignore[operator]
        encode = source.model.encode_image if kind == "image" else source.model.encode_text
        with torch.no_grad(), recorded(source.model) as record:
            encode(torch.from_numpy(inputs))
            found = module(torch.from_numpy(inputs))
        most = max(shares.shape[-1] for shares in record.shares)
        assert found.shape == (8, len(record.shares), inputs.shape[1] if kind == "text" else 17, most)
        live = torch.ones(8, found.shape[2], dtype=torch.bool)
        if kind == "text":
            ends = torch.from_numpy(ids == ids.max()).int().argmax(dim=1)
            live = torch.arange(live.shape[1]) <= ends[:, None]
            assert (~live).any()
        for i, shares in enumerate(record.shares):
            agree(found[:, i, :, : shares.shape[-1]][live], shares[live])
            assert not found[:, i, :, shares.shape[-1] :].any()
        assert not found.transpose(1, 2)[~live].any()
        assert counts["mixtures"] == len(record.shares)


ROOM = {"image": {0: (17,) * 4, 1: (17,) * 3}, "text": {0: (20,) * 3, 1: (20,) * 2}}
TOWERS = [(kind, form) for kind in ("image", "text") for form in FORMS]


@pytest.mark.parity
@pytest.mark.parametrize(("kind", "form"), TOWERS)
def test_towers_agree_at_every_batch(kind: Any, form: Any) -> None:
    source = moe_source((4, 3), (3, 2))
    tower = tower_of(source, kind, experts=ExpertForm(form, ROOM[kind]))
    graph = capture(tower)
    inputs = PIXELS if kind == "image" else make_ids(8)
    want = wanted(source, kind, inputs)
    assert np.ptp(want, axis=0).max() > 0.05, "inputs make no difference"
    assert len(tower.flavours) == 2
    for flavour in tower.flavours:
        proto = ir.to_proto(write(graph, tower, flavour)[0])
        onnx.checker.check_model(proto, full_check=True)
        session = opened(proto)
        for n in (1, 3, 8):
            assert_rows(session, inputs[:n], want[:n], f"{flavour.attention} at batch {n}")
        for length in (1, 2, 7) if kind == "text" else ():
            short = make_ids(3, length)
            assert_rows(session, short, wanted(source, "text", short), f"length {length}")
        names = {tensor.name for tensor in proto.graph.initializer}
        assert {"blocks.1.mlp.experts.1.fc1.weight", "blocks.0.mlp.router.weight"} <= names


def masked_text(shape: str, form: Any) -> tuple[Any, TracedTower, Array]:
    """A source with a tower of texts, the tower in a form in which nothing overflows, and ids."""
    source = moe_source((), (3, 2), shape=shape)
    experts = ExpertForm(form, {0: (LONGEST + 1,) * 3, 1: (1, 1)})
    ids = make_ids(8)
    if shape != "coca-avg":  # there a text of nothing but padding has no vector in PyTorch either
        ids[7, :] = ids[7, -1]
    return source, tower_of(source, "text", ("decomposed",), experts=experts), ids


@pytest.mark.parametrize("shape", ["resnet", "coca-avg", "coca"])
@pytest.mark.parametrize("form", ["gather", "capacity"])
def test_texts_of_every_mask_leave_out_nothing_that_is_read(shape: str, form: Any) -> None:
    """A class token that is last, padding that is masked, and neither."""
    source, tower, ids = masked_text(shape, form)
    with torch.no_grad():
        for length in (LONGEST, 5):
            cut = ids[:, :length]
            got = tower.module(torch.from_numpy(cut))
            agree(got, torch.from_numpy(wanted(source, "text", cut)), f"length {length}")


def test_a_class_token_that_counts_as_unread_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ClassText, "live", broken(ClassText.live, "* 0 + 1", "* 0"))
    source, tower, ids = masked_text("resnet", "gather")
    with torch.no_grad():
        got = tower.module(torch.from_numpy(ids))
    assert np.abs(got.numpy() - wanted(source, "text", ids)).max() > 100 * TOLERANCE


@pytest.mark.parity
def test_a_text_with_a_class_token_is_traced_too() -> None:
    source, tower, ids = masked_text("resnet", "gather")
    session = opened(ir.to_proto(write(capture(tower), tower, tower.flavours[0])[0]))
    for length in (LONGEST, 5, 1):
        cut = np.ascontiguousarray(ids[:, :length])
        assert_rows(session, cut, wanted(source, "text", cut), f"length {length}")
