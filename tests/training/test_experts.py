"""Mixtures of experts in training: what is asked of routers, what is trained, and that a run of them is like any other."""

from __future__ import annotations

import json
import math
import socket
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from edgeclip.errors import TrainingError
from edgeclip.models.clip import Clip, TextTower
from edgeclip.models.config import ClipConfig, ImageConfig, MoeConfig, TextConfig, TransformerConfig
from edgeclip.models.feed_forward import moe_layers, recorded
from edgeclip.models.read_tokens import read_tokens
from edgeclip.models.training import Recipe, train
from edgeclip.models.training.batch import PairBatch
from edgeclip.models.training.freeze import freeze
from edgeclip.models.training.objectives import Objectives, objective
from edgeclip.models.training.routing import expert_counts, expert_use
from edgeclip.models.training.step import backward, encode_pairs, encode_routed_pairs, encoder
from tests.training.tiny import TINY, start_process, tiny

load_balance, router_z = objective("load_balance"), objective("router_z")
NONE = {"routed": torch.zeros(2, 0, 0), "probability": torch.zeros(2, 0, 0), "experts": torch.zeros(0)}


def config(image: tuple[int, ...] = (4, 0, 3), text: tuple[int, ...] = (2, 4), top_k: int = 2) -> ClipConfig:
    def blocks(experts: tuple[int, ...]) -> TransformerConfig:
        moe = MoeConfig(experts, top_k) if any(experts) else None
        return TransformerConfig(16, len(experts), 2, 32, moe=moe)

    return ClipConfig(
        embed_dim=16,
        image=ImageConfig(blocks(image), image_size=(16, 16), patch_size=8),
        text=TextConfig(blocks(text), vocab_size=300, context_length=16, eos_id=1),
    )


def mixture(sizes: ClipConfig | None = None) -> Clip:
    """Routers far enough from a tie that rounding does not turn their choice."""
    torch.manual_seed(0)
    model = Clip(sizes or config())
    for layer in moe_layers(model).values():
        torch.nn.init.normal_(layer.router.weight)
    return model


def batch(pairs: int = 8, length: int = 10, second: bool = False) -> PairBatch:
    """Text i ends at position i + 1; padding behind."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(2, pairs, 3, 16, 16, generator=generator)
    ids = torch.randint(3, 300, (pairs, length), generator=generator)
    places = torch.arange(length)
    ends = torch.arange(pairs)[:, None] + 1
    ids = torch.where(places < ends, ids, torch.where(places == ends, 1, 0))
    return PairBatch(pixels[0], ids, torch.arange(pairs), pixels[1] if second else None)


def asked(loss: Callable[..., Tensor], image: dict[str, Tensor], text: dict[str, Tensor]) -> float:
    features = {
        f"{tower}_{name}": x for tower, own in (("image", image), ("text", text)) for name, x in own.items()
    }
    return loss(**features).item()


def test_even_use_costs_k_and_collapse_costs_e() -> None:
    tokens = torch.tensor([3, 5])
    none = {**NONE, "tokens": tokens}
    even = {  # 8 tokens, each takes 2 of 4: 4 to each expert; probabilities of 1/4
        "routed": torch.tensor([[[2, 2, 1, 1]], [[2, 2, 3, 3]]]),
        "probability": torch.tensor([[[0.75] * 4], [[1.25] * 4]]),
        "tokens": tokens,
        "experts": torch.tensor([4]),
    }
    assert asked(load_balance, even, none) == pytest.approx(2)
    assert asked(load_balance, none, even) == pytest.approx(1)  # of texts the half
    assert asked(load_balance, even, even) == pytest.approx(3)
    # Four mixtures, each all on another expert: pooled first, use would look even and cost 1.
    all_on_one = {
        "routed": torch.eye(4, dtype=torch.int64) * tokens[:, None, None],
        "probability": torch.eye(4) * tokens[:, None, None],
        "tokens": tokens,
        "experts": torch.tensor([4, 4, 4, 4]),
    }
    assert asked(load_balance, all_on_one, none) == pytest.approx(4)


def test_a_mixture_of_fewer_experts_is_weighed_by_its_own() -> None:
    # 4 and 2 experts, one taken of each, both even: (1 + 1) / 2. With E = 4 for both it would be 1.5.
    tower = {
        "routed": torch.tensor([[[1, 1, 1, 1], [2, 2, 0, 0]]]),
        "probability": torch.tensor([[[1.0, 1, 1, 1], [2, 2, 0, 0]]]),
        "tokens": torch.tensor([4]),
        "experts": torch.tensor([4, 2]),
    }
    none = {name: x[:1] for name, x in NONE.items()} | {"tokens": torch.tensor([3])}
    assert asked(load_balance, tower, none) == pytest.approx(1)


def test_router_z_by_hand() -> None:
    # Two mixtures: sums over 2 + 1 tokens of z^2 are 4 + 2 and 9 + 3: means 2 and 4. Texts: 10 over 5 tokens, half of 2.
    image = {"router_z": torch.tensor([[4.0, 9.0], [2.0, 3.0]]), "tokens": torch.tensor([2, 1])}
    text = {"router_z": torch.tensor([[10.0], [0.0]]), "tokens": torch.tensor([4, 1])}
    none = {"router_z": torch.zeros(2, 0), "tokens": torch.tensor([4, 1])}
    assert asked(router_z, image, none) == pytest.approx(3)
    assert asked(router_z, image, text) == pytest.approx(4)
    model = mixture()
    for layer in moe_layers(model).values():
        torch.nn.init.zeros_(layer.router.weight)
    found = encode_routed_pairs(model, batch())
    want = (math.log(4) ** 2 + math.log(3) ** 2) / 2 + (math.log(2) ** 2 + math.log(4) ** 2) / 4
    assert Objectives((("router_z", 1.0),))(found)[0].item() == pytest.approx(want, rel=1e-5)


def test_shapes_that_do_not_fit_are_refused() -> None:
    tower = {**NONE, "tokens": torch.tensor([3, 5])}
    with pytest.raises(ValueError, match="want mixtures in at least one tower"):
        asked(load_balance, tower, tower)
    with pytest.raises(ValueError, match=r"want \(B, R, E\).*got \(2, 1, 4\), \(2, 0, 0\)"):
        asked(load_balance, {**tower, "routed": torch.zeros(2, 1, 4)}, tower)
    z = {"router_z": torch.zeros(2, 0), "tokens": torch.tensor([4, 1])}
    with pytest.raises(ValueError, match="want mixtures in at least one tower"):
        asked(router_z, z, z)
    with pytest.raises(ValueError, match=r"want \(B, R\) and \(B,\), got \(2, 0\) and \(1,\)"):
        asked(router_z, z, {**z, "tokens": torch.tensor([4])})


def test_features_are_what_the_routers_said() -> None:
    model, pairs = mixture(), batch()
    found = encode_routed_pairs(model, pairs)
    plain = encode_pairs(model, pairs)
    assert all(torch.equal(found[name], value) for name, value in plain.items())
    assert {name: tuple(x.shape) for name, x in found.items() if name not in plain} == {
        "image_routed": (8, 2, 4),
        "image_probability": (8, 2, 4),
        "image_router_z": (8, 2),
        "image_tokens": (8,),
        "text_routed": (8, 2, 4),
        "text_probability": (8, 2, 4),
        "text_router_z": (8, 2),
        "text_tokens": (8,),
    }
    assert found["image_tokens"].tolist() == [5] * 8
    assert found["text_tokens"].tolist() == [2, 3, 4, 5, 6, 7, 8, 9]
    for tower in ("image", "text"):
        tokens = found[f"{tower}_tokens"][:, None].expand(-1, 2)
        assert torch.equal(found[f"{tower}_routed"].sum(dim=-1), 2 * tokens)
        torch.testing.assert_close(found[f"{tower}_probability"].sum(dim=-1), tokens.float())
    assert not found["image_routed"][:, 1, 3].any()  # the second mixture has three experts
    assert not found["text_probability"][:, 0, 2:].any()
    assert {name: x.tolist() for name, x in expert_counts(model).items()} == {
        "image_experts": [4, 3],
        "text_experts": [2, 4],
    }
    # Text 3 has 5 tokens: what its routers say by itself, without padding, is what it adds.
    with recorded(model) as recorder:
        model.encode_text(pairs.input_ids[3:4, :5])
    torch.testing.assert_close(
        found["text_router_z"][3], torch.stack([x.logsumexp(-1).square().sum() for x in recorder.logits])
    )
    torch.testing.assert_close(
        found["text_probability"][3, 1], recorder.logits[1].softmax(-1).sum(dim=(0, 1))
    )


def test_padding_changes_nothing() -> None:
    model, pairs = mixture(), batch()
    longer = replace(pairs, input_ids=F.pad(pairs.input_ids, (0, 6)))
    short, long = encode_routed_pairs(model, pairs), encode_routed_pairs(model, longer)
    for name, value in short.items():
        torch.testing.assert_close(long[name], value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "want"),
    [
        ({}, [1, 1, 1, 0, 0]),  # up to the end that is pooled, though ids follow that are no padding
        ({"pool": "last"}, [1, 1, 1, 1, 1]),
        ({"causal": False}, [1, 1, 1, 1, 1]),  # padding is attended to
        ({"causal": False, "mask_padding": True}, [1, 1, 1, 0, 1]),
        ({"pool": "class"}, [1, 1, 1, 1, 0, 1, 0, 0, 1]),  # padding is hidden one position late
    ],
)
def test_which_tokens_of_a_text_count(changes: dict[str, Any], want: list[int]) -> None:
    sizes = TextConfig(TransformerConfig(16, 1, 2, 32), vocab_size=300, context_length=8, eos_id=1)
    tower = TextTower(replace(sizes, **changes), 16)
    ids = torch.tensor([[5, 6, 1, 0, 7]])
    assert read_tokens(tower, ids).int().tolist() == [want]


def test_the_second_view_counts_too() -> None:
    model = mixture()
    one, two = encode_routed_pairs(model, batch()), encode_routed_pairs(model, batch(second=True))
    assert torch.equal(two["image_tokens"], 2 * one["image_tokens"])
    assert torch.equal(two["image_routed"].sum(dim=-1), 2 * one["image_routed"].sum(dim=-1))
    assert not torch.equal(two["image_routed"], 2 * one["image_routed"])
    assert torch.equal(two["text_routed"], one["text_routed"])


ROUTED = (("info_nce", 1.0), ("load_balance", 3.0), ("router_z", 0.5))


@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulating_gives_the_whole_batchs_gradient(accumulate: int) -> None:
    found = []
    for parts in (1, accumulate):
        model = mixture(config(text=(0, 0))).train()
        loss, terms = backward(
            model, batch(), encode_routed_pairs, Objectives(ROUTED), nullcontext, seed=5, accumulate=parts
        )
        found.append((loss, terms, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    (loss, terms, whole), (same_loss, same_terms, parts_sum) = found
    assert list(terms) == ["info_nce", "load_balance", "router_z", "expert_use_max", "expert_use_min"]
    torch.testing.assert_close(same_loss, loss)
    torch.testing.assert_close(same_terms, terms)
    assert parts_sum.keys() == whole.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(parts_sum[name], gradient, rtol=1e-4, atol=1e-6)
    routers = [gradient for name, gradient in whole.items() if "router" in name]
    assert min(gradient.abs().max().item() for gradient in routers) > 0.01
    # The mean of the parts' own balances, which is what one gets without sums, is another number.
    part_terms = [Objectives(ROUTED[1:2])(_features(model, part))[0] for part in batch().split(accumulate)]
    assert abs(sum(float(x.detach()) for x in part_terms) / accumulate - float(terms["load_balance"])) > 1e-3


def _features(model: Clip, part: PairBatch) -> dict[str, Tensor]:
    return {**encode_routed_pairs(model, part), **expert_counts(model)}


@pytest.mark.parametrize(("name", "least"), [("load_balance", 3.0), ("router_z", 0.0)])
def test_routers_learn_what_is_asked_of_them(name: str, least: float) -> None:
    model, objectives = mixture(), Objectives(((name, 1.0),))
    routers = [layer.router.weight for layer in moe_layers(model).values()]
    values = []
    for _ in range(30):
        model.zero_grad()
        loss, _ = backward(model, batch(), encode_routed_pairs, objectives, nullcontext, seed=0)
        values.append(loss.item())
        with torch.no_grad():
            for router in routers:
                assert router.grad is not None
                router -= router.grad
    assert values[-1] - least < 0.5 * (values[0] - least)


def test_use_of_the_busiest_and_the_idlest() -> None:
    features = {
        "image_routed": torch.tensor([[[1, 2, 1], [3, 1, 0]], [[4, 1, 3], [5, 3, 0]]]),
        "image_tokens": torch.tensor([2, 4]),
        "image_experts": torch.tensor([3, 2]),
        **{f"text_{name}": x for name, x in NONE.items()},
        "text_tokens": torch.tensor([3, 3]),
    }
    # of 6 tokens: 5, 3, 4 and 8, 4; the 0 of an expert that is not there is not the idlest's
    assert {name: x.item() for name, x in expert_use(features).items()} == pytest.approx(
        {"expert_use_max": 8 / 6, "expert_use_min": 3 / 6}
    )


def test_routers_are_recorded_only_where_they_are_asked() -> None:
    assert encoder("pairs", {"image", "text", "scale"}) is encode_pairs
    assert encoder("pairs", Objectives(ROUTED).wanted) is encode_routed_pairs
    with pytest.raises(
        TrainingError, match=r"load_balance asks for .*Only encode=pairs tells what routers say"
    ):
        Objectives(ROUTED)(encode_pairs(mixture(), batch()) | {"scale": torch.tensor(1.0)})


def test_the_router_stays_in_float32_under_autocast() -> None:
    model = mixture()
    with torch.autocast("cpu", torch.bfloat16), recorded(model) as recorder:
        model.encode_image(batch().pixels)
    for logits in recorder.logits:
        assert logits.dtype == torch.float32
        assert not torch.equal(logits, logits.bfloat16().float())


MIXED = tiny(
    clip=config(),
    steps=4,
    checkpoint_every=2,
    validation_share=0.0,
    objectives=ROUTED,
    expert_dropout=0.3,
)


def weights(output: Path) -> dict[str, Tensor]:
    return load_file(output / "model" / "model.safetensors")


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("changes", [{"ema_decay": 0.9}, {"optimizer": "muon", "accumulate": 2}])
def test_resumed_is_the_whole_run(tmp_path: Path, changes: dict[str, Any]) -> None:
    recipe = replace(MIXED, **changes)
    train(recipe, tmp_path, progress=False)
    whole = weights(tmp_path)
    (tmp_path / "checkpoints/latest").write_text("step-00000002\n")
    train(recipe, tmp_path, progress=False)
    assert same(weights(tmp_path), whole)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    for record in records:
        want = record["info_nce"] + 3 * record["load_balance"] + 0.5 * record["router_z"]
        assert record["loss"] == pytest.approx(want, rel=1e-5)
        assert 0 <= record["expert_use_min"] < record["expert_use_max"] <= 1


def test_dropout_is_of_the_experts_and_of_training_alone(tmp_path: Path) -> None:
    train(replace(MIXED, steps=2), tmp_path / "with", progress=False)
    train(replace(MIXED, steps=2, expert_dropout=0.0), tmp_path / "without", progress=False)
    assert not same(weights(tmp_path / "with"), weights(tmp_path / "without"))
    with pytest.raises(TrainingError, match=r"expert_dropout: set to 0\.1, but nothing in this run reads it"):
        train(tiny(expert_dropout=0.1), tmp_path / "dense", progress=False)


def test_a_model_without_mixtures_has_no_routers(tmp_path: Path) -> None:
    recipe = tiny(objectives=ROUTED, validation_share=0.0)
    with pytest.raises(TrainingError, match=r"this model has none\. Set model=upcycled") as raised:
        train(recipe, tmp_path, progress=False)
    assert "\n" not in str(raised.value)


def test_upcycled_from_a_trained_model_in_bf16(tmp_path: Path) -> None:
    dense = train(tiny(steps=4), tmp_path / "dense", progress=False)
    recipe = tiny(
        model="upcycled",
        init_from=str(dense.model),
        clip=None,
        experts=3,
        top_k=2,
        expert_towers=("image",),
        objectives=(("info_nce", 1.0), ("load_balance", 0.01)),
        steps=2,
        warmup_steps=1,
        precision="bf16",
        trained=("*.router.weight", "*.experts.1.*"),
    )
    result = train(recipe, tmp_path / "mixed", progress=False)
    before, after = weights(tmp_path / "dense"), load_file(result.model / "model.safetensors")
    lines = (tmp_path / "mixed/metrics.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    assert first["step"] == 0
    assert first["score"] == dense.best_score or dense.best_step != 4  # equal experts change nothing
    old = "image.blocks.0.mlp."
    changed = {
        name for name, value in after.items() if not torch.equal(value, before.get(_dense_name(name), value))
    }
    assert changed == {
        f"{old}experts.1.{part}" for part in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")
    }
    assert f"{old}router.weight" in after
    assert torch.equal(after["logit_scale"], before["logit_scale"])


def _dense_name(name: str) -> str:
    head, found, tail = name.partition(".experts.")
    return f"{head}.{tail.partition('.')[2]}" if found else name


def test_a_held_scale_is_held_to_the_bit(tmp_path: Path) -> None:
    # Stages must equal their base in all that they do not train, and OpenAI's scale is a hair above 100.
    recipe = tiny(steps=1, warmup_steps=0, max_scale=5.0, trained=("*.mlp.*",))
    train(recipe, tmp_path, progress=False)
    assert weights(tmp_path)["logit_scale"].item() == pytest.approx(math.log(1 / 0.07))


def trained_names(recipe: Recipe) -> set[str]:
    model = Clip(config())
    freeze(model, recipe)
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_only_what_matches_is_trained() -> None:
    every = trained_names(TINY)
    routers = trained_names(tiny(trained=("*.router.weight",)))
    assert len(routers) == 4
    assert trained_names(tiny(trained=("image.*.mlp.*", "*.router.weight"))) == routers | {
        name for name in every if name.startswith("image.") and ".mlp." in name
    }
    of_texts = trained_names(tiny(trained=("*.router.weight",), frozen=("image",)))
    assert of_texts == {name for name in routers if name.startswith("text.")}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"trained": ("*.routers.*",)},
            r"trained: no parameter's name matches '\*\.routers\.\*'\. They are like",
        ),
        ({"trained": ("image.*",), "frozen": ("image",)}, "nothing is left to be trained"),
    ],
)
def test_patterns_that_train_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        trained_names(tiny(**settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"experts": 1, "top_k": 1}, "experts: expected 2 or more, got 1"),
        ({"top_k": 5}, "top_k: expected 1 to experts 4, got 5"),
        ({"expert_layers": -1}, "expert_layers: expected 0 or more"),
        ({"expert_towers": ("image", "image")}, "expert_towers: expected image, text or both"),
        ({"expert_towers": ()}, "expert_towers: expected image, text or both"),
        ({"expert_dropout": 1.0}, "expert_dropout: expected 0 to below 1"),
        ({"label_smoothing": 1.0}, "label_smoothing: expected 0 to below 1"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        tiny(**settings)


def test_label_smoothing_by_hand(tmp_path: Path) -> None:
    # cosines [[1, 0.6], [0, 0.8]], scale 5. Of smoothing 0.2 a target is 0.9 and 0.1: 0.1 of each margin besides.
    image, text = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    margins = (2, 4, 5, 1)
    want = sum(math.log(1 + math.exp(-x)) + 0.1 * x for x in margins) / 4
    features = {"image": image, "text": text, "scale": torch.tensor(5.0)}
    smooth = Objectives.of(tiny(label_smoothing=0.2))
    assert smooth(features)[0].item() == pytest.approx(want, rel=1e-6)
    assert Objectives.of(TINY)(features)[0].item() == pytest.approx(want - 0.1 * sum(margins) / 4, rel=1e-6)
    with pytest.raises(
        TrainingError, match=r"label_smoothing: set to 0\.2, but nothing in this run reads it"
    ):
        train(
            tiny(label_smoothing=0.2, objectives=(("multi_positive", 1.0),), validation_share=0.0),
            tmp_path,
            progress=False,
        )


TRAIN = """
import sys
from pathlib import Path
from dataclasses import replace
from edgeclip.models.training import train
from tests.training.test_experts import MIXED, config
train(replace(MIXED, clip=config(text=(0, 0)), expert_dropout=0.0, steps=3, accumulate=2), Path(sys.argv[1]), progress=False)
"""


@pytest.mark.parity
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    recipe = replace(MIXED, clip=config(text=(0, 0)), expert_dropout=0.0, steps=3)
    train(recipe, tmp_path / "one", progress=False)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    where = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    both = [
        start_process(TRAIN, str(tmp_path / "two"), RANK=str(r), LOCAL_RANK=str(r), **where) for r in (0, 1)
    ]
    for process in both:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    # Adam divides by the gradient's own size, so float32 noise in near-zero gradients shows; rates are 1e-2.
    assert max((one[name] - two[name]).abs().max().item() for name in one) < 1e-4
