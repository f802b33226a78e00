"""The files beside a Hugging Face model's weights that say how texts are prepared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeclip.bundle.manifest import TextSettings
from edgeclip.errors import SourceError
from edgeclip.models.config import TextTowerConfig
from edgeclip.models.loaders import common
from edgeclip.models.loaders.bert_tokenizer import bert_tokenizer, read_pieces, roberta_tokenizer
from edgeclip.models.loaders.checkpoint import read_json
from edgeclip.models.loaders.sentencepiece import t5_tokenizer, xlm_roberta_tokenizer
from edgeclip.models.loaders.tokenizer import (
    clip_tokenizer,
    read_merges,
    read_tokenizer,
    read_vocab,
    token_id,
)

# Any one of these sets makes a tokenizer; the second are settings beside them, the later file winning.
TOKENIZER_FILES = (
    *(("tokenizer.json",), ("vocab.txt",), ("sentencepiece.bpe.model",), ("spiece.model",)),
    ("vocab.json", "merges.txt"),
)
TOKENIZER_CONFIGS = ("special_tokens_map.json", "tokenizer_config.json")
# A SentencePiece model does not say whose special ids it is used with: tokenizer_class -> file, converter, its special tokens.
_SENTENCEPIECE: dict[str, tuple[str, Callable[..., bytes], dict[str, str]]] = {
    "XLMRobertaTokenizer": (
        "sentencepiece.bpe.model",
        xlm_roberta_tokenizer,
        {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "pad": "<pad>", "mask": "<mask>"},
    ),
    "T5Tokenizer": ("spiece.model", t5_tokenizer, {"eos": "</s>", "unk": "<unk>", "pad": "<pad>"}),
}
_PADS = ("<|endoftext|>", "[PAD]", "<pad>")  # of CLIP, BERT, and RoBERTa or T5; no vocabulary has two of them


def folder_tokenizer(folder: Path) -> bytes:
    """The folder's tokenizer.json, or one made of what TOKENIZER_FILES names. Raises SourceError without either."""
    if (folder / "tokenizer.json").is_file():
        return read_tokenizer(folder / "tokenizer.json")
    stated, (vocab, merges) = stated_tokenizer(folder), (folder / name for name in TOKENIZER_FILES[-1])
    if (pieces := folder / "vocab.txt").is_file():
        return bert_tokenizer(read_pieces(pieces), stated, str(pieces))
    if not has_tokenizer(folder):
        raise SourceError(
            f"{folder}: expected tokenizer.json, vocab.txt, or vocab.json and merges.txt. Pass one with --tokenizer FILE."
        )
    if not vocab.is_file():
        return _from_sentencepiece(folder, stated)
    if not any(token.endswith("</w>") for token in read_vocab(vocab)):  # CLIP's merges mark the end of words
        return roberta_tokenizer(read_vocab(vocab), read_merges(merges), stated, str(vocab))
    tokens = _special_tokens(folder)
    ids = read_vocab(vocab)
    for token in tokens.values():
        if token not in ids:
            raise SourceError(
                f"{vocab}: the special token {token!r} is not in it. The vocabulary belongs to another model."
            )
    return clip_tokenizer(ids, read_merges(merges), **tokens)


def _from_sentencepiece(folder: Path, stated: dict[str, Any]) -> bytes:
    kind = str(stated.get("tokenizer_class")).removesuffix("Fast")
    file, convert, defaults = _SENTENCEPIECE.get(kind, ("", t5_tokenizer, {}))
    if not (folder / file).is_file():
        known = ", ".join(f"{name} of {kind}" for kind, (name, *_) in _SENTENCEPIECE.items())
        raise SourceError(
            f"{folder}: a SentencePiece model for {kind}; edgeclip converts {known}. "
            "Load it with transformers, save it again, and pass that tokenizer.json with --tokenizer FILE."
        )
    return convert(
        folder / file, **{name: stated.get(f"{name}_token") or token for name, token in defaults.items()}
    )


def _special_tokens(folder: Path) -> dict[str, str]:
    """The tokens for bos, eos, unk and pad, as the folder states them over CLIPTokenizer's defaults."""
    tokens = {"bos": "<|startoftext|>", **dict.fromkeys(("eos", "unk", "pad"), "<|endoftext|>")}
    stated = stated_tokenizer(folder)
    return {name: stated.get(f"{name}_token") or token for name, token in tokens.items()}


def has_tokenizer(folder: Path) -> bool:
    """Whether `folder_tokenizer` finds files to make one of."""
    return any(all((folder / name).is_file() for name in names) for names in TOKENIZER_FILES)


def stated_tokenizer(folder: Path) -> dict[str, Any]:
    """What a folder's own files say of its tokenizer; a token that is given with its attributes as its text."""
    found: dict[str, Any] = {}
    for name in TOKENIZER_CONFIGS:
        data = read_json(folder / name) if (folder / name).is_file() else {}
        for key, value in data.items():
            text = value.get("content") if key.endswith("_token") and isinstance(value, dict) else value
            if not key.endswith("_token") or isinstance(text, str | bool):  # bool: whether one is added
                found[key] = text
    return found


def pad_id(folder: Path, tokenizer_json: bytes, pads: tuple[str, ...] = _PADS) -> int:
    """The id that texts are padded with, as the folder states it, else the first of `pads` that there is.

    Raises:
        SourceError: the tokenizer has no such token, or the folder pads or cuts on the left.
    """
    stated = stated_tokenizer(folder)
    for name in ("padding_side", "truncation_side"):
        if stated.get(name, "right") != "right":
            raise SourceError(
                f"{folder}: {name} is {stated[name]!r}; edgeclip pads and cuts texts on the right."
            )
    wanted = (stated["pad_token"],) if stated.get("pad_token") else pads
    found = (token_id(tokenizer_json, token) for token in wanted)
    if (first := next((i for i in found if i is not None), None)) is None:
        raise SourceError(
            f"{folder}: the padding token {wanted[0]!r} is not in the tokenizer. It belongs to another model."
        )
    return first


def text_settings(
    folder: Path,
    config: TextTowerConfig,
    tokenizer_json: bytes,
    *,
    pads: tuple[str, ...] = _PADS,
    clean: str = "none",
) -> TextSettings:
    """Padding, length and cleaning of texts, from the tokenizer's files. Raises SourceError for a padding token that is none."""
    stated = stated_tokenizer(folder).get("model_max_length")
    limit = None  # 1e30 stands for that too
    if isinstance(stated, int | float) and not isinstance(stated, bool) and 1 <= stated < 1e6:
        limit = int(stated)
    return common.text_settings(
        config,
        tokenizer_json,
        pad_id=pad_id(folder, tokenizer_json, pads),
        clean=clean,
        where=str(folder),
        limit=limit,
    )
