"""Checkpoints that transformers wrote, against transformers itself."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from edgeclip.errors import SourceError
from edgeclip.models.clip import Clip, TextTower
from edgeclip.models.sources import load_source
from tests.checkpoints import TEXTS, hf_preprocessor, write_hf
from tests.models.agreement import TOLERANCE, assert_agrees, hf_outputs, inputs, our_outputs, worst


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, Any]]:
    """Two blocks of a real size: transformers' model and the source; not to be changed."""

    @cache
    def write(size: str) -> tuple[Any, Any]:
        folder = tmp_path_factory.mktemp("real")
        return write_hf(folder, size), load_source(str(folder))

    return write


@pytest.mark.parametrize(
    "size", ["B/32", *(pytest.param(size, marks=pytest.mark.parity) for size in ("B/16", "L/14", "L/14-336"))]
)
def test_two_blocks_of_real_width_agree(size: str, written: Callable[[str], tuple[Any, Any]]) -> None:
    model, source = written(size)
    pixels, ids = inputs(source)
    assert_agrees(source, hf_outputs(model, pixels, ids), our_outputs(source.model, pixels, ids))
    assert source.model.logit_scale.item() == pytest.approx(2.6592)
    assert source.digest != ""
    assert source.pooling == "cls/eos"
    assert source.activation == "softmax"


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu", "gelu_pytorch_tanh"])
@pytest.mark.parametrize(
    "eos_id", [None, 2]
)  # the tokenizer's own, and the legacy value that means "largest id"
def test_activations_and_poolings_agree(activation: str, eos_id: int | None, tmp_path: Path) -> None:
    model = write_hf(tmp_path, activation=activation, eos_id=eos_id)
    source = load_source(str(tmp_path))
    pixels, ids = inputs(source)
    assert_agrees(source, hf_outputs(model, pixels, ids), our_outputs(source.model, pixels, ids))
    assert source.pooling == ("cls/eos" if eos_id is None else "cls/argmax")


@pytest.mark.parametrize("eos_id", [None, 2])
def test_tokens_added_above_the_end_mark(
    eos_id: int | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With a right eos_token_id they change nothing; the legacy rule pools them instead, in transformers as here."""
    from tokenizers import Tokenizer

    model = write_hf(tmp_path, eos_id=eos_id, added=("<new>", "<newer>"))
    source = load_source(str(tmp_path))
    tokenizer = Tokenizer.from_str(source.tokenizer_json.decode())
    rows = [tokenizer.encode(text).ids for text in ("a <new> cat", "a cat <newer> there", "no such token")]
    assert [max(row) for row in rows] == [714, 715, 713]
    ids = torch.tensor([row + [source.text.pad_id] * (20 - len(row)) for row in rows])
    pixels, _ = inputs(source)
    assert_agrees(source, hf_outputs(model, pixels, ids), our_outputs(source.model, pixels, ids))
    pooled = source.model.text.pooled_position(ids).tolist()  # type: ignore[union-attr, operator]
    ends = [row.index(713) for row in rows]
    assert (pooled == ends) is (eos_id is None)
    assert ("texts end with 713 of 715" in caplog.text) is (eos_id == 2)


def test_dropout_of_the_config_has_no_part(tmp_path: Path) -> None:
    model = write_hf(tmp_path, dropout=0.5)
    source = load_source(str(tmp_path))
    assert not source.model.training
    pixels, ids = inputs(source)
    assert_agrees(source, hf_outputs(model, pixels, ids), our_outputs(source.model, pixels, ids))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_shards_and_half_precision_agree(dtype: torch.dtype, tmp_path: Path) -> None:
    model = write_hf(tmp_path, max_shard_size="200KB")
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 1
    whole = load_source(str(tmp_path))
    pixels, ids = inputs(whole)
    assert_agrees(whole, hf_outputs(model, pixels, ids), our_outputs(whole.model, pixels, ids))
    state = {key: value.to(dtype) for key, value in model.state_dict().items()}
    for path in tmp_path.glob("model*"):
        path.unlink()
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "model.safetensors")
    model.load_state_dict({key: value.float() for key, value in state.items()})
    source = load_source(str(tmp_path))
    assert {p.dtype for p in source.model.parameters()} == {torch.float32}
    assert_agrees(source, hf_outputs(model, pixels, ids), our_outputs(source.model, pixels, ids))


def test_a_shorter_batch_gives_the_same_text_embeddings(tmp_path: Path) -> None:
    write_hf(tmp_path)
    source = load_source(str(tmp_path))
    _, ids = inputs(source)
    assert source.text.dynamic_length
    short = ids[:3, :16]
    with torch.no_grad():
        torch.testing.assert_close(
            source.model.encode_text(short), source.model.encode_text(ids)[:3], rtol=0, atol=1e-5
        )


def test_dense_features_are_the_patch_tokens_in_the_shared_space(tmp_path: Path) -> None:
    model = write_hf(tmp_path, "tiny")
    source = load_source(str(tmp_path))
    assert isinstance(source.model, Clip)
    pixels, _ = inputs(source)
    with torch.no_grad():
        tokens = model.vision_model(pixels).last_hidden_state[:, 1:]
        theirs = model.visual_projection(model.vision_model.post_layernorm(tokens))
        ours = source.model.image.dense(pixels)
    assert ours.shape == (2, 2, 2, 32)
    torch.testing.assert_close(ours.flatten(1, 2), theirs, rtol=0, atol=1e-5)


class TestPlantedFaults:
    """The tolerance of 1e-6 catches each. Measured on B/32 with two blocks (image, text): epsilon 2.8e-5, 5.8e-4; GELU
    8.1e-4, 1.6e-3; one position before the end 7.7e-2; no fault 0 (open_clip as reference: 2e-7).
    """

    @pytest.fixture
    def pair(self, written: Callable[[str], tuple[Any, Any]]) -> tuple[Any, Any]:
        return written("B/32")

    def _gap(self, pair: tuple[Any, Any], **changes: Any) -> tuple[float, ...]:
        model, source = pair
        pixels, ids = inputs(source)
        config = source.model.config
        for tower, change in changes.items():
            part = getattr(config, tower)
            blocks = dataclasses.replace(part.blocks, **change)
            config = dataclasses.replace(config, **{tower: dataclasses.replace(part, blocks=blocks)})
        faulty = Clip(config).eval()
        faulty.load_state_dict(source.model.state_dict())
        return worst(hf_outputs(model, pixels, ids), our_outputs(faulty, pixels, ids))

    def test_norm_epsilon(self, pair: tuple[Any, Any]) -> None:
        image, text = self._gap(pair, image={"norm_eps": 1e-6}, text={"norm_eps": 1e-6})
        assert image > 2 * TOLERANCE
        assert text > 2 * TOLERANCE

    def test_exact_for_quick_gelu(self, pair: tuple[Any, Any]) -> None:
        image, text = self._gap(pair, image={"activation": "gelu"}, text={"activation": "gelu"})
        assert image > 10 * TOLERANCE
        assert text > 10 * TOLERANCE

    def test_pooling_one_position_before_the_end(
        self, pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model, source = pair
        pixels, ids = inputs(source)
        pooled = TextTower.pooled_position
        monkeypatch.setattr(TextTower, "pooled_position", lambda tower, ids: pooled(tower, ids) - 1)
        _, text = worst(hf_outputs(model, pixels, ids), our_outputs(source.model, pixels, ids))
        assert text > 1000 * TOLERANCE

    def test_query_and_key_swapped(self, pair: tuple[Any, Any]) -> None:
        model, source = pair
        pixels, ids = inputs(source)
        faulty = Clip(source.model.config).eval()
        state = source.model.state_dict()
        key = "image.blocks.0.attention.qkv.weight"
        q, k, v = state[key].chunk(3)
        faulty.load_state_dict({**state, key: torch.cat([k, q, v])})
        image, text = worst(hf_outputs(model, pixels, ids), our_outputs(faulty, pixels, ids))
        assert image > 10 * TOLERANCE
        assert text < TOLERANCE


def _edit(path: Path, **changes: Any) -> None:
    data = json.loads(path.read_text())
    for key, value in changes.items():
        section, _, name = key.rpartition("__")
        target = data[section] if section else data
        target[name] = value
    path.write_text(json.dumps(data))


def _reweigh(folder: Path, **changes: torch.Tensor | None) -> None:
    state = load_file(folder / "model.safetensors")
    for key, value in changes.items():
        name = key.replace("__", ".")
        if value is None:
            state.pop(name)
        else:
            state[name] = value
    save_file(state, folder / "model.safetensors")


DAMAGE = {
    "another vocabulary": (
        lambda f: _edit(f / "config.json", text_config__vocab_size=700),
        r"token_embedding.weight' has shape \(714, 48\), its config asks for \(700, 48\)",
    ),
    "fewer layers": (
        lambda f: _edit(f / "config.json", vision_config__num_hidden_layers=1),
        r"vision_model.encoder.layers.1.* has no place in the model",
    ),
    "more layers": (
        lambda f: _edit(f / "config.json", vision_config__num_hidden_layers=3),
        r"vision_model.encoder.layers.2.* is missing",
    ),
    "another width": (lambda f: _edit(f / "config.json", text_config__hidden_size=64), r"has shape"),
    "another resolution": (
        lambda f: _edit(f / "config.json", vision_config__image_size=48),
        r"position_embedding.weight' has shape \(5, 64\), its config asks for \(10, 64\)",
    ),
    "heads that do not divide": (
        lambda f: _edit(f / "config.json", vision_config__num_attention_heads=5),
        r"5 heads do not divide a width of 64",
    ),
    "a width of the wrong kind": (
        lambda f: _edit(f / "config.json", vision_config__hidden_size="64"),
        r"vision_config.hidden_size: expected int, got '64'",
    ),
    "a section that is none": (
        lambda f: _edit(f / "config.json", text_config=[1]),
        r"text_config is no object",
    ),
    "an unknown activation": (
        lambda f: _edit(f / "config.json", text_config__hidden_act="relu"),
        r"hidden_act is 'relu', expected one of gelu",
    ),
    "another model type": (
        lambda f: _edit(f / "config.json", model_type="blip"),
        r"model_type is 'blip'",
    ),
    "MetaCLIP 2, whose end mark truly is 2": (
        lambda f: _edit(f / "config.json", model_type="metaclip_2", text_config__eos_token_id=2),
        r"pools at id 2, but its tokenizer ends texts with 713",
    ),
    "more layers than any model has": (
        lambda f: _edit(f / "config.json", text_config__num_hidden_layers=10**9),
        r"text_config.num_hidden_layers: expected int, got 1000000000",
    ),
    "a number that is none": (
        lambda f: _edit(f / "config.json", vision_config__layer_norm_eps=float("nan")),
        r"layer_norm_eps: expected float, got nan",
    ),
    "pixels divided by nothing": (
        lambda f: _edit(f / "preprocessor_config.json", image_std=[0.5, 0.0, 0.5]),
        r"image_std: expected three numbers above 0",
    ),
    "a config nested without end": (
        lambda f: (f / "config.json").write_text('{"a":' * 100_000),
        r"config.json: not JSON",
    ),
    "eight bits without their scale": (
        lambda f: _reweigh(f, text_projection__weight=torch.ones(32, 48).to(torch.float8_e4m3fn)),
        r"is torch.float8_e4m3fn, expected floating point of 16 bits or more",
    ),
    "a wrong end of text": (
        lambda f: _edit(f / "config.json", text_config__eos_token_id=5),
        r"pools at id 5, but its tokenizer ends texts with 713",
    ),
    "pictures of another size": (
        lambda f: _edit(f / "preprocessor_config.json", size={"shortest_edge": 64}, crop_size=64),
        r"makes pictures of \(64, 64\), but the image tower takes \(32, 32\)",
    ),
    "no way to crop": (
        lambda f: _edit(f / "preprocessor_config.json", do_center_crop=False),
        r"not a way of preparing pictures",
    ),
    "no preprocessing": (lambda f: (f / "preprocessor_config.json").unlink(), r"no preprocessor_config.json"),
    "no tokenizer": (
        lambda f: (f / "tokenizer.json").unlink(),
        r"expected tokenizer.json, vocab.txt, or vocab.json and merges.txt",
    ),
    "a broken tokenizer": (lambda f: (f / "tokenizer.json").write_text("{}"), r"not a tokenizer.json"),
    "a broken config": (lambda f: (f / "config.json").write_text('{"model_type"'), r"config.json: not JSON"),
    "weights cut short": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-999]),
        r"model.safetensors: damaged or cut short",
    ),
    "empty weights": (lambda f: (f / "model.safetensors").write_bytes(b""), r"the file is empty"),
    "a git-lfs pointer": (
        lambda f: (f / "model.safetensors").write_text(
            "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
        ),
        r"git-lfs pointer",
    ),
    "a download under way": (
        lambda f: (f / "model.safetensors").rename(f / "model.safetensors.incomplete"),
        r"the download was cut short",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"expected one of model.safetensors"),
    "NaN": (
        lambda f: _reweigh(f, visual_projection__weight=torch.full((32, 64), torch.nan)),
        r"'visual_projection.weight' holds NaN",
    ),
    "a missing tensor": (
        lambda f: _reweigh(f, text_projection__weight=None),
        r"'text_projection.weight' is missing",
    ),
    "a tensor too many": (lambda f: _reweigh(f, adapter=torch.ones(3)), r"'adapter' has no place"),
    "whole numbers": (
        lambda f: _reweigh(f, text_projection__weight=torch.ones(32, 48, dtype=torch.int8)),
        r"is torch.int8, expected floating point of 16 bits or more",
    ),
    "a scale without its logarithm": (
        lambda f: _reweigh(f, logit_scale=torch.tensor(100.0)),
        r"logit_scale is 100, expected its logarithm",
    ),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    write_hf(folder)
    return folder


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_wrong_is_said_in_one_line(damage: str, sound: Path, tmp_path: Path) -> None:
    for path in sound.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    spoil, message = DAMAGE[damage]
    spoil(tmp_path)
    with pytest.raises(SourceError, match=message) as caught:
        load_source(str(tmp_path))
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write_hf(tmp_path, max_shard_size="200KB")
    (shard,) = list(tmp_path.glob("model-00002-of-*"))
    shard.unlink()
    with pytest.raises(SourceError, match=f"{shard.name}: no such file"):
        load_source(str(tmp_path))


def test_pickles_need_leave(sound: Path, tmp_path: Path) -> None:
    for path in sound.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    state = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(SourceError, match="Pass --allow-pickle"):
        load_source(str(tmp_path))
    source = load_source(str(tmp_path), allow_pickle=True)
    torch.testing.assert_close(
        source.model.state_dict()["image.projection.weight"], state["visual_projection.weight"]
    )
    torch.save({"weights": Path("x")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(SourceError, match="not a plain pickle of tensors") as caught:
        load_source(str(tmp_path), allow_pickle=True)
    assert "\n" not in str(caught.value)
    torch.save({"weights": _Runs(tmp_path / "ran")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(SourceError, match="not a plain pickle of tensors"):
        load_source(str(tmp_path), allow_pickle=True)
    assert not (tmp_path / "ran").exists(), "code inside the pickle was run"


class _Runs:
    """What a hostile pickle does: run code when it is opened."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def test_a_section_given_twice_is_read_as_transformers_reads_it(sound: Path, tmp_path: Path) -> None:
    from transformers import CLIPConfig

    for path in sound.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    data = json.loads((tmp_path / "config.json").read_text())
    older = {
        key: data["vision_config"][key]
        for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "image_size", "patch_size")
    }
    _edit(tmp_path / "config.json", vision_config_dict={**older, "num_attention_heads": 2})
    theirs = CLIPConfig.from_pretrained(tmp_path).vision_config
    config = load_source(str(tmp_path)).model.config
    assert config.image.blocks.heads == theirs.num_attention_heads == 2
    assert config.image.blocks.activation == theirs.hidden_act


@pytest.mark.parametrize("pad", ["<|endoftext|>", "!"])
@pytest.mark.parametrize("files", ["tokenizer.json", "vocab and merges", "vocab and merges alone"])
def test_ids_equal_transformers(pad: str, files: str, tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from transformers import CLIPTokenizer

    write_hf(tmp_path, merges=2000, pad=pad, legacy_tokenizer=files != "tokenizer.json")
    if files.endswith("alone"):  # special tokens and length are CLIPTokenizer's defaults then
        (tmp_path / "tokenizer_config.json").unlink()
    source = load_source(str(tmp_path))
    theirs = CLIPTokenizer.from_pretrained(tmp_path)
    accented = ["e\u0301 \u212b \u0130", "\u4e2d\u6587 \u0939\u093f"]
    texts = [*TEXTS, "It'S  A\tTEST 42", "<|endoftext|> inside", *accented]
    expected = theirs(texts, padding="max_length", truncation=True, max_length=77).input_ids
    ours = Tokenizer.from_str(source.tokenizer_json.decode())
    for text, row in zip(texts, expected, strict=True):
        ids = ours.encode(text).ids
        ids = ids if len(ids) <= 77 else [*ids[:76], source.text.eos_id]
        assert ids + [source.text.pad_id] * (77 - len(ids)) == row, text


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ((32, 32), "shortest_crop", 32, "bicubic")),
        ({"size": 32, "crop_size": 32}, ((32, 32), "shortest_crop", 32, "bicubic")),
        ({"size": {"shortest_edge": 40}, "resample": 2}, ((32, 32), "shortest_crop", 40, "bilinear")),
        ({"size": {"height": 32, "width": 32}, "do_center_crop": False}, ((32, 32), "squash", 0, "bicubic")),
    ],
)
def test_preprocessing_is_read(
    changes: dict[str, Any], expected: tuple[Any, ...], sound: Path, tmp_path: Path
) -> None:
    for path in sound.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    _edit(tmp_path / "preprocessor_config.json", **changes)
    got = load_source(str(tmp_path)).preprocessing
    assert (got.size, got.mode, got.resize, got.resample) == expected
    assert (got.mean[0], got.std[2], got.long_side, got.crop_offset) == (
        0.48145466,
        0.27577711,
        "floor",
        "floor",
    )


def test_newer_processor_files_and_no_normalising(sound: Path, tmp_path: Path) -> None:
    for path in sound.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "preprocessor_config.json").unlink()
    processor = {"image_processor": {**hf_preprocessor(32), "do_normalize": False}}
    (tmp_path / "processor_config.json").write_text(json.dumps(processor))
    got = load_source(str(tmp_path)).preprocessing
    assert (got.size, got.mean, got.std) == ((32, 32), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("card", "weights", "warned"),
    [
        ("---\nlicense: mit\ntags: [x]\n---\n# x\nlicense: gpl\n", "mit", False),
        ("---\ntags: [x]\n---\nlicense: mit\n", "unknown", True),
        ("---\nlicense: cc-by-nc-4.0\n---\n", "cc-by-nc-4.0", True),
        (None, "unknown", True),
    ],
)
def test_licence_comes_from_the_model_card(
    card: str | None, weights: str, warned: bool, sound: Path, tmp_path: Path
) -> None:
    for path in sound.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    if card:
        (tmp_path / "README.md").write_text(card)
    licence = load_source(str(tmp_path)).licence
    assert licence.weights == weights
    assert bool(licence.warnings) == warned
