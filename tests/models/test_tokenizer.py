"""Tokenizers that edgeclip writes, against the libraries' own, on every script that Unicode has."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from edgeclip.errors import SourceError
from edgeclip.models.loaders.tokenizer import (
    clip_tokenizer,
    installed_merges,
    openclip_tokenizer,
    read_merges,
)
from tests.checkpoints import clip_vocabulary, write_hf_tokenizer

MARKS = [
    "<start_of_text> x",
    "<|startoftext|>cat <|endoftext|>",
    "'\u017f it'\u017f",
    "a\u200bb\u00a0c",
    "",
    "x" * 300,
]


def characters(step: int) -> Iterator[str]:
    """Every assigned character, each in the places where its class decides how a text is cut; every `step`-th of the Han and Hangul."""
    for point in range(0x20, 0x30000):
        character = chr(point)
        many = 0x3400 <= point < 0xA000 or 0xAC00 <= point < 0xD7A4 or point >= 0x17000
        if unicodedata.category(character) not in ("Cn", "Co", "Cs") and not (many and point % step):
            yield f"a{character}b '{character}x 1{character} !{character} {character}"


@pytest.mark.parametrize(
    "every", [5, pytest.param(1, marks=pytest.mark.parity)]
)  # it takes one text at a time
def test_openclip_ids(every: int) -> None:
    import open_clip
    from open_clip.tokenizer import get_clean_fn

    path = installed_merges()
    assert path is not None
    ours, theirs, clean = (
        Tokenizer.from_str(openclip_tokenizer(read_merges(path)).decode()),
        open_clip.SimpleTokenizer(),
        get_clean_fn("lower"),
    )
    for text in [*MARKS, *[*characters(17)][::every]]:
        assert ours.encode(clean(text)).ids == [49406, *theirs.encode(text), 49407], text


@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.parity)])
def test_transformers_ids(every: int) -> None:
    from transformers import CLIPTokenizer

    vocab, merges = clip_vocabulary()
    end = "<|endoftext|>"
    ours = Tokenizer.from_str(
        clip_tokenizer(vocab, merges, bos="<|startoftext|>", eos=end, unk=end, pad=end).decode()
    )
    texts = [*MARKS, *[*characters(17)][::every]]
    for text, ids in zip(texts, CLIPTokenizer(vocab=vocab, merges=merges)(texts).input_ids, strict=True):
        assert ours.encode(text).ids == ids, text


def test_merges_from_every_form_are_the_same(tmp_path: Path) -> None:
    path = installed_merges()
    assert path is not None
    merges = read_merges(path)
    assert (len(merges), merges[0], merges[-1]) == (48894, ("i", "n"), ("jeky", "ll</w>"))
    write_hf_tokenizer(tmp_path / "new")
    write_hf_tokenizer(tmp_path / "old", legacy=True)
    assert read_merges(tmp_path / "new" / "tokenizer.json") == merges
    assert read_merges(tmp_path / "old" / "merges.txt") == merges


@pytest.mark.parametrize(
    ("name", "content"),
    [("merges.txt", "a b c\n"), ("x.gz", "\x1f\u008bxx"), ("tokenizer.json", "{}"), ("none", None)],
)
def test_what_is_no_vocabulary_is_refused(name: str, content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(SourceError, match=name):
        read_merges(tmp_path / name)
