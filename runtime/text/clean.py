"""What a family does to a text before its tokenizer sees it. `TextSettings.clean` names one entry of `CLEANERS`."""

from __future__ import annotations

import html
import re
import string
from collections.abc import Callable

# Printable ASCII, tab and newline, without "&": ftfy's repairs and HTML entities all need some other character, so that
# cleaning is the identity there and the 0.1 s import of ftfy is saved. A test holds this against ftfy itself.
_PLAIN = re.compile(r"[\t\n\x20-\x25\x27-\x7e]*")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _basic(text: str) -> str:
    """Mend mojibake, then undo HTML entities twice: texts from the web are often escaped two times."""
    if _PLAIN.fullmatch(text):
        return text
    import ftfy  # late: see _PLAIN

    return html.unescape(html.unescape(str(ftfy.fix_text(text))))


def _whitespace(text: str) -> str:
    """open_clip's before a tokenizer of Hugging Face."""
    return " ".join(_basic(text).split())


def _openai(text: str) -> str:
    """OpenAI CLIP and open_clip's default."""
    return _whitespace(text).lower()


def _canonicalize(text: str) -> str:
    """big_vision's: no ASCII punctuation, "_" counts as a space (SigLIP, CLIPA in open_clip)."""
    return " ".join(_basic(text).strip().replace("_", " ").translate(_NO_PUNCTUATION).lower().split())


CLEANERS: dict[str, Callable[[str], str]] = {
    "none": lambda text: text,
    "lower": str.lower,
    "whitespace": _whitespace,
    "openai": _openai,
    "canonicalize": _canonicalize,
}


def clean(text: str, how: str) -> str:
    """Clean one text as the entry `how` of `CLEANERS` does."""
    return CLEANERS[how](text)
