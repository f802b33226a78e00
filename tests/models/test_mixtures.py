"""Whole models with experts: saved and loaded, damaged, and wherever else a model of the package goes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from edgeclip.bundle.manifest import Licence
from edgeclip.errors import SourceError
from edgeclip.models.clip import Clip
from edgeclip.models.config import ClipConfig, ImageConfig, MoeConfig, TextConfig, TransformerConfig
from edgeclip.models.detector import DetectorConfig, DetectorModel, DetectorModelConfig
from edgeclip.models.feed_forward import Mlp, MoeMlp, moe_layers, recorded
from edgeclip.models.pooled_vit import PooledVitConfig
from edgeclip.models.prompter import PromptedClip
from edgeclip.models.regions import RegionEncoder
from edgeclip.models.source import Source
from edgeclip.models.sources import load_source, save_source
from edgeclip.models.text_encoder import EncoderConfig
from tests.checkpoints import fixed_pixels, roughen, write_hf

Counts = tuple[int, ...] | None


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """A dense model of two blocks a tower, with its tokenizer."""
    folder = tmp_path_factory.mktemp("dense")
    write_hf(folder)
    return load_source(str(folder))


def sparse(dense: Source, image: Counts = None, text: Counts = None, top_k: int = 2, **changes: Any) -> Clip:
    """A model of the same sizes with experts in its blocks."""
    config = dense.model.config
    assert isinstance(config, ClipConfig)
    assert isinstance(config.image, ImageConfig)
    assert isinstance(config.text, TextConfig)

    def blocks(own: TransformerConfig, counts: Counts) -> TransformerConfig:
        return replace(own, moe=counts and MoeConfig(counts, top_k))

    torch.manual_seed(0)
    towers = {
        "image": replace(config.image, blocks=blocks(config.image.blocks, image), **changes),
        "text": replace(config.text, blocks=blocks(config.text.blocks, text)),
    }
    model = Clip(replace(config, **towers)).eval().requires_grad_(False)
    roughen(model)
    return model


def save(dense: Source, model: Any, folder: Path) -> Path:
    save_source(
        folder,
        model=model,
        preprocessing=dense.preprocessing,
        text=dense.text,
        tokenizer_json=dense.tokenizer_json,
        licence=Licence(weights="MIT"),
    )
    return folder


@pytest.mark.parametrize(
    ("image", "text", "top_k"),
    [
        ((4, 4), (4, 4), 2),
        ((0, 3), None, 2),
        (None, (2, 0), 1),
        ((5, 2), (0, 3), 3),
    ],
)
def test_they_come_back_as_they_were(
    image: Counts, text: Counts, top_k: int, dense: Source, tmp_path: Path
) -> None:
    model = sparse(dense, image, text, top_k)
    back = load_source(str(save(dense, model, tmp_path / "own"))).model
    assert back.config == model.config
    torch.testing.assert_close(back.state_dict(), model.state_dict(), rtol=0, atol=0)
    pixels, ids = fixed_pixels(2, 32, 32), torch.arange(12).view(2, 6)
    for mine, its in (
        (model.encode_image(pixels), back.encode_image(pixels)),
        (model.encode_text(ids), back.encode_text(ids)),
    ):
        torch.testing.assert_close(its, mine, rtol=0, atol=0)
    assert [layer.top_k for layer in moe_layers(back).values()] == [
        layer.top_k for layer in moe_layers(model).values()
    ]


def test_folders_of_before_there_were_experts_load(dense: Source, tmp_path: Path) -> None:
    path = save(dense, dense.model, tmp_path / "own") / "config.json"
    data = json.loads(path.read_text())
    for tower in ("image", "text"):
        assert data["config"][tower]["blocks"].pop("moe") is None
    path.write_text(json.dumps(data))
    assert load_source(str(tmp_path / "own")).model.config == dense.model.config


@pytest.mark.parametrize(
    ("moe", "message"),
    [
        ({"experts": [4, 4, 4], "top_k": 2}, "experts: 3 blocks are named, the stack has 2"),
        ({"experts": [4], "top_k": 2}, "experts: 1 blocks are named, the stack has 2"),
        ({"experts": [4, 1], "top_k": 2}, "expected 0 or 2-64 for each block"),
        ({"experts": [4, -4], "top_k": 2}, "expected 0 or 2-64 for each block"),
        ({"experts": [0, 0], "top_k": 2}, "one of them not 0"),
        ({"experts": [4, 10**9], "top_k": 2}, "expected 0 or 2-64 for each block"),
        ({"experts": [4, 4], "top_k": 0}, "top_k of 1-64"),
        ({"experts": [4, 4], "top_k": 10**9}, "top_k of 1-64"),
        ({"experts": [4, 4], "top_k": 2.0}, "top_k is 2.0"),
        ({"experts": [4, 4], "top_k": True}, "top_k is True"),
        ({"experts": [4, 4], "top_k": "2"}, "does not describe a model"),
        ({"experts": [4.0, 4], "top_k": 2}, r"experts is \(4\.0, 4\)"),
        ({"experts": "44", "top_k": 2}, "expected 0 or 2-64"),
        ({"experts": 4, "top_k": 2}, "does not describe a model"),
        ({"experts": [[4], 4], "top_k": 2}, "does not describe a model"),
        ({"experts": [4, 4], "top_k": 2, "shared": 1}, "shared"),
        ({"top_k": 2}, "does not describe a model"),
        ([], "does not describe a model"),
        (4, "does not describe a model"),
        (False, "does not describe a model"),
        ("experts", "does not describe a model"),
        (None, r"'image\.blocks\.0\.mlp\.fc1\.bias' is missing .*mlp\.experts"),
        ({"experts": [4, 3], "top_k": 2}, r"router\.weight' has shape|has no place"),
        ({"experts": [4, 5], "top_k": 2}, r"experts\.4\.fc1\.bias' is missing"),
    ],
)
def test_damaged_configs_are_refused(moe: object, message: str, saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    for path in saved.iterdir():
        (folder / path.name).symlink_to(path)
    data = json.loads((saved / "config.json").read_text())
    data["config"]["image"]["blocks"]["moe"] = moe
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(data))
    with pytest.raises(SourceError, match=message) as caught:
        load_source(str(folder))
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def saved(dense: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a model with experts in its pictures."""
    return save(dense, sparse(dense, (4, 4)), tmp_path_factory.mktemp("saved") / "own")


def test_towers_without_experts_refuse_a_config_that_has_them(dense: Source, tmp_path: Path) -> None:
    """An encoder in BERT's way has one feed-forward a block: it would ignore them, and random weights take their place."""
    blocks = TransformerConfig(32, 2, 2, 64)
    plain = EncoderConfig(blocks, vocab_size=dense.text.vocab_size, positions=77, pad_id=0)  # type: ignore[union-attr]
    moe = MoeConfig((2, 2))
    with pytest.raises(ValueError, match="one feed-forward each, no experts"):
        replace(plain, blocks=replace(blocks, moe=moe))
    config = replace(dense.model.config, text=plain)  # type: ignore[type-var]
    path = save(dense, Clip(config), tmp_path / "own") / "config.json"
    data = json.loads(path.read_text())
    assert load_source(str(tmp_path / "own")).pooling == "cls/first"
    data["config"]["text"]["blocks"]["moe"] = {"experts": [2, 2], "top_k": 2}
    path.write_text(json.dumps(data))
    with pytest.raises(SourceError, match="one feed-forward each, no experts"):
        load_source(str(tmp_path / "own"))


@pytest.mark.parametrize("kind", ["t5", "resnet", "timm"])
def test_configs_without_blocks_do_not_know_experts(kind: str, saved: Path, tmp_path: Path) -> None:
    data = json.loads((saved / "config.json").read_text())
    data["config"]["text"] = {"kind": kind, "moe": {"experts": [2, 2], "top_k": 2}}
    (tmp_path / "config.json").write_text(json.dumps(data))
    with pytest.raises(SourceError, match="unexpected keyword argument 'moe'"):
        load_source(str(tmp_path))


def test_the_attention_heads_own_feed_forward_stays_one(dense: Source) -> None:
    model = sparse(dense, (2, 2), pool="map")
    assert model.image is not None
    assert isinstance(model.image.head.mlp, Mlp)  # type: ignore[union-attr]
    assert set(moe_layers(model)) == {"image.blocks.0.mlp", "image.blocks.1.mlp"}


def test_another_kind_of_pooling_takes_them_too(dense: Source) -> None:
    own = sparse(dense, (2, 2)).config
    values = {entry.name: getattr(own.image, entry.name) for entry in fields(ImageConfig)}
    model = Clip(replace(own, image=PooledVitConfig(**values))).eval()
    with torch.no_grad(), recorded(model) as heard:
        model.encode_image(fixed_pixels(1, 32, 32))
    assert len(heard.shares) == 2


def test_maps_and_boxes_run_through_them(dense: Source, tmp_path: Path) -> None:
    model = sparse(dense, (0, 3))
    regions = RegionEncoder.of(model)
    with torch.no_grad(), recorded(model) as heard:
        rows = regions.tokens(fixed_pixels(2, 32, 32))
    assert rows.shape == (2, 4, 32)
    assert [tuple(shares.shape) for shares in heard.shares] == [(2, 5, 3)]
    back = load_source(str(save(dense, regions, tmp_path / "own"))).model
    assert isinstance(back, RegionEncoder)
    with torch.no_grad():
        torch.testing.assert_close(back.tokens(fixed_pixels(2, 32, 32)), rows, rtol=0, atol=0)


def test_a_prompter_starts_from_the_first_expert(dense: Source, tmp_path: Path) -> None:
    model = sparse(dense, (0, 3))
    prompted = PromptedClip.of(model)
    last = model.image.blocks[-1].mlp  # type: ignore[union-attr]
    assert isinstance(last, MoeMlp)
    assert isinstance(prompted.prompter.block.mlp, Mlp)
    torch.testing.assert_close(prompted.prompter.block.mlp.state_dict(), last.experts[0].state_dict())
    back = load_source(str(save(dense, prompted, tmp_path / "own"))).model
    assert back.config == prompted.config
    plain = PromptedClip.of(sparse(dense))
    wanted = sparse(dense).image.blocks[-1].mlp.state_dict()  # type: ignore[union-attr]
    torch.testing.assert_close(plain.prompter.block.mlp.state_dict(), wanted)


def test_a_detectors_trunk_may_have_them(dense: Source, tmp_path: Path) -> None:
    config = sparse(dense, (2, 0), (0, 2)).config
    assert isinstance(config.image, ImageConfig)
    assert isinstance(config.text, TextConfig)
    image = replace(config.image, projection=False)
    torch.manual_seed(0)
    model = DetectorModel(DetectorModelConfig(DetectorConfig(image, 32), config.text)).eval()
    back = load_source(str(save(dense, model, tmp_path / "own"))).model
    assert back.config == model.config
    assert set(moe_layers(back)) == {"detector.trunk.blocks.0.mlp", "text.blocks.1.mlp"}
    _same_at_another_size(
        replace(dense, model=model), lambda model: model.detector(fixed_pixels(1, 48, 32)).boxes
    )


def test_another_size_of_pictures_keeps_every_expert(dense: Source) -> None:
    model = sparse(dense, (3, 2))
    _same_at_another_size(
        replace(dense, model=model), lambda model: model.encode_image(fixed_pixels(1, 48, 32))
    )


def _same_at_another_size(source: Source, run: Callable[[Any], torch.Tensor]) -> None:
    from edgeclip.models.resolution import at_resolution

    resized = at_resolution(source, (48, 32))
    layers, before = moe_layers(resized.model), moe_layers(source.model)
    assert set(layers) == set(before)
    for name, layer in layers.items():
        torch.testing.assert_close(layer.state_dict(), before[name].state_dict(), rtol=0, atol=0)
    with torch.no_grad(), recorded(resized.model) as heard:
        assert run(resized.model).isfinite().all()
    assert heard.shares
    assert heard.shares[0].shape[1] == 7  # 3 x 2 patches and the class token
