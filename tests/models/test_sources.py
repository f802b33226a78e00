"""Specs: what each names, what is said when it names nothing, and edgeclip's own checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from edgeclip.bundle.manifest import Licence
from edgeclip.errors import InputError, SourceError
from edgeclip.models.loaders.openclip.table import ARCHS
from edgeclip.models.nano import NanoCLIP, NanoConfig
from edgeclip.models.source import DualEncoder, Source
from edgeclip.models.sources import load_source, save_source
from tests.checkpoints import openclip_config, write_hf, write_openclip
from tests.models.agreement import assert_agrees, hf_outputs, inputs, our_outputs

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hub cache, offline."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def lay_out(hub: Path, repo: str) -> Path:
    """The folder of a repository's main branch, as huggingface_hub's cache has it."""
    home = hub / f"models--{repo.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(COMMIT)
    snapshot = home / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    return snapshot


def test_hub_ids_open_from_the_cache(hub: Path) -> None:
    model = write_hf(lay_out(hub, "someone/small-clip"))
    source = load_source("hf:someone/small-clip")
    pixels, ids = inputs(source)
    assert_agrees(source, hf_outputs(model, pixels, ids), our_outputs(source.model, pixels, ids))
    assert (source.spec, source.name) == ("hf:someone/small-clip", "small-clip")
    assert load_source("hf:someone/small-clip", revision=COMMIT).digest == source.digest
    with pytest.raises(SourceError, match="not in the local cache"):
        load_source("hf:someone/small-clip", revision="other")


def test_openclip_tags_and_hub_ids_open_from_the_cache(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = openclip_config("tiny")
    monkeypatch.setitem(ARCHS, "ViT-B-32", {**config, "quick_gelu": False})  # the real one is 600 MB
    folder = lay_out(hub, "laion/CLIP-ViT-B-32-laion2B-s34B-b79K")
    write_openclip(folder, config)
    (folder / "config.json").write_text('{"model_type": "clip"}')  # such repositories hold both formats
    by_tag = load_source("openclip:ViT-B-32/laion2b_s34b_b79k")
    by_id = load_source("openclip:ViT-B-32/laion/CLIP-ViT-B-32-laion2B-s34B-b79K")
    assert (by_tag.family, by_tag.digest) == ("openclip", by_id.digest)
    assert by_tag.name == "CLIP-ViT-B-32-laion2B-s34B-b79K"
    with pytest.raises(SourceError, match=r"expected one of model\.safetensors"):
        load_source("hf:laion/CLIP-ViT-B-32-laion2B-s34B-b79K")


@pytest.mark.parametrize("write", [write_hf, lambda folder: write_openclip(folder, openclip_config("tiny"))])
def test_a_download_that_was_cut_short_is_said_to_be(write: Any, hub: Path) -> None:
    """The Hub's cache keeps contents apart, under `blobs`; a half of one ends in .incomplete."""
    folder = lay_out(hub, "someone/half")
    write(folder)
    for path in folder.glob("*.safetensors"):
        path.unlink()
    with pytest.raises(SourceError, match="Is the download complete"):
        load_source("hf:someone/half")
    (folder.parents[1] / "blobs").mkdir()
    (folder.parents[1] / "blobs" / "12ab.incomplete").write_bytes(b"half")
    with pytest.raises(
        SourceError, match=r"12ab\.incomplete: the download was cut short\. Run it again"
    ) as caught:
        load_source("hf:someone/half")
    assert "\n" not in str(caught.value)


def test_a_folder_fetched_in_part_is_said_to_be(tmp_path: Path) -> None:
    """`hf download --local-dir` keeps its halves below .cache."""
    half = tmp_path / ".cache" / "huggingface" / "download" / "x.incomplete"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"half")
    with pytest.raises(SourceError, match=r"no known checkpoint .*x\.incomplete: the download was cut short"):
        load_source(str(tmp_path))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("hf:nobody/nothing", "hf:nobody/nothing: not in the local cache, and the Hub cannot be reached"),
        ("hf:a/b/c", "expected ORG/NAME"),
        ("openclip:ViT-B-32", "expected openclip:ARCH/TAG"),
        ("openclip:ViT-B-32/made_up", "'made_up' is not a tag of ViT-B-32"),
        ("openclip:ViT-B-32/openai", "not in the local cache"),
        ("nowhere", "nowhere: no such source. Expected hf:ORG/NAME"),
        ("http://x/y", "no such source"),
    ],
)
def test_what_names_nothing_is_said_in_one_line(spec: str, message: str, hub: Path) -> None:
    with pytest.raises(SourceError, match=message) as caught:
        load_source(spec)
    assert "\n" not in str(caught.value)


def test_folders_of_no_format_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        SourceError, match=r"no known checkpoint \(edgeclip, Hugging Face, OpenCLIP, CLIP-MoE\)"
    ):
        load_source(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(SourceError, match="model_type is 'bert'"):
        load_source(str(tmp_path))
    with pytest.raises(SourceError, match="no such tokenizer file"):
        load_source(str(tmp_path), tokenizer=tmp_path / "none.json")


def test_a_tokenizer_of_choice(tmp_path: Path) -> None:
    write_hf(tmp_path / "a")
    write_hf(tmp_path / "b", merges=100)
    (tmp_path / "a" / "tokenizer.json").rename(tmp_path / "mine.json")
    source = load_source(str(tmp_path / "a"), tokenizer=tmp_path / "mine.json")
    assert json.loads(source.tokenizer_json) == json.loads((tmp_path / "mine.json").read_text())
    with pytest.raises(SourceError, match="pools at id 713, but its tokenizer ends texts with 613"):
        load_source(str(tmp_path / "a"), tokenizer=tmp_path / "b" / "tokenizer.json")


def _save(source: Source, folder: Path, model: DualEncoder | None = None, overwrite: bool = False) -> None:
    save_source(
        folder,
        model=model or source.model,
        preprocessing=source.preprocessing,
        text=source.text,
        tokenizer_json=source.tokenizer_json,
        licence=Licence(weights="MIT", warnings=("careful",)),
        templates=("a {}", "the {}"),
        overwrite=overwrite,
    )


def test_own_checkpoints_come_back_as_they_were(tmp_path: Path) -> None:
    write_hf(tmp_path / "hf")
    source = load_source(str(tmp_path / "hf"))
    _save(source, tmp_path / "own")
    back = load_source(str(tmp_path / "own"))
    pixels, ids = inputs(source)
    for a, b in zip(
        our_outputs(source.model, pixels, ids), our_outputs(back.model, pixels, ids), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert (back.preprocessing, back.text, back.pooling) == (
        source.preprocessing,
        source.text,
        source.pooling,
    )
    assert (back.licence, back.templates) == (
        Licence(weights="MIT", warnings=("careful",)),
        ("a {}", "the {}"),
    )
    assert json.loads(back.tokenizer_json) == json.loads(source.tokenizer_json)
    with pytest.raises(InputError, match="already exists"):
        _save(source, tmp_path / "own")
    _save(source, tmp_path / "own", overwrite=True)


def test_nano_checkpoints_come_back_as_they_were(tmp_path: Path) -> None:
    write_hf(tmp_path / "hf")
    source = load_source(str(tmp_path / "hf"))
    torch.manual_seed(0)
    config = NanoConfig(32, (4, 8), (1, 1), embed_dim=16, vocab_size=714, text_width=8, context_length=77)
    model = NanoCLIP(config).train()
    model.encode_image(torch.rand(4, 3, 32, 32))  # moves the running means
    _save(source, tmp_path / "own", model.eval())
    back = load_source(str(tmp_path / "own"))
    assert (back.family, back.embedding_dim, back.pooling) == ("nano", 16, "avg/weighted")
    assert not back.model.training
    pixels, ids = torch.rand(2, 3, 32, 32), torch.arange(12).view(2, 6)
    with torch.no_grad():
        torch.testing.assert_close(
            back.model.encode_image(pixels), model.encode_image(pixels), rtol=0, atol=0
        )
        torch.testing.assert_close(back.model.encode_text(ids), model.encode_text(ids), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("version", 2, "format version 2, this edgeclip reads 1"),
        ("family", "rnn", "family 'rnn', expected one of clip, nano"),
        ("config", {"image": {}}, "does not describe a model of family 'clip'"),
        ("licence", {"weights": "MIT", "colour": "red"}, "does not describe a model"),
        (
            "preprocessing.size",
            [64, 64],
            r"preprocessing.size is \(64, 64\), but the image tower takes \(32, 32\)",
        ),
        ("text.context_length", 78, "text.context_length is 78, but the text tower takes at most 77"),
        ("text.vocab_size", 715, "text.vocab_size is 715, but the text tower takes at most 714"),
    ],
)
def test_damaged_own_checkpoints_are_refused(key: str, value: object, message: str, tmp_path: Path) -> None:
    write_hf(tmp_path / "hf")
    _save(load_source(str(tmp_path / "hf")), tmp_path / "own")
    path = tmp_path / "own" / "config.json"
    data = json.loads(path.read_text())
    section, _, name = key.rpartition(".")
    (data[section] if section else data)[name] = value
    path.write_text(json.dumps(data))
    with pytest.raises(SourceError, match=message):
        load_source(str(tmp_path / "own"))


def test_other_models_cannot_be_saved(tmp_path: Path) -> None:
    write_hf(tmp_path / "hf")
    source = load_source(str(tmp_path / "hf"))
    with pytest.raises(SourceError, match="DualEncoder: no family"):
        _save(source, tmp_path / "own", DualEncoder())
    assert not (tmp_path / "own").exists()
