"""BERT's relatives and T5 as text towers: planted faults that the comparison must catch, and what is refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from torch import nn
from torch.nn.functional import normalize

import edgeclip.models.t5
import edgeclip.models.text_encoder
from edgeclip.errors import SourceError
from edgeclip.export.towers import tower_of
from edgeclip.models.loaders.openclip import hf_text
from edgeclip.models.loaders.openclip.config import Shared
from edgeclip.models.sources import load_source
from edgeclip.models.t5 import distance_buckets
from edgeclip.models.text_encoder import EncoderConfig, TextEncoderTower
from edgeclip.runtime.text import TextEncoder
from tests.checkpoints import TEXTS
from tests.families import Written, models
from tests.families.chinese_clip import write_chinese_clip
from tests.families.openclip_hf_text import write_model
from tests.families.vision_text import write_pair
from tests.models.agreement import assert_saves_and_loads
from tests.vocabularies import write_bert_tokenizer, write_json, write_roberta_tokenizer

MODELS = models()


class Real:
    """A text tower at its real width, and the library's own vectors of some texts."""

    def __init__(self, written: Written) -> None:
        source = load_source(written.spec)
        assert source.text is not None
        assert source.model.text is not None
        assert written.text is not None
        self.tower = source.model.text
        encoder = TextEncoder(Tokenizer.from_str(source.tokenizer_json.decode()), source.text)
        self.ids = torch.from_numpy(
            encoder.encode(TEXTS[: 5 if source.text.context_length < 100 else 4]).input_ids
        ).long()
        with torch.no_grad():
            self.want = normalize(written.text(self.ids), dim=-1)

    def apart(self, tower: nn.Module) -> float:
        """Largest difference of unit vectors from the library's."""
        with torch.no_grad():
            return float((normalize(tower(self.ids), dim=-1) - self.want).abs().max())


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Real]:
    """Models by name, each written once."""
    return cache(lambda name: Real(MODELS[name](tmp_path_factory.mktemp("source"), "real")))


def no_token_type(tower: Any) -> None:
    tower.token_type.weight.data.zero_()


def other_token_type(tower: Any) -> None:
    tower.token_type.weight.data = tower.token_type.weight.data.flip(0)


def no_pooler(tower: Any) -> None:
    tower.pooler = None


def no_tanh(tower: Any) -> None:
    tower.pooler.weight.data *= 1e-3
    tower.pooler.bias.data *= 1e-3


def pooler(tower: Any) -> None:
    tower.pooler = nn.Linear(*[tower.config.blocks.width] * 2)


def no_last_norm(tower: Any) -> None:
    tower.norm_final = None


def epsilon(value: float) -> Callable[[Any], None]:
    def change(tower: Any) -> None:
        for module in tower.modules():
            if hasattr(module, "eps"):
                module.eps = value

    return change


def activation(name: str) -> Callable[[Any], None]:
    def change(tower: Any) -> None:
        for block in tower.blocks:
            block.mlp.activation = name

    return change


def config(**changes: Any) -> Callable[[Any], None]:
    def change(tower: Any) -> None:
        tower.config = replace(tower.config, **changes)

    return change


def no_bias_of_distance(tower: Any) -> None:
    tower.distance.weight.data.zero_()


def scaled_scores(tower: Any) -> None:
    for block in tower.blocks:
        rows = block.qkv.weight.data
        rows[: len(rows) // 3] *= tower.config.head_width**-0.5


# model, fault
FAULTS: list[tuple[str, Callable[[Any], None]]] = [
    ("chinese-clip-base-patch16", no_token_type),
    ("chinese-clip-base-patch16", other_token_type),
    ("chinese-clip-base-patch16", epsilon(1e-5)),
    ("chinese-clip-base-patch16", activation("gelu_tanh")),
    ("chinese-clip-base-patch16", config(pad_id=5)),
    ("chinese-clip-base-patch16", config(counted=True)),
    ("chinese-clip-base-patch16", config(pool="mean")),
    ("chinese-clip-base-patch16", pooler),
    ("altclip", no_last_norm),
    ("altclip", config(counted=False)),
    ("altclip", epsilon(1e-12)),
    ("clip-italian", no_pooler),
    ("clip-italian", no_tanh),
    ("xlm-roberta-base-ViT-B-32", config(counted=False)),
    ("xlm-roberta-base-ViT-B-32", config(pool="first")),
    ("xlm-roberta-base-ViT-B-32", epsilon(1e-12)),
    ("mt5-base-ViT-B-32", no_bias_of_distance),
    ("mt5-base-ViT-B-32", config(farthest=64)),
    ("mt5-base-ViT-B-32", config(buckets=16)),
    ("mt5-base-ViT-B-32", scaled_scores),
    (
        "mt5-base-ViT-B-32",
        epsilon(1e-2),
    ),  # 1e-5 for 1e-6 scales all tokens alike, which the unit norm takes out: 8e-7
    ("mt5-base-ViT-B-32", config(pad_id=5)),
]


@pytest.mark.parametrize(("name", "fault"), FAULTS, ids=lambda value: getattr(value, "__qualname__", value))
def test_faults_are_caught(name: str, fault: Callable[[Any], None], real: Callable[[str], Real]) -> None:
    tower = copy.deepcopy(real(name).tower)
    assert real(name).apart(tower) <= 1e-6
    fault(tower)
    assert real(name).apart(tower) > 2e-6


@pytest.mark.parametrize(
    ("name", "module", "value"),
    [
        ("roberta-ViT-B-32", edgeclip.models.text_encoder, lambda x, seen: x.mean(dim=1)),
        ("mt5-base-ViT-B-32", edgeclip.models.t5, lambda x, seen: x.mean(dim=1)),
        ("mt5-base-ViT-B-32", edgeclip.models.t5, lambda x, seen: x[:, 0]),
    ],
)
def test_means_that_count_padding_are_caught(
    name: str, module: Any, value: Any, real: Callable[[str], Real], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = real(name)
    assert found.apart(found.tower) <= 1e-6
    monkeypatch.setattr(module, "mean_seen", value)
    assert found.apart(found.tower) > 2e-6


@pytest.mark.parametrize(
    "name", ["altclip", "xlm-roberta-base-ViT-B-32", "chinese-clip-base-patch16", "mt5-base-ViT-B-32"]
)
def test_padding_inside_a_text_is_the_librarys_too(name: str, tmp_path: Path) -> None:
    written = MODELS[name](tmp_path, "tiny")
    source = load_source(written.spec)
    assert source.text is not None
    assert written.text is not None
    pad = source.text.pad_id
    ids = torch.tensor([[3, 7, pad, 9, 11, pad, pad, 2, pad], [4, pad, 8, pad, pad, pad, pad, pad, pad]])
    with torch.no_grad():
        want = normalize(written.text(ids), dim=-1)
        found = normalize(source.model.encode_text(ids), dim=-1)
        traced = tower_of(source, "text").module(ids.int())
    torch.testing.assert_close(found, want, rtol=0, atol=1e-6)
    torch.testing.assert_close(traced, want, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("length", "buckets", "farthest"), [(77, 32, 128), (512, 32, 128), (300, 64, 256), (40, 8, 20)]
)
def test_buckets_of_distances_are_transformers(length: int, buckets: int, farthest: int) -> None:
    from transformers.models.mt5.modeling_mt5 import MT5Attention

    order = torch.arange(length)
    want = MT5Attention._relative_position_bucket(order - order[:, None], True, buckets, farthest)
    assert torch.equal(distance_buckets(length, buckets, farthest), want)


@pytest.mark.parametrize("name", ["altclip", "vit-roberta", "mt5-base-ViT-B-32"])
def test_towers_save_and_load(name: str, tmp_path: Path) -> None:
    written = MODELS[name](tmp_path / "source", "tiny")
    assert_saves_and_loads(load_source(written.spec), tmp_path / "saved")


def test_texts_may_be_as_long_as_the_positions_allow(tmp_path: Path) -> None:
    write_pair(tmp_path, "vit-roberta", "tiny")
    source = load_source(str(tmp_path))
    assert source.text is not None
    assert (source.text.context_length, source.text.dynamic_length) == (64, True)
    assert isinstance(source.model.text, TextEncoderTower)
    assert source.model.text.config.positions == 66


def edit(path: Path, section: str | None, **changes: Any) -> None:
    data = json.loads(path.read_text())
    place = data if section is None else data[section]
    place |= changes
    write_json(path, data)


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        (
            "text_config",
            {"position_embedding_type": "relative_key"},
            "position_embedding_type = 'relative_key' describes",
        ),
        ("text_config", {"is_decoder": True}, "is_decoder = True describes a model"),
        ("text_config", {"hidden_act": "relu"}, "hidden_act is 'relu', expected one of"),
        (
            "text_config",
            {"type_vocab_size": 3},
            r"token_type.* has shape \(2, 48\), its config asks for \(3, 48\)",
        ),
        ("text_config", {"num_attention_heads": 5}, "5 heads do not divide a width of 48"),
        ("text_config", {"pad_token_id": 99999}, "pad_token_id is 99999, the vocabulary has"),
        (
            "text_config",
            {"pad_token_id": 3},
            "takes id 3 for padding, its tokenizer pads with 0.*another model",
        ),
        ("text_config", {"num_hidden_layers": 3}, "layer.2.* is missing"),
        ("text_config", {"num_hidden_layers": 1}, "layer.1.* has no place"),
        ("text_config", {"max_position_embeddings": 32}, "position.* its config asks for"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_configs_that_describe_another_model_are_refused(
    section: str, changes: Any, message: str, tmp_path: Path
) -> None:
    write_chinese_clip(tmp_path, "tiny")
    edit(tmp_path / "config.json", section, **changes)
    with pytest.raises(SourceError, match=message) as caught:
        load_source(str(tmp_path))
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_tokenizer_of_another_family_is_refused(tmp_path: Path) -> None:
    write_chinese_clip(tmp_path, "tiny")
    write_roberta_tokenizer(tmp_path)
    with pytest.raises(
        SourceError, match=r"takes id 0 for padding, its tokenizer pads with 1.*another model"
    ):
        load_source(str(tmp_path))


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        (
            "text_config",
            {"model_type": "distilbert"},
            "text_config.model_type is 'distilbert', expected one of bert, roberta",
        ),
        (
            "vision_config",
            {"model_type": "dinov2"},
            "vision_config.model_type is 'dinov2', expected one of clip_vision_model, vit",
        ),
        ("vision_config", {"qkv_bias": False}, "qkv_bias is False, expected True"),
        ("vision_config", {"pooler_act": "relu"}, "pooler_act is 'relu', expected 'tanh'"),
        ("vision_config", {"pooler_output_size": 40}, "pooler_output_size is 40"),
        ("vision_config", {"num_channels": 1}, "num_channels is 1, expected 3"),
        ("text_config", {"max_position_embeddings": 2}, "2 positions, of which padding takes 2, leave none"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_other_pairs_are_refused(section: str, changes: Any, message: str, tmp_path: Path) -> None:
    write_pair(tmp_path, "vit-roberta", "tiny")
    edit(tmp_path / "config.json", section, **changes)
    with pytest.raises(SourceError, match=message) as caught:
        load_source(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_names_of_older_releases_are_read(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    write_pair(tmp_path, "clip-italian", "tiny")
    before = load_source(str(tmp_path)).model.state_dict()
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    old = {
        name.replace("vision_model.", "vision_model.vision_model."): tensor
        for name, tensor in tensors.items()
    }
    old["text_model.embeddings.position_ids"] = torch.arange(64)[None]
    save_file(old, path, metadata={"format": "pt"})
    after = load_source(str(tmp_path)).model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"hf_model_name": "facebook/nllb-200-distilled-600M"},
            "'facebook/nllb.*', expected one of bert-base-uncased, .*mt5-xl",
        ),
        ({"hf_pooler_type": "max_pooler"}, "hf_pooler_type is 'max_pooler', expected one of mean_pooler"),
        ({"hf_proj_type": "bilinear"}, "hf_proj_type is 'bilinear', expected one of linear, mlp, none"),
        ({"hf_proj_type": None}, "hf_proj_type is null, but the model is 48 wide and embeddings have 32"),
        ({"output_tokens": True}, "CoCa over 'roberta-base', which edgeclip cannot load yet"),
        ({"context_length": 600}, "context_length is 600, the model has positions for 512"),
        ({"tokenizer_mode": "clips"}, "tokenizer_mode = 'clips' describes a model"),
        ({"hf_pooler_type": "cls_pooler"}, "pooler.dense.* is missing"),
        ({"hf_proj_type": "linear"}, "text.proj.weight' is missing"),
        ({"hf_model_name": "bert-base-uncased"}, "takes id 0 for padding, its tokenizer pads with 1"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_other_text_models_of_open_clip_are_refused(changes: Any, message: str, tmp_path: Path) -> None:
    write_model(tmp_path, "roberta-ViT-B-32", "tiny")
    data = json.loads((tmp_path / "open_clip_config.json").read_text())
    data["model_cfg"]["text_cfg"] |= changes
    write_json(tmp_path / "open_clip_config.json", data)
    with pytest.raises(SourceError, match=message) as caught:
        load_source(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_mt5_has_no_class_token_to_pool(tmp_path: Path) -> None:
    write_model(tmp_path, "mt5-base-ViT-B-32", "tiny")
    data = json.loads((tmp_path / "open_clip_config.json").read_text())
    data["model_cfg"]["text_cfg"]["hf_pooler_type"] = "cls_pooler"
    write_json(tmp_path / "open_clip_config.json", data)
    with pytest.raises(SourceError, match="hf_pooler_type is 'cls_pooler', expected one of mean_pooler"):
        load_source(str(tmp_path))


def test_a_text_model_as_wide_as_the_embedding_needs_no_projection(tmp_path: Path) -> None:
    model = write_model(tmp_path, "roberta-ViT-B-32", "tiny", embed_dim=48, hf_proj_type=None)
    source = load_source(str(tmp_path))
    ids = torch.tensor([[0, 9, 12, 2, 1, 1]])
    with torch.no_grad():
        want, found = model.encode_text(ids), source.model.encode_text(ids)
    torch.testing.assert_close(normalize(found, dim=-1), normalize(want, dim=-1), rtol=0, atol=1e-6)


def test_sizes_are_the_published_models_without_a_checkpoint() -> None:
    for name, layers in (("xlm-roberta-large", 24), ("FacebookAI/roberta-base", 12), ("google/mt5-xl", 24)):
        found = hf_text.read({**hf_text.KEYS, "hf_model_name": name}, Shared(64, False, "config"))
        assert (found.blocks if isinstance(found, EncoderConfig) else found).layers == layers
        assert found.context_length == 77


def test_a_tokenizer_file_may_be_passed(tmp_path: Path) -> None:
    write_chinese_clip(tmp_path / "model", "tiny")
    write_bert_tokenizer(tmp_path / "tokenizer")
    whole = load_source(str(tmp_path / "model"))
    passed = load_source(str(tmp_path / "model"), tokenizer=tmp_path / "tokenizer" / "tokenizer.json")
    assert passed.text == whole.text
    made = [
        Tokenizer.from_str(source.tokenizer_json.decode()).encode(TEXTS[3]).ids for source in (whole, passed)
    ]
    assert made[0] == made[1]
