"""`tokenizer.json` for CLIP's byte-pair encoding, from whatever form the vocabulary is at hand in."""

from __future__ import annotations

import gzip
import importlib.util
import json
import re
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from edgeclip.errors import SourceError
from edgeclip.models.loaders.checkpoint import read_json

# What both libraries cut a text into before the merges: contractions, words, single digits, runs of anything else.
_PIECES = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_MERGES = 49152 - 256 - 2  # how many lines of OpenAI's vocabulary file count
OPENCLIP_MARKS, OPENAI_MARKS = ("<start_of_text>", "<end_of_text>"), ("<|startoftext|>", "<|endoftext|>")

Merges = Sequence[tuple[str, str]]


def read_tokenizer(path: Path) -> bytes:
    """A `tokenizer.json`, with its own padding and truncation taken out: the runtime does both.

    Raises:
        SourceError: the file is missing or the tokenizers library cannot read it.
    """
    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror}). Is the download complete?") from error
    except Exception as error:  # the library raises a bare Exception
        raise SourceError(f"{path}: not a tokenizer.json ({error}). Fetch it again.") from error
    return plain(tokenizer)


def clip_tokenizer(vocab: dict[str, int], merges: Merges, *, bos: str, eos: str, unk: str, pad: str) -> bytes:
    """The tokenizer that transformers' CLIPTokenizer makes of vocab.json and merges.txt.

    Args:
        bos, eos, unk, pad: the special tokens: start and end of a text, what the vocabulary lacks, padding. As there,
            each is one token wherever it stands in a text, even a pad token "!".
    """
    tokenizer = Tokenizer(BPE(vocab, list(merges), end_of_word_suffix="</w>", unk_token=unk))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    # again=True: transformers cuts the pieces once more, which tells where a lower-cased mark was matched as one
    _finish(tokenizer, r"<\|startoftext\|>|<\|endoftext\|>|" + _PIECES, vocab, (bos, eos), again=True)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in (unk, pad)])
    return plain(tokenizer)


def openclip_tokenizer(merges: Merges, marks: tuple[str, str] = OPENCLIP_MARKS) -> bytes:
    """The tokenizer that equals open_clip's SimpleTokenizer on text that has been cleaned its way.

    The vocabulary follows from the merges: 256 byte symbols, the same with a word's end, one symbol a merge, two marks.

    Args:
        marks: that start and end a text, and are one token each where a text holds them; all that open_clip changed of OpenAI's.
    """
    symbols = [symbol for _, symbol in sorted(byte_symbols().items(), key=_openai_order)]
    vocab = [
        *symbols,
        *(symbol + "</w>" for symbol in symbols),
        *("".join(merge) for merge in merges),
        *marks,
    ]
    ids = {symbol: i for i, symbol in enumerate(vocab)}
    tokenizer = Tokenizer(BPE(ids, list(merges), end_of_word_suffix="</w>", unk_token=marks[1]))
    # open_clip's pattern passes over this one sign: without regard to case it is both a letter and none
    tokenizer.normalizer = normalizers.Replace("\u0345", " ")
    # (?i): open_clip matches its contractions whatever their case, e.g. 'ſ, which no lower-casing makes an s
    _finish(tokenizer, f"(?i){'|'.join(map(re.escape, marks))}|{_PIECES}", ids, marks)
    return plain(tokenizer)


def _finish(
    tokenizer: Tokenizer, pattern: str, vocab: dict[str, int], marks: tuple[str, str], *, again: bool = False
) -> None:
    start, end = marks
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=again),
        ]
    )
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    tokenizer.post_processor = processors.RobertaProcessing(
        (end, vocab[end]), (start, vocab[start]), trim_offsets=False, add_prefix_space=False
    )
    tokenizer.add_special_tokens([AddedToken(mark, normalized=False, special=True) for mark in marks])


def plain(tokenizer: Tokenizer) -> bytes:
    """A tokenizer.json without padding and truncation."""
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return str(tokenizer.to_str()).encode()


def byte_symbols() -> dict[int, str]:
    """The printable character that stands for each byte in the vocabulary; those without one go to U+0100 and on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    shifted = (byte for byte in range(256) if byte not in printable)
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(shifted)}


def _openai_order(item: tuple[int, str]) -> tuple[bool, int]:
    byte, symbol = item
    return symbol != chr(byte), byte  # printable bytes first, then the shifted ones


def read_merges(path: Path) -> list[tuple[str, str]]:
    """The merges from OpenAI's `bpe_simple_vocab_16e6.txt.gz`, a `merges.txt`, or a `tokenizer.json`.

    Raises:
        SourceError: the file is missing or is none of these.
    """
    if path.suffix == ".json":
        model = read_json(path).get("model")
        merges = model.get("merges") if isinstance(model, dict) else None
        if not isinstance(merges, list):
            raise SourceError(f"{path}: expected a tokenizer.json of a byte-pair encoding, found no merges.")
        lines = [" ".join(merge) if isinstance(merge, list) else str(merge) for merge in merges]
    else:
        try:
            raw = path.read_bytes()
            text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8")
        except (OSError, EOFError, UnicodeDecodeError) as error:
            raise SourceError(f"{path}: cannot be read as merges ({error}).") from error
        lines = text.split("\n")
        if "bpe_simple_vocab" in lines[0]:
            lines = lines[: _MERGES + 1]  # OpenAI's file goes on with merges that its tokenizer leaves out
        if "#version" in lines[0]:
            lines = lines[1:]
    merges_found = [tuple(line.split()) for line in lines if line.strip()]
    for line in merges_found:
        if len(line) != 2:
            raise SourceError(
                f"{path}: expected two symbols a line, got {' '.join(line)!r}. This is no merges file."
            )
    return [(line[0], line[1]) for line in merges_found]


def installed_merges() -> Path | None:
    """The vocabulary file of an installed open_clip package, found without importing it; None without one."""
    found = importlib.util.find_spec("open_clip")
    if found is None or not found.origin:
        return None
    path = Path(found.origin).parent / "bpe_simple_vocab_16e6.txt.gz"
    return path if path.is_file() else None


def read_vocab(path: Path) -> dict[str, int]:
    """A `vocab.json`. Raises SourceError if it is no mapping of tokens to ids."""
    vocab = read_json(path)
    if not all(type(value) is int for value in vocab.values()):
        raise SourceError(f"{path}: expected tokens and their ids. Fetch it again.")
    return vocab


def token_id(tokenizer_json: bytes, token: str) -> int | None:
    """The id of a token, None if the tokenizer has no such token."""
    found: int | None = Tokenizer.from_str(tokenizer_json.decode()).token_to_id(token)
    return found


def without_rowless(tokenizer_json: bytes, rows: int) -> bytes:
    """The same without reserved tokens that a tower has no rows for, as T5's <extra_id_0>: its own library fails on them."""
    data = json.loads(tokenizer_json)
    gone = {token["content"] for token in data["added_tokens"] if token["special"] and token["id"] >= rows}
    if not gone:
        return tokenizer_json
    data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] not in gone]
    vocab = data["model"]["vocab"]
    if isinstance(vocab, list):  # Unigram: pairs of piece and score, an id is a place in the list
        while vocab and vocab[-1][0] in gone:
            vocab.pop()
    else:
        data["model"]["vocab"] = {token: i for token, i in vocab.items() if token not in gone}
    return json.dumps(data, ensure_ascii=False).encode()


def end_as(tokenizer_json: bytes, old: int, new: int) -> bytes:
    """The same with another id for the mark that ends a text."""
    data = json.loads(tokenizer_json)
    processor = data["post_processor"] or {}
    if (
        isinstance(processor.get("sep"), list) and processor["sep"][1] == old
    ):  # BertProcessing, RobertaProcessing
        processor["sep"][1] = new
    for entry in (processor.get("special_tokens") or {}).values():
        entry["ids"] = [new if i == old else i for i in entry["ids"]]
    return json.dumps(data, ensure_ascii=False).encode()
