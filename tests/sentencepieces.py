"""Small SentencePiece models trained on the corpus, and tokenizers of Hugging Face's families made of them."""

from __future__ import annotations

import io
import json
from functools import cache
from pathlib import Path
from typing import Any, Literal

from tests.corpus import corpus

Kind = Literal["siglip", "siglip multilingual", "gemma", "xlm-roberta"]
# Where each family keeps its special ids, and what its training said of spaces and unknown characters.
_SETTINGS: dict[str, dict[str, Any]] = {
    # T5's English vocabulary
    "siglip": {"model_type": "unigram", "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1},
    # mT5's
    "siglip multilingual": {
        **{"model_type": "unigram", "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1},
        **{"byte_fallback": True, "normalization_rule_name": "nmt_nfkc_cf"},
    },
    "gemma": {
        **{"model_type": "bpe", "pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3, "byte_fallback": True},
        **{"pad_piece": "<pad>", "eos_piece": "<eos>", "bos_piece": "<bos>", "unk_piece": "<unk>"},
        **{"normalization_rule_name": "identity", "add_dummy_prefix": False, "split_digits": True},
        **{"remove_extra_whitespaces": False, "allow_whitespace_only_pieces": True},
        "user_defined_symbols": ["<mask>", "\n", "\n\n", "<p>", "</p>"],
    },
    "xlm-roberta": {"model_type": "unigram", "unk_id": 0, "bos_id": 1, "eos_id": 2},
}


def trained(kind: Kind, *, runs: bool = False, **changes: Any) -> bytes:
    """A SentencePiece model of a family's kind, as the bytes of its file.

    Args:
        runs: learn runs of one letter too: pieces of several lengths, so that a run may be cut in many equally good ways.
        changes: of the trainer's settings.
    """
    return _trained(kind, runs, json.dumps(changes))


@cache
def _trained(kind: Kind, runs: bool, changes: str) -> bytes:
    import sentencepiece

    lines = [text.replace("\n", " ") for text in corpus(seed=7) if runs or not _repeats(text)]
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=file,
        vocab_size=6000,
        character_coverage=0.98,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
        **{**_SETTINGS[kind], **json.loads(changes)},
    )
    return file.getvalue()


def _repeats(text: str) -> bool:
    return any(letter * 4 in text.lower() for letter in set(text.lower()))


def write_siglip_tokenizer(folder: Path, kind: Kind = "siglip", **settings: Any) -> int:
    """SiglipTokenizer's files. -> its size."""
    from transformers import SiglipTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spiece.model").write_bytes(trained(kind))
    tokenizer = SiglipTokenizer(str(folder / "spiece.model"), **settings)
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def gemma_tokenizer(**settings: Any) -> Any:
    """Siglip2Tokenizer with SigLIP 2's settings."""
    from transformers import Siglip2Tokenizer
    from transformers.tokenization_utils_base import generate_merges

    scores = {piece.piece: piece.score for piece in proto(trained("gemma")).pieces}
    vocab = {piece: i for i, piece in enumerate(scores)}
    specials = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
    merges = generate_merges(vocab, scores, skip_tokens=specials)
    settings = {
        **{"add_bos_token": False, "add_eos_token": True, "padding_side": "right", "model_max_length": 64},
        **settings,
    }
    return Siglip2Tokenizer(vocab, merges, **settings)


def proto(model: bytes) -> Any:
    """The model as sentencepiece's own message."""
    from sentencepiece import sentencepiece_model_pb2

    return sentencepiece_model_pb2.ModelProto.FromString(model)


def write_xlm_roberta_tokenizer(folder: Path, *, legacy: bool = False, length: int = 77) -> int:
    """XLMRobertaTokenizer's files. -> its size. `legacy`: sentencepiece.bpe.model and tokenizer_config.json only."""
    from transformers import XLMRobertaTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "sentencepiece.bpe.model"
    path.write_bytes(trained("xlm-roberta"))
    tokenizer = XLMRobertaTokenizer.from_pretrained(folder, model_max_length=length)
    tokenizer.save_pretrained(folder)
    (folder / "tokenizer.json" if legacy else path).unlink()
    return len(tokenizer)
