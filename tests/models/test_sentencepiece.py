"""Tokenizers made of SentencePiece models, against sentencepiece itself and the tokenizers of transformers."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from edgeclip.bundle.manifest import TextSettings
from edgeclip.errors import BundleError, InputError, MissingExtraError, SourceError
from edgeclip.models.loaders.sentencepiece import (
    gemma_tokenizer,
    read_model,
    siglip_tokenizer,
    xlm_roberta_tokenizer,
)
from edgeclip.runtime.text import TextEncoder
from edgeclip.runtime.text.siglip import Charsmap, SiglipTokenizer, canonical_text
from tests.corpus import corpus
from tests.models.test_tokenizer import characters
from tests.sentencepieces import Kind, proto, trained

T5 = {"eos": "</s>", "unk": "<unk>", "pad": "</s>"}
GEMMA = {"bos": "<bos>", "eos": "<eos>", "unk": "<unk>", "pad": "<pad>"}
XLM_R = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "pad": "<pad>", "mask": "<mask>"}
# Special tokens in texts, spaces that only the table of characters knows, marks that compose with what stands before them.
ODD = [
    *("a </s> b", "</s>", " </s> ! c <unk> d", "</s>\u0338a", "<pad> x", "a \u2581 b", "  lead", "trail  "),
    *("\u200b x", "x\u200b", "\x00", "a\x1cb", "\ufb01\u0301", "e\u0302\u0323", "\u1112\u1161\u11ab"),
]


@cache
def texts() -> list[str]:
    return [*corpus(), *ODD]


def written(path: Path, kind: Kind, **changes: object) -> Path:
    path.write_bytes(trained(kind, **changes))
    return path


def siglip(path: Path) -> Tokenizer:
    return Tokenizer.from_str(siglip_tokenizer(path, 1 << 20, **T5).decode())


def differing(ours: Sequence[object], theirs: Sequence[object]) -> list[str]:
    assert len(ours) == len(theirs) == len(texts())
    return [text for text, a, b in zip(texts(), ours, theirs, strict=True) if a != b]


@pytest.mark.filterwarnings("ignore:This sequence already has")
@pytest.mark.parametrize(
    ("kind", "rule"),
    [
        ("siglip", "nmt_nfkc"),
        pytest.param("siglip", "identity", marks=pytest.mark.parity),
        ("siglip multilingual", "nmt_nfkc_cf"),  # with bytes for unknown characters
        pytest.param("siglip multilingual", "nfkc", marks=pytest.mark.parity),
    ],
)
def test_siglip_ids_are_its_slow_tokenizers(kind: Kind, rule: str, tmp_path: Path) -> None:
    from transformers import SiglipTokenizer as Theirs

    path = written(tmp_path / "spiece.model", kind, normalization_rule_name=rule)
    ours = SiglipTokenizer(siglip(path))
    assert not differing([ours.ids(text) for text in texts()], Theirs(str(path))(texts()).input_ids)


def test_equally_good_cuts_are_settled_as_sentencepiece_settles_them(tmp_path: Path) -> None:
    """Runs of one letter, in a vocabulary that holds runs of several lengths: there single and double precision part."""
    from transformers import SiglipTokenizer as Theirs

    path = written(tmp_path / "spiece.model", "siglip", runs=True)
    runs = [
        prefix + letter * n for letter in "x70" for n in range(1, 120) for prefix in ("", "a ", "one two ")
    ]
    ours, theirs = siglip(path), Theirs(str(path))(runs).input_ids
    exact = SiglipTokenizer(ours)
    assert [exact.ids(text) for text in runs] == theirs
    double = [ours.encode(canonical_text(text)).ids for text in runs]
    assert double != theirs, "the tokenizers library would do: then nothing here is needed"


def test_letters_that_are_known_only_within_longer_pieces(tmp_path: Path) -> None:
    """An unknown letter costs more than the worst piece: whether a longer piece is taken instead hangs on how much."""
    from transformers import SiglipTokenizer as Theirs

    path = tmp_path / "spiece.model"
    model = proto(trained("siglip"))
    pieces = [piece for piece in model.pieces if piece.piece not in set("aeiounstr\u0430\u043e")]
    del model.pieces[:]
    model.pieces.extend(pieces)
    path.write_bytes(model.SerializeToString())
    ours, theirs = SiglipTokenizer(siglip(path)), Theirs(str(path))
    assert [ours.ids(text) for text in corpus()] == theirs(corpus()).input_ids


def test_plain_library_would_read_the_table_of_characters_otherwise(tmp_path: Path) -> None:
    path = written(tmp_path / "spiece.model", "siglip")
    ours = siglip(path)
    exact = SiglipTokenizer(ours)
    wrong = [text for text in ODD if ours.encode(canonical_text(text)).ids != exact.ids(text)]
    assert {"\ufb01\u0301", "\u1112\u1161\u11ab"} <= set(wrong)


@pytest.mark.parametrize("rule", ["nmt_nfkc", "nmt_nfkc_cf", "nfkc"])
def test_table_of_characters_on_every_character(rule: str) -> None:
    from sentencepiece import SentencePieceNormalizer

    as_it_is = dict.fromkeys(("add_dummy_prefix", "escape_whitespaces", "remove_extra_whitespaces"), False)
    theirs = SentencePieceNormalizer(rule_name=rule, **as_it_is)
    ours = Charsmap(
        proto(trained("siglip", normalization_rule_name=rule)).normalizer_spec.precompiled_charsmap
    )
    for text in [*texts(), *characters(97)]:
        assert ours.apply(text) == theirs.Normalize(text), ascii(text)


def test_canonical_form() -> None:
    assert canonical_text("  A  Photo, of_a\tCAT! ") == "a photo ofa cat"
    assert (
        canonical_text("\u038c\u0394\u039f\u03a3") == "\u03cc\u03b4\u03bf\u03c2"
    )  # the sigma of a word's end


@pytest.mark.parametrize("byte_fallback", [True, False])
@pytest.mark.parametrize("reordered", [True, False])  # scores decide what is merged first, not places
def test_gemma_ids_are_sentencepieces(reordered: bool, byte_fallback: bool, tmp_path: Path) -> None:
    from sentencepiece import SentencePieceProcessor

    path = written(tmp_path / "tokenizer.model", "gemma", byte_fallback=byte_fallback)
    if reordered:
        model = proto(path.read_bytes())
        merged = [piece for piece in model.pieces if piece.type == 1]
        kept = [piece for piece in model.pieces if piece.type != 1]
        del model.pieces[:]
        model.pieces.extend([*kept, *reversed(merged)])
        path.write_bytes(model.SerializeToString())
    theirs = SentencePieceProcessor(model_file=str(path))
    ours = Tokenizer.from_str(gemma_tokenizer(path, **GEMMA).decode())
    plain = [text for text in texts() if not any(token in text for token in GEMMA.values())]
    lower = ["".join(map(str.lower, text)) for text in plain]  # one by one: no sigma of a word's end
    for text, ids in zip(plain, theirs.encode(lower), strict=True):
        assert ours.encode(text).ids == [*ids, 1], text


def test_xlm_roberta_ids_are_transformers(tmp_path: Path) -> None:
    from transformers import XLMRobertaTokenizer

    path = written(tmp_path / "sentencepiece.bpe.model", "xlm-roberta")
    ours = Tokenizer.from_str(xlm_roberta_tokenizer(path, **XLM_R).decode())
    theirs = XLMRobertaTokenizer.from_pretrained(tmp_path)
    assert not differing([ours.encode(text).ids for text in texts()], theirs(texts()).input_ids)
    assert [ours.token_to_id(token) for token in XLM_R.values()] == [0, 2, 3, 1, len(theirs) - 1]


def test_rows_that_a_tower_does_not_have(tmp_path: Path) -> None:
    """mT5's places for masked words stand behind the rows of SigLIP's tower."""
    extra = ["<extra_id_0>", "<extra_id_1>"]
    path = written(tmp_path / "spiece.model", "siglip", user_defined_symbols=extra)
    pieces = [piece.piece for piece in proto(path.read_bytes()).pieces]
    model = proto(path.read_bytes())
    for token in extra:  # to the end
        model.pieces.append(model.pieces.pop(pieces.index(token)))
        pieces = [piece.piece for piece in model.pieces]
    path.write_bytes(model.SerializeToString())
    rows = len(pieces) - len(extra)
    kept = Tokenizer.from_str(siglip_tokenizer(path, rows, **T5).decode())
    assert kept.get_vocab_size() == rows
    assert all(kept.token_to_id(token) is None for token in extra)


def test_a_cut_text_still_ends_with_the_mark(tmp_path: Path) -> None:
    path = written(tmp_path / "spiece.model", "siglip")
    encoder = TextEncoder(siglip(path), TextSettings(64, 1, 1, dynamic_length=False, clean="siglip"))
    found = encoder.encode(["two dogs " * 60, "", "\u4e00"])
    assert found.input_ids.shape == (3, 64)
    assert found.input_ids[:, -1].tolist() == [1, 1, 1]
    assert found.truncated == (0,)
    with pytest.raises(InputError, match=r"texts\[0\]: cannot be tokenized .* Is it valid Unicode"):
        encoder.encode(["\ud800"])


def test_a_bundles_damaged_table_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "spiece.model", "siglip")
    settings = TextSettings(64, 1, 1, dynamic_length=False, clean="siglip")
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_bytes(siglip_tokenizer(path, 1 << 20, **T5))
    assert TextEncoder.open(tokenizer, settings).encode(["a"]).input_ids.shape == (1, 64)
    tokenizer.write_bytes(gemma_tokenizer(written(tmp_path / "g.model", "gemma"), **GEMMA))
    with pytest.raises(BundleError, match="expected a Unigram model, got BPE"):
        TextEncoder.open(tokenizer, settings)


REFUSED = {
    "no model": (lambda p: p.write_bytes(b"{}"), "not a SentencePiece model"),
    "an empty file": (lambda p: p.write_bytes(b""), "without pieces"),
    "a git-lfs pointer": (
        lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "not a SentencePiece model",
    ),
    "no file": (lambda p: p.unlink(), "cannot be read"),
    "whole words": (lambda p: written(p, "siglip", model_type="word"), "of type unigram or bpe"),
    "spaces behind words": (
        lambda p: written(p, "siglip", treat_whitespace_as_suffix=True),
        "spaces stand behind words",
    ),
    "Gemma's": (lambda p: written(p, "gemma"), "expected a unigram model that joins spaces"),
    "spaces kept": (
        lambda p: written(p, "siglip", remove_extra_whitespaces=False),
        "expected a unigram model that joins spaces",
    ),
    "whole pieces": (
        lambda p: written(p, "siglip", user_defined_symbols=["dog"]),
        "expected a unigram model that joins spaces",
    ),
    "other marks": (
        lambda p: written(p, "siglip", eos_piece="[END]"),
        r"the special token '</s>' is not in it",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_model_of_siglips_is_refused_in_one_line(what: str, tmp_path: Path) -> None:
    path = written(tmp_path / "spiece.model", "siglip")
    spoil, message = REFUSED[what]
    spoil(path)
    with pytest.raises(SourceError, match=message) as caught:
        siglip_tokenizer(path, 1 << 20, **T5)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_xlm_roberta_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="expected a unigram model, as XLM-RoBERTa has it"):
        xlm_roberta_tokenizer(written(tmp_path / "x.model", "gemma"), **XLM_R)


def test_without_sentencepiece_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "spiece.model", "siglip")
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'edgeclip\[export\]'"):
        read_model(path)
