"""SigLIP's own tokenizer: canonical form between special tokens, then SentencePiece, exactly.

Its reference is SentencePiece itself, from which the tokenizers library departs in two ways. It looks up whole clusters of
characters in the table that normalises them, and takes the shortest match where SentencePiece takes the longest. And it adds
scores in double precision: of two ways to cut "0000" that are equally good, another one wins. So this cleaning, which needs the
vocabulary of the tokenizer.json, does the cutting too; other readers of that file come near to it.
"""

from __future__ import annotations

import base64
import json
import re
import string
import struct
from array import array
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CLEAN = "siglip"  # its name in TextSettings.clean
_SPACE = "\u2581"  # stands for a space in pieces
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_UNKNOWN = 10.0  # how much worse an unknown character is than the worst piece
_PREFIX = "<unk>"  # transformers cuts it with every text and drops it; scores, and so ties, start from it


def canonical_text(text: str) -> str:
    """Lower case, no ASCII punctuation, single spaces. Source: big_vision's canonicalisation, in transformers' order."""
    return " ".join(text.lower().translate(_NO_PUNCTUATION).split())


class SiglipTokenizer:
    """Texts to ids, as transformers' SiglipTokenizer makes them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Raises ValueError or struct.error where the tokenizer is not of SigLIP's kind, or damaged."""
        data = json.loads(tokenizer.to_str())
        if data["model"]["type"] != "Unigram":
            raise ValueError(f"expected a Unigram model, got {data['model']['type']}")
        self._special = {token["content"]: token["id"] for token in data["added_tokens"]}
        longest_first = sorted(self._special, key=len, reverse=True)
        self._parts = re.compile(f"({'|'.join(map(re.escape, longest_first)) or '$.'})")
        table = _charsmap(data["normalizer"] or {})
        self._charsmap = Charsmap(base64.b64decode(table, validate=True)) if table else None
        self._pieces = Pieces(data["model"], self._special)
        self._end: list[int] = list(tokenizer.encode("").ids)
        self._dropped = len(self._cut(""))

    def ids(self, text: str) -> list[int]:
        """Ids of one text, the end mark included."""
        found: list[int] = []
        for part in self._parts.split(_SPACE + text.replace(_SPACE, " ")):
            if part in self._special:
                found.append(self._special[part])
            elif part:
                found += self._cut(canonical_text(part))[self._dropped :]
        return found if found[-1:] == self._end else found + self._end

    def _cut(self, text: str) -> list[int]:
        text = _PREFIX + text
        if self._charsmap is not None:
            text = self._charsmap.apply(text)
        text = _SPACE + re.sub(" +", _SPACE, text)
        return self._pieces.cut(text.rstrip(_SPACE))


def _charsmap(normalizer: dict[str, Any]) -> str:
    steps = normalizer.get("normalizers", [normalizer])
    return next(
        (str(step["precompiled_charsmap"]) for step in steps if step.get("type") == "Precompiled"), ""
    )


class Pieces:
    """A unigram model's pieces: the best way to cut a text, with scores summed as SentencePiece sums them.

    Source: Kudo 2018, arXiv:1804.10959; the order of comparisons and the precision of sums are sentencepiece's.
    """

    def __init__(self, model: dict[str, Any], special: dict[str, int]) -> None:
        """`model`: of a tokenizer.json. `special`: tokens that are no pieces of texts."""
        every = {piece: i for i, (piece, _) in enumerate(model["vocab"])}
        scores = [score for _, score in model["vocab"]]
        self._bytes = [every[f"<0x{byte:02X}>"] for byte in range(256)] if model.get("byte_fallback") else []
        self._unk = int(model["unk_id"])
        reserved = {*special.values(), *self._bytes, self._unk}
        kept = {piece: i for piece, i in every.items() if i not in reserved}
        self._found = {piece: (i, scores[i]) for piece, i in kept.items()}
        self._longest = max(map(len, kept))
        self._unknown = min(scores[i] for i in kept.values()) - _UNKNOWN

    def cut(self, text: str) -> list[int]:
        """Ids of the best pieces; neighbouring unknown characters are one id, or the ids of their bytes."""
        size, found = len(text), self._found
        best = array("f", bytes(4 * (size + 1)))  # single precision, as there: it settles ties
        sums = array("f", (0.0,))
        last: list[tuple[int, int] | None] = [None] * (size + 1)  # start and id of the piece that ends here
        for start in range(size):
            so_far, single = best[start], text[start] in found
            for end in range(start + 1, min(start + self._longest, size) + 1):
                piece = found.get(text[start:end])
                if piece is None and (single or end > start + 1):
                    continue
                i, score = piece or (self._unk, self._unknown)
                sums[0] = so_far + score
                if last[end] is None or sums[0] > best[end]:
                    best[end], last[end] = sums[0], (start, i)
        ids: list[int] = []
        end = size
        while end:
            start, i = last[end] or (end - 1, self._unk)  # never None: every character ends a piece
            if i == self._unk and self._bytes:
                ids += [self._bytes[byte] for byte in reversed(text[start:end].encode())]
            elif i != self._unk or ids[-1:] != [i]:
                ids.append(i)
            end = start
        return ids[::-1]


class Charsmap:
    """SentencePiece's precompiled table of character sequences and what replaces each: a double array, then the strings.

    Source: darts-clone's layout of units (leaf flag, label, value, offset), as sentencepiece stores it.
    """

    def __init__(self, table: bytes) -> None:
        (size,) = struct.unpack_from("<I", table)
        self._units = struct.unpack_from(f"<{size // 4}I", table, 4)
        self._strings = table[4 + size :]

    def apply(self, text: str) -> str:
        """Replace the longest sequence that the table knows, at every place from left to right."""
        data, at, found = text.encode(), 0, bytearray()
        while at < len(data):
            length, value = self._longest(data, at)
            if length:
                found += self._strings[value : self._strings.index(0, value)]
            else:
                length = 1 if data[at] < 0xC0 else 2 if data[at] < 0xE0 else 3 if data[at] < 0xF0 else 4
                found += data[at : at + length]
            at += length
        return found.decode()

    def _longest(self, data: bytes, at: int) -> tuple[int, int]:
        """-> (bytes that match at `at`, 0 for none; where in the strings their replacement starts)."""
        units, length, value = self._units, 0, 0
        node = _offset(units[0])
        for i in range(at, len(data)):
            node ^= data[i]
            unit = units[node]
            if unit & 0x800000FF != data[i]:
                break
            node ^= _offset(unit)
            if unit >> 8 & 1:
                length, value = i + 1 - at, units[node] & 0x7FFFFFFF
        return length, value


def _offset(unit: int) -> int:
    return unit >> 10 << ((unit & 0x200) >> 6)
