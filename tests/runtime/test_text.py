"""Cleaning and tokenizing: the source libraries' own ids on a corpus that breaks tokenizers."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from edgeclip.bundle import TextSettings
from edgeclip.errors import BundleError, InputError
from edgeclip.runtime.text import TextEncoder, clean
from edgeclip.runtime.text.clean import _PLAIN
from edgeclip.runtime.text.tokenize import MAX_CHARACTERS
from tests.corpus import SCRIPTS, corpus

CORPUS = corpus()
LENGTH = 77


def test_the_corpus_is_what_it_says() -> None:
    assert len(CORPUS) >= 5000
    assert len(SCRIPTS) >= 30
    assert corpus() == CORPUS, "it must be the same on every run"
    assert sum(len(text) > 400 for text in CORPUS) >= 5, "some lines must be overlong"


def compare(
    found: np.ndarray, wanted: np.ndarray, texts: list[str] = CORPUS
) -> list[tuple[str, list[int], list[int]]]:
    wrong = np.flatnonzero((found != wanted).any(axis=1))
    return [(texts[i], found[i].tolist(), wanted[i].tolist()) for i in wrong[:3]]


def test_ids_equal_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from edgeclip.models.loaders.tokenizer import clip_tokenizer
    from tests.checkpoints import clip_vocabulary

    vocab, merges = clip_vocabulary()
    mark = "<|endoftext|>"
    (tmp_path / "t.json").write_bytes(
        clip_tokenizer(vocab, merges, bos="<|startoftext|>", eos=mark, unk=mark, pad=mark)
    )
    end = vocab[mark]
    encoder = TextEncoder.open(tmp_path / "t.json", TextSettings(LENGTH, end, end, dynamic_length=False))
    theirs = transformers.CLIPTokenizer(vocab=vocab, merges=merges)
    found = encoder.encode(CORPUS)
    wanted = theirs(CORPUS, padding="max_length", max_length=LENGTH, truncation=True)["input_ids"]
    assert compare(found.input_ids, np.array(wanted)) == []
    assert len(found.truncated) > 5


@pytest.mark.parametrize(
    "every", [3, pytest.param(1, marks=pytest.mark.parity)]
)  # it takes one text at a time
def test_ids_equal_open_clip(every: int, tmp_path: Path) -> None:
    import tests.torchvision_shim  # noqa: F401

    open_clip = pytest.importorskip("open_clip")
    from edgeclip.models.loaders.tokenizer import installed_merges, openclip_tokenizer, read_merges

    path = installed_merges()
    assert path is not None
    (tmp_path / "t.json").write_bytes(openclip_tokenizer(read_merges(path)))
    for how, theirs in (("openai", "lower"), ("canonicalize", "canonicalize")):
        settings = TextSettings(LENGTH, 0, 49407, dynamic_length=False, clean=how)  # type: ignore[arg-type]
        encoder = TextEncoder.open(tmp_path / "t.json", settings)
        texts = CORPUS[::every]
        wanted = open_clip.SimpleTokenizer(clean=theirs)(texts, context_length=LENGTH).numpy()
        assert compare(encoder.encode(texts).input_ids, wanted, texts) == [], how


def toy(length: int = 6, dynamic: bool = True, eos: int | None = 2) -> TextEncoder:
    from tests.runtime.toy import tokenizer

    return TextEncoder(tokenizer(), TextSettings(length, 0, eos, dynamic_length=dynamic, clean="lower"))


def test_lengths_and_padding() -> None:
    found = toy().encode(["Cat", "a photo of"])
    assert found.input_ids.tolist() == [[1, 5, 2, 0, 0], [1, 4, 8, 9, 2]]
    assert found.input_ids.dtype == np.int32
    assert (found.lengths, found.truncated) == ((3, 5), ())
    assert toy(dynamic=False).encode(["cat"]).input_ids.tolist() == [[1, 5, 2, 0, 0, 0]]
    assert toy().encode([]).input_ids.shape == (0, 1)
    assert toy().encode([""]).input_ids.tolist() == [[1, 2]]


def test_cut_texts_end_with_the_end_mark() -> None:
    found = toy().encode(["cat", "a a a a a", "a a a a"])
    assert found.truncated == (1,)  # the third has exactly six ids
    assert found.input_ids[1].tolist() == [1, 4, 4, 4, 4, 2]
    assert toy(eos=None).encode(["a a a a a"]).input_ids.tolist() == [[1, 4, 4, 4, 4, 4]]
    with pytest.raises(
        InputError,
        match=r"1 of 1 texts are longer than 6 tokens, the first is texts\[0\] with 7: 'a a a a a'",
    ):
        toy().encode(["a a a a a"], strict=True)


def test_what_is_no_text() -> None:
    encoder = toy()
    with pytest.raises(InputError, match=r"texts\[1\]: expected a str, got bytes"):
        encoder.encode(["a", b"a"])  # type: ignore[list-item]
    with pytest.raises(InputError, match=r"texts\[0\]: cannot be tokenized"):
        encoder.encode(["\ud800"])
    with pytest.raises(InputError, match="the limit is"):
        encoder.encode(["a" * (MAX_CHARACTERS + 1)])


def test_damaged_tokenizer_file(tmp_path: Path) -> None:
    for content in ("", "{}", "[1]", "\0"):
        (tmp_path / "t.json").write_text(content)
        with pytest.raises(BundleError, match=r"t\.json: not a tokenizer"):
            TextEncoder.open(tmp_path / "t.json", TextSettings(6, 0, 2, dynamic_length=True))


def test_the_short_way_around_ftfy_is_the_identity() -> None:
    import ftfy

    plain = [text for text in CORPUS if _PLAIN.fullmatch(text)]
    assert len(plain) > 100
    every_pair = [f"{chr(a)}{chr(b)}" for a in range(128) for b in range(128)]
    for text in [*plain, *(pair for pair in every_pair if _PLAIN.fullmatch(pair))]:
        assert ftfy.fix_text(text) == text
    # and what it must not take: controls, carriage returns, entities, anything beyond ASCII
    assert not any(_PLAIN.fullmatch(text) for text in ("a\rb", "a&amp;", "é", "\x1b[0m", "\x7f", "\0"))


def test_cleaning_by_hand() -> None:
    assert clean("  A  B\n", "none") == "  A  B\n"
    assert clean("A B", "lower") == "a b"
    assert clean("  A &amp;amp; cafÃ©\n", "openai") == "a & café"
    assert clean("Hello, World_wide! 'x'", "canonicalize") == "hello world wide x"


def test_plain_texts_do_not_import_ftfy() -> None:
    code = (
        "import sys; from edgeclip.runtime.text import clean; clean('A photo of a cat.', 'openai');"
        "assert 'ftfy' not in sys.modules; clean('caf\\u00e9', 'openai'); assert 'ftfy' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, re.sub(r"(?s).*Error", "Error", done.stderr)) == (0, "")


def test_a_tokenizer_that_pads_or_cuts_by_itself_is_silenced() -> None:
    from tests.runtime.toy import tokenizer

    loud: Any = Tokenizer.from_str(tokenizer().to_str())
    loud.enable_padding(length=20)
    loud.enable_truncation(3)
    found = TextEncoder(loud, TextSettings(6, 0, 2, dynamic_length=True)).encode(["a cat"])
    assert found.input_ids.tolist() == [[1, 4, 5, 2]]
