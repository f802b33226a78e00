"""Tokenizers of the kinds that text towers use, with small vocabularies over every script, saved by transformers itself."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from edgeclip.models.loaders.tokenizer import byte_symbols
from tests.corpus import SCRIPTS


@cache
def _words() -> tuple[str, ...]:
    texts = [phrase for phrase, _ in SCRIPTS.values()] + [
        "a photo of two dogs running down an empty street, cats"
    ]
    return tuple(dict.fromkeys(word for text in texts for word in text.split()))


@cache
def _letters() -> tuple[str, ...]:
    """Single characters, composed and taken apart, in both cases."""
    found = {
        letter
        for word in _words()
        for form in (word, word.lower(), unicodedata.normalize("NFD", word))
        for letter in form
    }
    found |= {chr(c) for c in range(0x21, 0x7F)} | {chr(c) for c in range(0x4E00, 0x4E40)}
    return tuple(sorted(found))


def write_bert_tokenizer(folder: Path, *, lower: bool = True, legacy: bool = False, room: int = 0) -> int:
    """BertTokenizer's files. -> its size.

    Args:
        lower: lower-cases and strips accents.
        legacy: vocab.txt and tokenizer_config.json only, as older repositories have it.
        room: unused pieces, so that the vocabulary is as large as wanted.
    """
    from transformers import BertTokenizer

    special = ["[PAD]", *(f"[unused{i}]" for i in range(1, 9)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [word.lower() if lower else word for word in _words()]
    pieces = [*special, *_letters(), *(f"##{letter}" for letter in _letters()), *words, "##ing", "##s"]
    vocab = _numbered([*pieces, *_room(len(dict.fromkeys(pieces)), room)])
    BertTokenizer(vocab=vocab, do_lower_case=lower).save_pretrained(folder)
    if legacy:
        (folder / "tokenizer.json").unlink()
        (folder / "vocab.txt").write_text("\n".join(vocab) + "\n", encoding="utf-8")
    return len(vocab)


def write_roberta_tokenizer(folder: Path, *, legacy: bool = False, room: int = 0) -> int:
    """RobertaTokenizer's files. -> its size. `legacy`: vocab.json and merges.txt, without tokenizer.json. `room`: as above."""
    from transformers import RobertaTokenizer

    pairs = "\u0120 a,\u0120 t,i n,in g,\u0120 p,h o,\u0120p ho,t o,\u0120pho to,o f,\u0120 of,\u00c3 \u00a9,\u0120t w"
    merges = [(left, right) for left, right in (pair.split() for pair in pairs.split(","))]
    symbols = [symbol for _, symbol in sorted(byte_symbols().items())]
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *symbols, *("".join(pair) for pair in merges), "<mask>"]
    vocab = _numbered([*tokens, *_room(len(tokens), room)])
    RobertaTokenizer(vocab=vocab, merges=merges).save_pretrained(folder)
    if legacy:
        (folder / "tokenizer.json").unlink()
        (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
        lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
        (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(vocab)


def _unigrams(special: list[str], last: list[str]) -> list[tuple[str, float]]:
    """Pieces and their log probabilities, the words more likely than their letters."""
    words = [(f"\u2581{word}", -6.0 - len(word) / 10) for word in _words()]
    letters = [(letter, -12.0 - i / 1e4) for i, letter in enumerate(("\u2581", *_letters()))]
    pieces = {
        **dict.fromkeys(special, 0.0),
        **dict(letters),
        **dict(words),
        **dict.fromkeys(last, 0.0),
    }
    return list(pieces.items())


def write_xlm_roberta_tokenizer(folder: Path, *, room: int = 0) -> int:
    """XLMRobertaTokenizer's files. -> its size. `room`: as above."""
    from transformers import XLMRobertaTokenizer

    vocab = _unigrams(["<s>", "<pad>", "</s>", "<unk>"], ["<mask>"])
    vocab += [(token, -100.0) for token in _room(len(vocab), room)]
    XLMRobertaTokenizer(vocab=vocab).save_pretrained(folder)
    return len(vocab)


def write_t5_tokenizer(folder: Path, *, room: int = 0, **settings: Any) -> int:
    """T5Tokenizer's files, with the hundred reserved tokens behind the vocabulary. -> its size without them. `room`: as above."""
    from transformers import T5Tokenizer

    reserved = [f"<extra_id_{i}>" for i in reversed(range(100))]
    vocab = _unigrams(["<pad>", "</s>", "<unk>"], [])
    vocab += [(token, -100.0) for token in _room(len(vocab), room)] + [(token, 0.0) for token in reserved]
    T5Tokenizer(vocab=vocab, **settings).save_pretrained(folder)
    return len(vocab) - len(reserved)


def write_json(path: Path, data: Any) -> None:
    """A JSON file."""
    path.write_text(json.dumps(data), encoding="utf-8")


def _room(found: int, wanted: int) -> list[str]:
    return [f"[room{i}]" for i in range(wanted - found)]


def _numbered(tokens: Iterable[str]) -> dict[str, int]:
    return {token: i for i, token in enumerate(dict.fromkeys(tokens))}
