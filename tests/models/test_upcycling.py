"""A mixture made of a dense model is that model until it is trained, and one made of several trainings holds each in its place."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from edgeclip.errors import EdgeClipError, InputError, SourceError
from edgeclip.models.clip import Clip
from edgeclip.models.config import ClipConfig, ImageConfig, TextConfig, TransformerConfig
from edgeclip.models.feed_forward import moe_layers
from edgeclip.models.nano import NanoCLIP, NanoConfig
from edgeclip.models.pooled_vit import PooledVitConfig
from edgeclip.models.source import Source
from edgeclip.models.sources import load_source
from edgeclip.models.training.checkpoint import write_source
from edgeclip.models.training.freeze import freeze
from edgeclip.models.training.starts import from_scratch
from edgeclip.models.upcycling import assembled, feed_forwards, upcycled
from tests.training.tiny import tiny

CONFIG = ClipConfig(
    embed_dim=8,
    image=ImageConfig(TransformerConfig(16, 3, 2, 32), image_size=(16, 16), patch_size=8),
    text=TextConfig(TransformerConfig(16, 2, 2, 32), vocab_size=300, context_length=8, eos_id=1),
)


@pytest.fixture(scope="module")
def base() -> Source:
    torch.manual_seed(0)
    source = from_scratch(tiny(clip=CONFIG))
    return replace(source, spec="base", digest="b", model=source.model.requires_grad_(False).eval())


def stage(base: Source, number: int, *parts: str) -> Source:
    """The base with other values of the tensors whose names hold one of `parts`."""
    model = Clip(base.model.config)
    model.load_state_dict(
        {
            name: value + number * any(part in name for part in parts or (".mlp.",))
            for name, value in base.model.state_dict().items()
        }
    )
    return replace(base, spec=f"stage{number}", digest=str(number), model=model.requires_grad_(False).eval())


def embeddings(source: Source) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 300, (4, 8), generator=generator)
    ids[:, 5] = 1
    model = source.model
    return [model.encode_image(torch.randn(4, 3, 16, 16, generator=generator)), model.encode_text(ids)]


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_equal_experts_are_the_dense_model(base: Source, top_k: int) -> None:
    made = upcycled(base, experts=3, top_k=top_k)
    assert [(layer.top_k, len(layer.experts)) for layer in moe_layers(made.model).values()] == [
        (top_k, 3)
    ] * 5
    for dense, sparse in zip(embeddings(base), embeddings(made), strict=True):
        # Shares of 1 are exact; those of several sum to 1 within rounding: measured 5e-7 on values up to 3.
        torch.testing.assert_close(sparse, dense, rtol=0, atol=2e-6)


def test_experts_and_base_are_apart(base: Source) -> None:
    # Experts that shared memory would be trained as one, and training one model would change the other.
    made = upcycled(base, experts=2, top_k=1)
    tensors = [*made.model.state_dict().values(), *base.model.state_dict().values()]
    assert len({tensor.data_ptr() for tensor in tensors}) == len(tensors)
    assert not made.model.training


def test_last_blocks_are_capped_at_a_towers_depth(base: Source) -> None:
    made = upcycled(base, experts=2, top_k=2, last_blocks=2, towers=("text", "image"))
    assert list(moe_layers(made.model)) == [
        "image.blocks.1.mlp",
        "image.blocks.2.mlp",
        "text.blocks.0.mlp",
        "text.blocks.1.mlp",
    ]
    assert made.model.config.image.blocks.moe.experts == (0, 2, 2)
    everywhere = upcycled(base, experts=2, top_k=2, last_blocks=9, towers=("image",))
    assert list(moe_layers(everywhere.model)) == [f"image.blocks.{i}.mlp" for i in range(3)]


def test_the_seed_decides_the_routers(base: Source) -> None:
    def routers(seed: int) -> Tensor:
        layers = moe_layers(upcycled(base, experts=4, top_k=2, seed=seed).model).values()
        return torch.stack([layer.router.weight for layer in layers])

    torch.manual_seed(5)
    first = routers(3)
    assert torch.equal(first, routers(3))  # whatever was drawn before
    assert not torch.equal(first, routers(4))
    assert not torch.equal(first[0], first[1])
    assert first.std().item() == pytest.approx(0.02, rel=0.2)


def test_every_stage_is_in_its_place(base: Source, tmp_path: Path) -> None:
    stages = [stage(base, 1), stage(base, 2)]
    made = assembled(base, stages, top_k=1)
    assert len(moe_layers(made.model)) == 5
    for name, layer in moe_layers(made.model).items():
        for expert, source in zip(layer.experts, [base, *stages], strict=True):
            wanted = source.model.get_submodule(name).state_dict()
            assert all(torch.equal(value, wanted[key]) for key, value in expert.state_dict().items())
    # A router whose best expert is always the same is that stage's model: the whole of it, not only the parts.
    for number, source in enumerate([base, *stages]):
        for layer in moe_layers(made.model).values():
            layer.router.weight.zero_()
            one = torch.nn.Linear(16, 3)
            one.weight.data.zero_()
            one.bias.data.copy_(torch.eye(3)[number])
            layer.logits = lambda x, one=one: one(x)  # type: ignore[method-assign]
        for dense, sparse in zip(embeddings(source), embeddings(made), strict=True):
            torch.testing.assert_close(sparse, dense, rtol=0, atol=1e-6)
    digests = {made.digest, upcycled(base, experts=3, top_k=1).digest, base.digest}
    assert len(digests) == 3  # what a bundle is told apart by
    write_source(tmp_path / "model", made)
    again = load_source(str(tmp_path / "model"))
    assert again.model.config == made.model.config
    assert all(
        torch.equal(value, again.model.state_dict()[key]) for key, value in made.model.state_dict().items()
    )


def test_a_stage_is_trained_by_the_patterns(base: Source) -> None:
    patterns = feed_forwards(base.model, 1)
    assert patterns == ("image.blocks.2.mlp.*", "text.blocks.1.mlp.*")
    model = Clip(base.model.config)
    freeze(model, tiny(trained=patterns))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(trained) == 8
    assert all(re.match(r"image\.blocks\.2\.mlp|text\.blocks\.1\.mlp", name) for name in trained)
    assembled(base, [stage(base, 1, "image.blocks.2.mlp", "text.blocks.1.mlp")], top_k=1, last_blocks=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"experts": 1, "top_k": 1}, "experts: expected 2 or more, got 1"),
        ({"experts": 2, "top_k": 3}, "top_k: expected 1 to 2, the number of experts, got 3"),
        ({"experts": 2, "top_k": 0}, "top_k: expected 1 to 2"),
        ({"experts": 2, "top_k": 1, "last_blocks": -1}, "last_blocks: expected 0 or more, got -1"),
        ({"experts": 2, "top_k": 1, "towers": ()}, "towers: expected image, text or both, got none"),
        (
            {"experts": 2, "top_k": 1, "towers": ("images",)},
            "towers: expected image, text or both, got images",
        ),
    ],
)
def test_numbers_that_cannot_be(base: Source, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        upcycled(base, **settings)


def test_models_that_cannot_have_experts(base: Source) -> None:
    config = base.model.config
    image = {**vars(config.image), "blocks": config.image.blocks}
    pooled = replace(base, model=Clip(replace(config, image=PooledVitConfig(**image))))
    alone = replace(base, model=Clip(replace(config, text=None)))
    nano = replace(base, model=NanoCLIP(NanoConfig(vocab_size=300)))
    mixed = upcycled(base, experts=2, top_k=1, last_blocks=1, towers=("text",))
    for source, message in (
        (pooled, "the image tower is a PooledVitTower, and only a ImageTower can have some"),
        (alone, "the text tower is not there, and only a TextTower can have some"),
        (nano, "only a CLIP's towers can have some, this is a NanoCLIP"),
        (mixed, r"text\.blocks\.1\.mlp is a mixture of experts already"),
    ):
        with pytest.raises(SourceError, match=message):
            upcycled(source, experts=2, top_k=1)
    assert len(moe_layers(upcycled(pooled, experts=2, top_k=1, towers=("text",)).model)) == 2


def test_stages_that_are_no_stages_of_the_base(base: Source) -> None:
    deeper = replace(CONFIG, image=replace(CONFIG.image, blocks=TransformerConfig(16, 4, 2, 32)))
    heads = replace(CONFIG, image=replace(CONFIG.image, blocks=TransformerConfig(16, 3, 4, 32)))
    hair = stage(base, 0)
    hair.model.image.norm_post.bias[3] += 1e-7
    cases: list[tuple[Source, int, str]] = [
        (hair, 0, r"stage0: image\.norm_post\.bias is not that of base"),
        (stage(base, 1, "logit_scale"), 0, "stage1: logit_scale is not that of base"),
        (
            stage(base, 1),
            1,
            r"stage1: image\.blocks\.0\.mlp\.fc1\.weight is not .*trained=image\.blocks\.2\.mlp",
        ),
        (replace(base, spec="deep", model=Clip(deeper)), 0, "deep: has other sizes than base"),
        (replace(base, spec="heads", model=Clip(heads)), 0, "heads: has other sizes than base"),
        (replace(base, spec="words", tokenizer_json=b"{}"), 0, "words: tokenizer_json is not that of base"),
    ]
    for source, last, message in cases:
        with pytest.raises(SourceError, match=message) as raised:
            assembled(base, [stage(base, 0), source], top_k=1, last_blocks=last)
        assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match="stages: expected 1 or more"):
        assembled(base, [], top_k=1)
    with pytest.raises(EdgeClipError, match="mixture of experts already"):
        assembled(upcycled(base, experts=2, top_k=1), [base], top_k=1)
