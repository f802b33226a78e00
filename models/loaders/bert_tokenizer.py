"""`tokenizer.json` for BERT's word pieces and RoBERTa's byte-level merges, from the files that older repositories hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, WordPiece

from edgeclip.errors import SourceError
from edgeclip.models.loaders.tokenizer import Merges, plain

_BERT = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
_ROBERTA = {
    "bos": "<s>",
    "pad": "<pad>",
    "eos": "</s>",
    "unk": "<unk>",
    "cls": "<s>",
    "sep": "</s>",
    "mask": "<mask>",
}


def read_pieces(path: Path) -> dict[str, int]:
    """A `vocab.txt`: one piece a line, its number is its id. Raises SourceError if it cannot be read."""
    try:
        with path.open(encoding="utf-8", newline="\n") as stream:
            return {line.rstrip("\r\n"): i for i, line in enumerate(stream)}
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{path}: cannot be read as one word piece a line ({error}).") from error


def bert_tokenizer(vocab: dict[str, int], stated: dict[str, Any], where: str) -> bytes:
    """The tokenizer that transformers' BertTokenizer makes of vocab.txt.

    Args:
        stated: what tokenizer_config.json and special_tokens_map.json say.
    Raises:
        SourceError: a special token is not in the vocabulary, or the settings describe another tokenizer.
    """
    if stated.get("do_basic_tokenize") is False or stated.get("never_split"):
        raise SourceError(
            f"{where}: do_basic_tokenize and never_split describe a tokenizer that edgeclip does not know."
        )
    tokens = _tokens(_BERT, vocab, stated, where)
    tokenizer = Tokenizer(WordPiece(vocab, unk_token=tokens["unk"], max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=stated.get("tokenize_chinese_chars", True),
        strip_accents=stated.get("strip_accents"),
        lowercase=stated.get("do_lower_case", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return _finish(tokenizer, tokens, vocab)


def roberta_tokenizer(vocab: dict[str, int], merges: Merges, stated: dict[str, Any], where: str) -> bytes:
    """The tokenizer that transformers' RobertaTokenizer makes of vocab.json and merges.txt; see `bert_tokenizer`."""
    tokens = _tokens(_ROBERTA, vocab, stated, where)
    tokenizer = Tokenizer(BPE(vocab, list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=stated.get("add_prefix_space", False))
    tokenizer.decoder = decoders.ByteLevel()
    return _finish(tokenizer, tokens, vocab)


def _tokens(
    defaults: dict[str, str], vocab: dict[str, int], stated: dict[str, Any], where: str
) -> dict[str, str]:
    tokens = {name: stated.get(f"{name}_token") or token for name, token in defaults.items()}
    for token in tokens.values():
        if token not in vocab:
            raise SourceError(
                f"{where}: the special token {token!r} is not in it. The vocabulary belongs to another model."
            )
    return tokens


def _finish(tokenizer: Tokenizer, tokens: dict[str, str], vocab: dict[str, int]) -> bytes:
    start, end = tokens["cls"], tokens["sep"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(start, vocab[start]), (end, vocab[end])]
    )
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in tokens.values()]
    )
    return plain(tokenizer)
