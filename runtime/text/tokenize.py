"""Texts to ids with the bundle's tokenizer.json. A text that is too long is cut, and said to be."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgeclip.bundle.manifest import TextSettings
from edgeclip.errors import BundleError, InputError
from edgeclip.runtime.text import siglip
from edgeclip.runtime.text.clean import clean

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAX_CHARACTERS = 1 << 20  # of one text: the cleaning and the merges are superlinear in it

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Encoded:
    """A batch of texts as the text tower takes it."""

    input_ids: NDArray[np.int32]  # (N, L)
    lengths: tuple[int, ...]  # ids of each text before padding; L where the family's length is fixed
    truncated: tuple[int, ...]  # positions of the texts that were cut


class TextEncoder:
    """One tokenizer with its settings. Stateless: any number of threads may share it."""

    def __init__(self, tokenizer: Tokenizer, settings: TextSettings) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer, self.settings = tokenizer, settings
        self._ids_of = siglip.SiglipTokenizer(tokenizer).ids if settings.clean == siglip.CLEAN else self._cut

    @classmethod
    def open(cls, path: Path, settings: TextSettings) -> TextEncoder:
        """Read a tokenizer.json. Raises BundleError if it is damaged."""
        from tokenizers import Tokenizer  # late: label packs and baked labels do without its 3 MB

        try:
            return cls(Tokenizer.from_str(path.read_text(encoding="utf-8")), settings)
        except Exception as error:  # the tokenizers library raises a bare Exception
            raise BundleError(
                f"{path}: not a tokenizer that can be read ({error}). Export or pull the bundle again."
            ) from error

    def encode(
        self, texts: Sequence[str], *, strict: bool = False, numbers: Sequence[int] | None = None
    ) -> Encoded:
        """Clean, tokenize, cut and pad.

        Args:
            texts: N texts; no text gives ids of shape (0, 1).
            strict: refuse a text that is too long instead of cutting it.
            numbers: what messages call the texts; None: their positions.
        Returns:
            (N, L) int32 ids: L of the longest text where the family's length is dynamic, else `context_length`; and which
            texts were cut (also logged as a warning). The last id of a cut text is the end mark, on which towers pool.
        Raises:
            InputError: no string, a lone surrogate, a text above MAX_CHARACTERS, or with `strict` one that is too long.
        """
        settings = self.settings
        numbers = range(len(texts)) if numbers is None else numbers
        rows = [self._ids(text, number) for text, number in zip(texts, numbers, strict=True)]
        cut = tuple(i for i, row in enumerate(rows) if len(row) > settings.context_length)
        if cut:
            example = texts[cut[0]]
            message = (
                f"{len(cut)} of {len(rows)} texts are longer than {settings.context_length} tokens, the first is "
                f"texts[{numbers[cut[0]]}] with {len(rows[cut[0]])}: {example[:40]!r}"
            )
            if strict:
                raise InputError(f"{message}. Shorten it, or let it be cut with strict=False.")
            log.warning("%s; they were cut", message)
        for i in cut:
            end = [] if settings.eos_id is None else [settings.eos_id]
            rows[i] = rows[i][: settings.context_length - len(end)] + end
        lengths = [max(len(row), 1) if settings.dynamic_length else settings.context_length for row in rows]
        ids = np.full((len(rows), max(lengths, default=1)), settings.pad_id, np.int32)
        for row, values in zip(ids, rows, strict=True):
            row[: len(values)] = values
        return Encoded(ids, tuple(lengths), cut)

    def _ids(self, text: str, number: int) -> list[int]:
        if not isinstance(text, str):
            raise InputError(f"texts[{number}]: expected a str, got {type(text).__name__}.")
        if len(text) > MAX_CHARACTERS:
            raise InputError(
                f"texts[{number}]: {len(text)} characters; the limit is {MAX_CHARACTERS}. Shorten it."
            )
        try:
            return self._ids_of(text)
        except Exception as error:  # a bare Exception, or TypeError for a lone surrogate
            raise InputError(
                f"texts[{number}]: cannot be tokenized ({error}). Is it valid Unicode?"
            ) from error

    def _cut(self, text: str) -> list[int]:
        # One by one: encode_batch starts a thread pool, which a later fork would inherit broken.
        return list(self._tokenizer.encode(clean(text, self.settings.clean)).ids)
