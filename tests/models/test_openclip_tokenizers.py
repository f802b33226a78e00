"""Tokenizers of Hugging Face in OpenCLIP folders: open_clip's own ids, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from edgeclip.errors import SourceError
from edgeclip.models.config import TextConfig, TransformerConfig
from edgeclip.models.loaders.openclip.texts import read_text
from edgeclip.models.source import Request
from edgeclip.runtime.text import TextEncoder
from tests import sentencepieces
from tests.corpus import corpus
from tests.models.test_sources import hub, lay_out  # noqa: F401
from tests.vocabularies import (
    write_bert_tokenizer,
    write_json,
    write_roberta_tokenizer,
    write_t5_tokenizer,
    write_xlm_roberta_tokenizer,
)

NAME = "someone/tokenizer"
MARKS = [
    "a [SEP] b [PAD] [MASK] [mask] [CLS]",
    "a <mask> b<mask>c <s></s> <pad>",
    "  <mask>  ",
    "[UNK]<unk> <MASK>",
]
WRITERS = {
    "bert": write_bert_tokenizer,
    "bert, vocab.txt": lambda folder: write_bert_tokenizer(folder, legacy=True),
    "bert, cased": lambda folder: write_bert_tokenizer(folder, lower=False, legacy=True),
    "roberta": write_roberta_tokenizer,
    "roberta, merges": lambda folder: write_roberta_tokenizer(folder, legacy=True),
    "xlm-roberta": write_xlm_roberta_tokenizer,
    "xlm-roberta, trained": lambda folder: sentencepieces.write_xlm_roberta_tokenizer(folder),
    "xlm-roberta, sentencepiece": lambda folder: sentencepieces.write_xlm_roberta_tokenizer(
        folder, legacy=True
    ),
    "t5": write_t5_tokenizer,
    "t5, sentencepiece": lambda folder: write_t5_model(folder),
    "t5 padded with the end": lambda folder: write_t5_tokenizer(folder, pad_token="</s>"),
}


def write_t5_model(folder: Path) -> int:
    """spiece.model and tokenizer_config.json only, as google/mt5-base has it. -> pieces."""
    from transformers import T5Tokenizer

    path = folder / "spiece.model"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_bytes(sentencepieces.trained("siglip"))
    T5Tokenizer.from_pretrained(folder, extra_ids=0).save_pretrained(folder)
    (folder / "tokenizer.json").unlink()
    return len(sentencepieces.proto(path.read_bytes()).pieces)


def tower(rows: int) -> TextConfig:
    return TextConfig(TransformerConfig(64, 1, 1, 64), rows, 77, pool="last", causal=False)


def read(folder: Path, rows: int, spec: str = "", tokenizer: Path | None = None, **text_cfg: Any) -> Any:
    request = Request(spec or str(folder), tokenizer=tokenizer)
    return read_text(folder, {"hf_tokenizer_name": NAME, **text_cfg}, tower(rows), request, "config")


@pytest.mark.parametrize("name", WRITERS)
def test_ids_are_open_clips_own(name: str, tmp_path: Path) -> None:
    compare(name, {}, tmp_path)


@pytest.mark.parametrize("clean", ["canonicalize", "lower", "whitespace"])
def test_cleaning_is_open_clips_own(clean: str, tmp_path: Path) -> None:
    compare("bert, cased", {"clean": clean}, tmp_path)


def test_the_end_of_a_text_may_become_padding(tmp_path: Path) -> None:
    found = compare("bert", {"strip_sep_token": True}, tmp_path)
    assert (found[:, 76] == 0).all(), "even of a text that was cut"


def compare(name: str, kwargs: dict[str, Any], folder: Path) -> Any:
    from open_clip.tokenizer import HFTokenizer

    tokenizer_json, settings = read(folder, WRITERS[name](folder), tokenizer_kwargs=kwargs)
    texts = [*([] if kwargs.get("strip_sep_token") else MARKS), *corpus()[:300], *corpus()[300::5]]
    found = TextEncoder(Tokenizer.from_str(tokenizer_json.decode()), settings).encode(texts).input_ids
    wanted = HFTokenizer(str(folder), context_length=77, **kwargs)(texts).numpy()
    wrong = np.flatnonzero((found != wanted).any(axis=1))
    assert not len(wrong), [(texts[i], found[i].tolist(), wanted[i].tolist()) for i in wrong[:2]]
    return found


def test_reserved_tokens_without_rows_are_letters(tmp_path: Path) -> None:
    rows = write_t5_tokenizer(tmp_path)
    tokenizer_json, settings = read(tmp_path, rows)
    assert settings.vocab_size == rows
    tokenizer = Tokenizer.from_str(tokenizer_json.decode())
    assert tokenizer.get_vocab_size() == rows
    assert max(tokenizer.encode("a <extra_id_0> b").ids) < rows


def test_the_hubs_tokenizer_is_taken_for_a_source_of_the_hub(hub: Path) -> None:  # noqa: F811
    rows = write_bert_tokenizer(lay_out(hub, NAME))
    folder = lay_out(hub, "someone/model")
    tokenizer_json, settings = read(folder, rows, "hf:someone/model")
    assert (Tokenizer.from_str(tokenizer_json.decode()).get_vocab_size(), settings.pad_id) == (rows, 0)
    with pytest.raises(SourceError, match="its tokenizer, someone/other: not in the local cache"):
        read(folder, rows, "openclip:ViT-B-16-SigLIP/someone/model", hf_tokenizer_name="someone/other")


def test_a_local_folder_says_which_tokenizer_it_wants(tmp_path: Path) -> None:
    for spec in ("", f"openclip:ViT-B-16/{tmp_path}"):
        with pytest.raises(SourceError, match=r"no tokenizer.json.* 'someone/tokenizer'.*--tokenizer FILE"):
            read(tmp_path, 100, spec)


@pytest.mark.parametrize("file", ["tokenizer.json", "vocab.txt"])
def test_a_tokenizer_may_be_passed(file: str, tmp_path: Path) -> None:
    rows = write_bert_tokenizer(tmp_path / "its", legacy=file == "vocab.txt")
    passed, settings = read(tmp_path, rows, tokenizer=tmp_path / "its" / file)
    assert (passed, settings) == read(tmp_path / "its", rows)


def test_unfit_tokenizers_are_refused(tmp_path: Path) -> None:
    rows = write_bert_tokenizer(tmp_path)
    for change, message in (
        ({"rows": rows - 1}, "largest id is"),
        ({"rows": 2 * rows}, "has .* tokens, the text tower .* 'someone/tokenizer' with --tokenizer FILE"),
        ({"tokenizer_kwargs": {"clean": "ftfy"}}, "text cleaning 'ftfy'"),
        ({"tokenizer_kwargs": {"language": "de"}}, "language.* describes a tokenizer"),
    ):
        with pytest.raises(SourceError, match=message):
            read(tmp_path, **{"rows": rows, **change})
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "padding_side": "left"}))
    with pytest.raises(SourceError, match="padding_side is 'left'"):
        read(tmp_path, rows)


def test_a_sentencepiece_model_of_unknown_use_is_refused(tmp_path: Path) -> None:
    rows = write_t5_model(tmp_path)
    for name in ("AlbertTokenizer", "XLMRobertaTokenizer", None):
        write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": name})
        with pytest.raises(
            SourceError,
            match=f"a SentencePiece model for {name}; edgeclip converts sentencepiece.bpe.model of",
        ):
            read(tmp_path, rows)


@pytest.mark.parametrize("write", [write_bert_tokenizer, write_roberta_tokenizer])
def test_a_vocabulary_without_its_marks_is_refused(write: Any, tmp_path: Path) -> None:
    rows = write(tmp_path, legacy=True)
    path = next(tmp_path / name for name in ("vocab.txt", "vocab.json") if (tmp_path / name).is_file())
    path.write_text(
        path.read_text(encoding="utf-8").replace("[SEP]", "[X]").replace("<mask>", "<x>"), encoding="utf-8"
    )
    with pytest.raises(SourceError, match=f"{path.name}: the special token .* is not in it"):
        read(tmp_path, rows)
