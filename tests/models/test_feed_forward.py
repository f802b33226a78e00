"""Mixtures of experts against what they must equal: the dense layer, the whole mixture, transformers' Mixtral block."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import tests.torchvision_shim  # noqa: F401  (before transformers)
from edgeclip.models.clip import Block, Clip
from edgeclip.models.config import ClipConfig, ImageConfig, MoeConfig, TextConfig, TransformerConfig
from edgeclip.models.feed_forward import Mlp, MoeMlp, chosen, feed_forward, gates, moe_layers, recorded

WIDTH, HIDDEN = 16, 40


def mixture(experts: int = 4, top_k: int = 2, activation: str = "gelu") -> MoeMlp:
    """A layer with random weights, its routers' logits some units apart."""
    torch.manual_seed(0)
    layer = MoeMlp(WIDTH, HIDDEN, activation, experts, top_k).eval()
    with torch.no_grad():
        layer.router.weight.mul_(8)
    return layer


def tokens(n: int = 3, t: int = 7) -> Tensor:
    return torch.randn(n, t, WIDTH, generator=torch.Generator().manual_seed(1))


def same(got: Tensor, want: Tensor, atol: float = 1e-6) -> None:
    """Outputs are 0.2 in size; noise is 1e-7."""
    torch.testing.assert_close(got, want, rtol=0, atol=atol)


@pytest.mark.parametrize("top_k", [1, 2, 4])
@pytest.mark.parametrize("activation", ["gelu", "quick_gelu", "gelu_tanh"])
def test_equal_experts_are_the_dense_layer_for_any_router(top_k: int, activation: str) -> None:
    layer, x = mixture(4, top_k, activation), tokens()
    for expert in layer.experts[1:]:
        expert.load_state_dict(layer.experts[0].state_dict())
    same(layer(x), layer.experts[0](x))


def test_a_router_forced_to_one_expert_is_that_expert() -> None:
    layer, x = mixture(top_k=1), tokens().abs()
    with torch.no_grad():
        layer.router.weight.zero_()
        layer.router.weight[0] = 1
    same(layer(x), layer.experts[0](x))
    with torch.no_grad():
        layer.router.weight.neg_()  # now the least likely: ties of the others go to the lowest of them
    same(layer(x), layer.experts[1](x))


def test_experts_may_stand_in_any_order() -> None:
    layer, x, order = mixture(), tokens(), [2, 0, 3, 1]
    moved = copy.deepcopy(layer)
    moved.experts = torch.nn.ModuleList(layer.experts[i] for i in order)
    moved.router.weight = torch.nn.Parameter(layer.router.weight[order])
    same(moved(x), layer(x))
    moved.router.weight = layer.router.weight
    assert (moved(x) - layer(x)).abs().max() > 0.01  # a router that did not move along is seen


def test_every_expert_is_the_whole_mixture() -> None:
    layer, x = mixture(3, 3), tokens()
    shares = (x @ layer.router.weight.T).softmax(dim=-1)
    same(layer(x), torch.einsum("nte,ntew->ntw", shares, torch.stack([e(x) for e in layer.experts], dim=2)))


def test_more_than_every_expert_is_every_expert() -> None:
    assert mixture(2, 7).top_k == 2
    same(mixture(2, 7)(tokens()), mixture(2, 2)(tokens()))


def test_shares_are_the_renormalised_best_of_the_softmax() -> None:
    logits = torch.randn(50, 6, generator=torch.Generator().manual_seed(2)) * 3
    best, places = logits.softmax(dim=-1).topk(3)
    want = torch.zeros(50, 6).scatter(1, places, best / best.sum(dim=-1, keepdim=True))
    same(gates(logits, 3), want, 2e-7)
    assert gates(logits.half(), 3).dtype == torch.float32


@pytest.mark.parametrize(
    ("logits", "k", "places"),
    [
        ([1.0, 1.0, 1.0, 1.0], 2, [0, 1]),
        ([0.0, 2.0, 2.0, 2.0], 2, [1, 2]),
        ([2.0, 0.0, 1.0, 1.0], 2, [0, 2]),
        ([-1.0, -0.0, 0.0, -1.0], 1, [1]),
        ([3.0, 2.0, 1.0, 0.0], 4, [0, 1, 2, 3]),
        ([float("inf"), 0.0, float("inf"), 0.0], 1, [0]),
    ],
)
def test_of_equal_logits_the_lower_index_is_chosen(logits: list[float], k: int, places: list[int]) -> None:
    assert torch.nonzero(chosen(torch.tensor(logits), k))[:, 0].tolist() == places


def test_a_token_by_itself_is_routed_as_in_a_batch() -> None:
    layer, x = mixture(), tokens()
    whole = layer(x)
    same(layer(x[1:2, 3:4]), whole[1:2, 3:4])
    same(layer(x[2, 5]), whole[2, 5])
    assert layer(x[:0]).shape == (0, 7, WIDTH)


def test_damaged_tokens_are_not_hidden() -> None:
    layer, x = mixture(), tokens()
    x[0, 0, 0] = float("nan")
    assert layer(x)[0, 0].isnan().all()
    assert layer(x)[0, 1:].isfinite().all()


def test_the_router_stays_in_float32_under_autocast() -> None:
    layer, x = mixture(), tokens(64, 64)
    logits = layer.logits(x)
    with torch.autocast("cpu", torch.bfloat16):
        got = layer(x)
        assert layer.logits(x).dtype == torch.float32
        same(layer.logits(x), logits, 0)
    # in bfloat16 some tokens would take other experts, which moves them by 0.1 and more
    rounded = chosen((x.bfloat16() @ layer.router.weight.bfloat16().T).float(), 2)
    assert (rounded != chosen(logits, 2)).any()
    same(got.float(), layer(x), 0.02)


def test_half_precision_weights_route_in_float32() -> None:
    layer, x = mixture().bfloat16(), tokens().bfloat16()
    assert layer.logits(x).dtype == torch.float32
    assert layer(x).dtype == torch.bfloat16


def test_gradients_reach_what_was_chosen_and_nothing_else() -> None:
    layer, x = mixture(4, 2), tokens(1, 1).requires_grad_(True)
    used = chosen(layer.logits(x), 2)[0, 0]
    layer.train()(x).square().sum().backward()
    for taken, expert in zip(used.tolist(), layer.experts, strict=True):
        size = sum(float(p.grad.abs().sum()) for p in expert.parameters() if p.grad is not None)
        assert (size > 0) == taken
    assert layer.router.weight.grad is not None
    assert (layer.router.weight.grad.abs().sum(dim=1) > 0).tolist() == used.tolist()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_gradients_are_those_of_the_formula() -> None:
    """By finite differences, in float64 but for the router, away from where tokens change their experts."""
    layer, x = mixture(3, 2).double(), tokens(1, 2).double()
    weight, step = layer.experts[0].fc1.weight, 1e-6
    (grad,) = torch.autograd.grad(layer(x).sin().sum(), weight)
    place = divmod(int(grad.abs().argmax()), WIDTH)
    with torch.no_grad():
        values = []
        for sign in (1, -1):
            weight[place] += sign * step
            values.append(float(layer(x).sin().sum()))
            weight[place] -= sign * step
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(float(grad[place]), rel=1e-4)


def test_dropout_is_of_training_alone() -> None:
    layer, x = mixture(), tokens()
    whole = layer(x)
    layer.dropout = 0.5
    same(layer(x), whole)
    assert (layer.train()(x) - whole).abs().max() > 0.01
    layer.dropout = 0.0
    same(layer(x), whole)


def test_mixtral_of_transformers_says_the_same() -> None:
    """Its experts are gated and without biases: a feature that is always 1 gives them the biases and opens the gates."""
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    layer, x = mixture(4, 2), tokens(2, 9)
    config = MixtralConfig(
        hidden_size=WIDTH + 1, intermediate_size=HIDDEN + 1, num_local_experts=4, num_experts_per_tok=2, hidden_act="gelu",
        num_attention_heads=1, num_key_value_heads=1, num_hidden_layers=1,
    )  # fmt: skip
    config._experts_implementation = "eager"
    theirs = MixtralSparseMoeBlock(config).eval()
    with torch.no_grad():
        theirs.gate.weight.copy_(F.pad(layer.router.weight, (0, 1)))
        gate, up = theirs.experts.gate_up_proj.zero_().chunk(2, dim=1)
        up[:, :, -1] = 1
        theirs.experts.down_proj.zero_()
        for e, expert in enumerate(layer.experts):
            assert isinstance(expert, Mlp)
            gate[e, :-1] = torch.cat([expert.fc1.weight, expert.fc1.bias[:, None]], dim=1)
            gate[e, -1, -1] = 1  # a hidden unit of gelu(1), for the second bias
            theirs.experts.down_proj[e, :-1] = torch.cat(
                [expert.fc2.weight, expert.fc2.bias[:, None] / F.gelu(torch.ones(()))], dim=1
            )
        want = theirs(F.pad(x, (0, 1), value=1.0))[..., :-1]
        same(layer(x), want)
        layer.top_k = 1
        assert (layer(x) - want).abs().max() > 0.01


def _clip(image: tuple[int, ...] | None, text: tuple[int, ...] | None) -> Clip:
    def blocks(experts: tuple[int, ...] | None) -> TransformerConfig:
        return TransformerConfig(32, 2, 2, 64, moe=experts and MoeConfig(experts, 2))

    torch.manual_seed(0)
    return Clip(
        ClipConfig(16, ImageConfig(blocks(image), (32, 32), 16), TextConfig(blocks(text), 50, 9))
    ).eval()


def test_a_stack_has_mixtures_where_its_config_says() -> None:
    model = _clip((0, 3), (4, 2))
    layers = moe_layers(model)
    assert {name: len(layer.experts) for name, layer in layers.items()} == {
        "image.blocks.1.mlp": 3,
        "text.blocks.0.mlp": 4,
        "text.blocks.1.mlp": 2,
    }
    assert not moe_layers(_clip(None, None))
    config = TransformerConfig(32, 2, 2, 64, moe=MoeConfig((0, 3), 5))
    assert isinstance(feed_forward(config, 0), Mlp)
    assert isinstance(Block(config, 1).mlp, MoeMlp)


def test_equal_experts_are_the_dense_model() -> None:
    dense, sparse = _clip(None, None), _clip((3, 3), (2, 0))
    state = dict(dense.state_dict())
    for name in sparse.state_dict():
        head, found, tail = name.partition(".mlp.experts.")
        if found:
            state[name] = state[f"{head}.mlp.{tail.partition('.')[2]}"]
        elif name not in state:
            state[name] = torch.randn(sparse.state_dict()[name].shape)
    sparse.load_state_dict({name: state[name] for name in sparse.state_dict()})
    pixels, ids = torch.randn(2, 3, 32, 32), torch.randint(0, 50, (3, 9))
    with torch.no_grad():
        same(sparse.encode_image(pixels), dense.encode_image(pixels), 2e-6)
        same(sparse.encode_text(ids), dense.encode_text(ids), 2e-6)


def test_what_routers_say_is_recorded_in_order_of_calls() -> None:
    model = _clip((2, 3), (0, 4))
    with torch.no_grad(), recorded(model) as heard:
        model.encode_text(torch.zeros(1, 9, dtype=torch.long))
        model.encode_image(torch.randn(2, 3, 32, 32))
        model.encode_image(torch.randn(1, 3, 32, 32))
    assert [tuple(shares.shape) for shares in heard.shares] == [
        (1, 9, 4),
        (2, 5, 2),
        (2, 5, 3),
        (1, 5, 2),
        (1, 5, 3),
    ]
    layers = moe_layers(model)
    assert heard.layers[:2] == [layers["text.blocks.1.mlp"], layers["image.blocks.0.mlp"]]
    for layer, logits, shares in zip(heard.layers, heard.logits, heard.shares, strict=True):
        same(shares, gates(logits, layer.top_k), 0)
        assert ((shares > 0).sum(dim=-1) == 2).all()


def test_recording_nests_and_ends_even_by_an_error() -> None:
    model = _clip((2, 2), (2, 2))
    pixels = torch.randn(1, 3, 32, 32)
    layers = moe_layers(model).values()

    def run(inside: Callable[[], None]) -> None:
        with recorded(model.image):  # type: ignore[arg-type]
            model.encode_image(pixels)
            inside()

    def fail() -> None:
        raise RuntimeError("as planned")

    with torch.no_grad(), recorded(model) as outer:
        model.encode_image(pixels)
        with pytest.raises(RuntimeError, match="as planned"):
            run(fail)
        run(lambda: None)
        model.encode_image(pixels)
        assert len(outer.shares) == 8
        with recorded(model) as inner:
            pass
        assert not inner.shares
    assert all(layer.recorder is None for layer in layers)
    model.encode_image(pixels)
    assert len(outer.shares) == 8


@pytest.mark.parametrize(
    ("experts", "top_k"),
    [
        ((), 2),
        ((0, 0), 2),
        ((1, 0), 2),
        ((-2, 0), 2),
        ((4, 65), 2),
        ((4, 0), 0),
        ((4, 0), 65),
        ((4, 10**9), 1),
    ],
)
def test_counts_of_no_use_are_refused(experts: tuple[int, ...], top_k: int) -> None:
    with pytest.raises(ValueError, match=r"experts: expected 0 or 2-64 for each block, .*top_k of 1-64"):
        MoeConfig(experts, top_k)


def test_a_stack_of_another_depth_is_refused() -> None:
    with pytest.raises(ValueError, match="experts: 3 blocks are named, the stack has 2"):
        TransformerConfig(32, 2, 2, 64, moe=MoeConfig((0, 2, 2)))


def test_how_many_experts_a_token_takes_is_part_of_what_an_embedding_means() -> None:
    blocks = TransformerConfig(16, 1, 2, 32, moe=MoeConfig((3,), 2))
    plain = replace(blocks, moe=None)
    image, text = (
        ImageConfig(blocks, (16, 16), 8),
        TextConfig(plain, vocab_size=300, context_length=16, eos_id=1),
    )
    both = ClipConfig(8, image, text)
    one = replace(both, image=replace(image, blocks=replace(blocks, moe=MoeConfig((3,), 1))))
    assert (both.pooling, one.pooling) == ("cls/eos top 2/0", "cls/eos top 1/0")
    assert replace(both, image=replace(image, blocks=plain)).pooling == "cls/eos"
