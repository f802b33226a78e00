"""Texts beside those of the data: captions that another model wrote of the pictures, and banks of texts."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from edgeclip.errors import TrainingError
from edgeclip.models.training.data.listing import CAPTION_COLUMNS, IMAGE_COLUMNS, pick_column

KEY_COLUMNS = ("key", "id", *IMAGE_COLUMNS)


def extra_captions(path: Path, keys: Iterable[str]) -> dict[str, list[str]]:
    """Captions by the key of their picture, from a .jsonl or .csv with a column `key` (or the picture's) and one `caption`.

    A key is what the data calls the picture: its path as the list or the folder has it, `shard.tar/name` in shards.

    Returns:
        Those whose keys the data has; several lines of one key, and a list of captions in one line, are all taken.
    Raises:
        TrainingError: it cannot be read, lacks a column, or no key of it is one of the data's.
    """
    known = set(keys)
    found: dict[str, list[str]] = {}
    others = 0
    for key, captions in _rows(path):
        texts = [text.strip() for text in captions if text.strip()]
        if key in known and texts:
            found.setdefault(key, []).extend(texts)
        else:
            others += 1
    if not found:
        raise TrainingError(
            f"captions: {path} has {others} lines, none of a picture of the data. Its keys are like {next(iter(known), '')!r}."
        )
    return found


def text_bank(path: Path) -> tuple[str, ...]:
    """The texts of a file, one a line, without empty lines and repeats, in their order.

    Raises:
        TrainingError: it cannot be read, or holds fewer than two.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(
            f"text_bank: {path} cannot be read ({error}). Expected UTF-8 text, one a line."
        ) from error
    texts = tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if len(texts) < 2:
        raise TrainingError(f"text_bank: {path} holds {len(texts)} texts, expected 2 or more, one a line.")
    return texts


def digest_of(texts: Sequence[str]) -> str:
    """What tells one list of texts from another."""
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()


def _rows(path: Path) -> Iterator[tuple[str, Sequence[str]]]:
    try:
        if path.suffix.lower() in (".csv", ".tsv"):
            yield from _csv_rows(path)
        elif path.suffix.lower() in (".jsonl", ".ndjson"):
            yield from _json_rows(path)
        else:
            raise TrainingError(f"captions: {path} is neither .jsonl nor .csv.")
    except (OSError, UnicodeDecodeError, csv.Error, ValueError) as error:
        raise TrainingError(f"captions: {path} cannot be read ({error}).") from error


def _csv_rows(path: Path) -> Iterator[tuple[str, Sequence[str]]]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        header = stream.readline()
        stream.seek(0)
        reader = csv.DictReader(stream, delimiter=max(",\t;", key=header.count))
        key = pick_column(reader.fieldnames or [], KEY_COLUMNS, str(path))
        caption = pick_column(reader.fieldnames or [], CAPTION_COLUMNS, str(path))
        for row in reader:
            yield (row[key] or "").strip(), [row[caption] or ""]


def _json_rows(path: Path) -> Iterator[tuple[str, Sequence[str]]]:
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
        if not line.strip():
            continue
        row = json.loads(line)
        if not isinstance(row, dict):
            raise ValueError(f"line {number} is no object")
        key = row[pick_column(row, KEY_COLUMNS, f"{path}, line {number}")]
        texts = row[pick_column(row, CAPTION_COLUMNS, f"{path}, line {number}")]
        texts = [texts] if isinstance(texts, str) else texts
        if (
            not isinstance(key, str)
            or not isinstance(texts, list)
            or not all(isinstance(t, str) for t in texts)
        ):
            raise ValueError(f"line {number}: expected a key and a caption, or a list of captions")
        yield key, texts
