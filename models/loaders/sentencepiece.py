"""`tokenizer.json` from a SentencePiece model, for folders that hold nothing else, or whose own library reads that one.

Facts of the format follow sentencepiece (its model's protobuf definition, normalisation and segmentation) and transformers
(where each family keeps its special ids).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, Unigram

from edgeclip.errors import MissingExtraError, SourceError
from edgeclip.models.loaders.tokenizer import plain, read_tokenizer

SPACE = "\u2581"  # what stands for a space in pieces
_UNIGRAM, _BPE = 1, 2
_NORMAL, _USER_DEFINED = 1, 4

Pieces = list[tuple[str, float]]


def read_model(path: Path) -> Any:
    """A `.model` file as sentencepiece's own ModelProto.

    Raises:
        SourceError: the file is missing, damaged, or of a kind that the tokenizers library has no counterpart of.
        MissingExtraError: sentencepiece is not installed.
    """
    try:
        from google.protobuf.message import DecodeError
        from sentencepiece import sentencepiece_model_pb2
    except ImportError as error:
        raise MissingExtraError(
            f"{path}: reading it needs sentencepiece. pip install 'edgeclip[export]'"
        ) from error
    definition: Any = sentencepiece_model_pb2
    try:
        model = definition.ModelProto.FromString(path.read_bytes())
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror}). Is the download complete?") from error
    except DecodeError as error:
        raise SourceError(f"{path}: not a SentencePiece model ({error}). Fetch it again.") from error
    if not model.pieces:
        raise SourceError(
            f"{path}: a SentencePiece model without pieces. The file is damaged: fetch it again."
        )
    if model.trainer_spec.model_type not in (_UNIGRAM, _BPE):
        raise SourceError(
            f"{path}: expected a SentencePiece model of type unigram or bpe. It is another model's."
        )
    if model.normalizer_spec.add_dummy_prefix and model.trainer_spec.treat_whitespace_as_suffix:
        raise SourceError(
            f"{path}: spaces stand behind words, which edgeclip cannot convert. It is another model's."
        )
    return model


def siglip_tokenizer(path: Path, rows: int, *, eos: str, unk: str, pad: str) -> bytes:
    """SigLIP's: text, then `eos`; the cleaning "siglip" makes its texts canonical and settles what this file cannot say.

    Args:
        rows: of the text tower's embedding.
    Raises:
        SourceError: as `read_model`, the model is not of T5's kind, or a special token is not in it.
    """
    model = read_model(path)
    spec = model.normalizer_spec
    plain_text = spec.add_dummy_prefix and spec.remove_extra_whitespaces and spec.escape_whitespaces
    if model.trainer_spec.model_type != _UNIGRAM or not plain_text or _whole(model):
        raise SourceError(
            f"{path}: expected a unigram model that joins spaces, as T5's and SigLIP's are. It is another model's."
        )
    # T5's places for masked words stand behind the rows of the tower, and no text becomes one: its own library never looks
    pieces = [piece for i, piece in enumerate(_pieces(model)) if i < rows or "<extra_id_" not in piece[0]]
    tokenizer = Tokenizer(_segmentation(model, pieces, model.trainer_spec.unk_id))
    tokenizer.normalizer = normalizers.Sequence(
        [
            *_charsmap(model),
            normalizers.Replace(Regex(" {2,}"), " "),
            normalizers.Replace(" ", SPACE),
            normalizers.Replace(Regex(f"{SPACE}+\\z"), ""),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
    tokens = [AddedToken(token, lstrip=True, rstrip=True, normalized=False) for token in (eos, unk, pad)]
    return _finish(tokenizer, tokens, ["$A", eos], path)


def gemma_tokenizer(path: Path, *, bos: str, eos: str, unk: str, pad: str) -> bytes:
    """Gemma's byte-pair encoding with bytes for unknown characters, as SigLIP 2 uses it: lower case, then `eos`.

    Raises:
        SourceError: as `read_model`, or a special token is not in the model.
    """
    model = read_model(path)
    tokenizer = Tokenizer(_segmentation(model, _pieces(model), model.trainer_spec.unk_id))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), *_charsmap(model), normalizers.Replace(" ", SPACE)]
    )
    steps: list[Any] = []
    if model.normalizer_spec.add_dummy_prefix:
        steps.append(pre_tokenizers.Metaspace(prepend_scheme="first", split=False))
    if whole := _whole(model):  # never merged with what stands beside them
        steps.append(pre_tokenizers.Split(Regex("|".join(map(re.escape, whole))), behavior="isolated"))
    if steps:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokens = [AddedToken(token, normalized=False) for token in (bos, eos, unk, pad)]
    return _finish(tokenizer, tokens, ["$A", eos], path)


def gemma_json(path: Path, *, eos: str, add_eos: bool) -> bytes:
    """Gemma's tokenizer.json as SigLIP 2 uses it: lower case first; with `add_eos`, `eos` after every text.

    Raises:
        SourceError: as `read_tokenizer`, or `eos` is not in it.
    """
    tokenizer = Tokenizer.from_str(read_tokenizer(path).decode())
    steps = [] if tokenizer.normalizer is None else [tokenizer.normalizer]
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *steps])
    return _finish(tokenizer, [AddedToken(eos, normalized=False)], ["$A", eos] if add_eos else [], path)


def xlm_roberta_tokenizer(path: Path, *, bos: str, eos: str, unk: str, pad: str, mask: str) -> bytes:
    """XLM-RoBERTa's and XLM-V's, as transformers' XLMRobertaTokenizer makes it: `bos`, text, `eos`.

    Their ids are fairseq's: four specials in an order of their own, the model's pieces from its fourth on, and a mask last.

    Raises:
        SourceError: as `read_model`, or the model is no unigram one.
    """
    model = read_model(path)
    if model.trainer_spec.model_type != _UNIGRAM:
        raise SourceError(f"{path}: expected a unigram model, as XLM-RoBERTa has it. It is another model's.")
    specials = [bos, pad, eos, unk]
    pieces = [*((token, 0.0) for token in specials), *_pieces(model)[3:], (mask, 0.0)]
    return _by_words(model, pieces, 3, [*specials, mask], [bos, "$A", eos], path)


def t5_tokenizer(path: Path, *, eos: str, unk: str, pad: str) -> bytes:
    """T5's and mT5's, as transformers' T5Tokenizer makes it: text, then `eos`. Its places for masked words are left out.

    Raises:
        SourceError: as `read_model`, the model is no unigram one, or a special token is not in it.
    """
    model = read_model(path)
    if model.trainer_spec.model_type != _UNIGRAM:
        raise SourceError(f"{path}: expected a unigram model, as T5 has it. It is another model's.")
    return _by_words(model, _pieces(model), model.trainer_spec.unk_id, [pad, eos, unk], ["$A", eos], path)


def _by_words(
    model: Any, pieces: Pieces, unk_id: int, specials: list[str], template: list[str], path: Path
) -> bytes:
    """A unigram tokenizer that takes words apart one by one, with a space before each."""
    tokenizer = Tokenizer(Unigram(pieces, unk_id=unk_id, byte_fallback=False))
    if steps := _charsmap(model):
        tokenizer.normalizer = steps[0]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    tokenizer.decoder = decoders.Metaspace()
    return _finish(tokenizer, [AddedToken(token, normalized=False) for token in specials], template, path)


def _pieces(model: Any) -> Pieces:
    return [(piece.piece, piece.score) for piece in model.pieces]


def _whole(model: Any) -> list[str]:
    """User-defined pieces, the longest first."""
    found = (piece.piece for piece in model.pieces if piece.type == _USER_DEFINED)
    return sorted((piece for piece in found if "<extra_id_" not in piece), key=len, reverse=True)


def _charsmap(model: Any) -> list[Any]:
    table = model.normalizer_spec.precompiled_charsmap
    return [normalizers.Precompiled(table)] if table else []


def _segmentation(model: Any, pieces: Pieces, unk_id: int) -> Any:
    byte_fallback = model.trainer_spec.byte_fallback
    if model.trainer_spec.model_type == _UNIGRAM:
        return Unigram(pieces, unk_id=unk_id, byte_fallback=byte_fallback)
    return BPE(
        {piece: i for i, (piece, _) in enumerate(pieces)},
        _merges(model),
        unk_token=pieces[unk_id][0],
        fuse_unk=True,
        byte_fallback=byte_fallback,
        ignore_merges=bool(_whole(model)),
    )


def _merges(model: Any) -> list[tuple[str, str]]:
    """The merges that the pieces' scores stand for: two neighbours become the piece of the highest score that they make."""
    ranks = {piece.piece: (-piece.score, i) for i, piece in enumerate(model.pieces) if piece.type == _NORMAL}
    found = []
    for piece, rank in ranks.items():
        for i in range(1, len(piece)):
            if piece[:i] in ranks and piece[i:] in ranks:
                found.append((rank, piece[:i], piece[i:]))
    return [(left, right) for _, left, right in sorted(found)]


def _finish(tokenizer: Tokenizer, tokens: list[AddedToken], template: list[str], path: Path) -> bytes:
    for token in tokens:
        if tokenizer.token_to_id(token.content) is None:
            raise SourceError(
                f"{path}: the special token {token.content!r} is not in it. It is another model's."
            )
    tokenizer.add_special_tokens(tokens)
    if template:
        marks = [(mark, tokenizer.token_to_id(mark)) for mark in dict.fromkeys(template) if mark != "$A"]
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=marks)
    return plain(tokenizer)
