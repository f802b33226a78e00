"""webdataset tar shards: members of one name before the first dot are one pair (a/0001.jpg, a/0001.txt or a/0001.json).

Opening walks the headers only, seeking over the contents; a pair is then read at its place. So any pair can be drawn at any
time, and a resumed run skips nothing. Shards are uncompressed tars, as webdataset writes them.
"""

from __future__ import annotations

import glob
import json
import logging
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from edgeclip.errors import InputError, TrainingError
from edgeclip.models.training.data.folder import SUFFIXES
from edgeclip.models.training.data.listing import CAPTION_COLUMNS

TEXT_SUFFIXES = (".txt", ".caption", ".text", ".json")  # the first that is there

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Span:
    """Where a member's content lies."""

    shard: int
    offset: int  # bytes
    size: int  # bytes


def matches(location: str) -> bool:
    """Whether this names .tar files: one, a pattern ({0000..0009} counts up), or a folder of them."""
    return ".tar" in Path(location).suffixes or (
        Path(location).is_dir() and any(Path(location).glob("*.tar"))
    )


class Shards:
    """The index of all shards; contents stay in the files."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._pairs: list[tuple[_Span, _Span, bool]] = []  # picture, text, whether the text is JSON
        self.keys: list[str] = []
        for number, path in enumerate(paths):
            for key, members in _samples(path, number):
                image = next((span for suffix, span in members.items() if suffix in SUFFIXES), None)
                text = next((suffix for suffix in TEXT_SUFFIXES if suffix in members), None)
                if image and text:
                    self._pairs.append((image, members[text], text == ".json"))
                    self.keys.append(f"{path.name}/{key}")

    def read(self, index: int) -> tuple[bytes, list[str]]:
        """The encoded picture and its captions."""
        image, text, as_json = self._pairs[index]
        raw = self._bytes(text).decode("utf-8", errors="replace")
        captions = _captions(raw) if as_json else [line.strip() for line in raw.splitlines() if line.strip()]
        if not captions:
            raise InputError(f"{self.keys[index]}: no caption.")
        return self._bytes(image), captions

    def _bytes(self, span: _Span) -> bytes:
        with self._paths[span.shard].open("rb") as stream:
            stream.seek(span.offset)
            data = stream.read(span.size)
        if len(data) < span.size:
            raise InputError(f"{self._paths[span.shard]}: cut short.")
        return data


def open_pairs(location: str) -> Shards:
    """Index the shards that `location` names.

    Raises:
        TrainingError: none is there, or they are compressed.
    """
    folder = Path(location)
    patterns = [str(folder / "*.tar")] if folder.is_dir() else list(_braces(location))
    names = [name for pattern in patterns for name in sorted(glob.glob(pattern))]  # noqa: PTH207 (absolute patterns)
    paths = [Path(name) for name in names]
    if packed := [path for path in paths if path.suffix != ".tar"]:
        raise TrainingError(
            f"{packed[0]}: expected an uncompressed .tar, since pairs are drawn at any place. Unpack it once: gunzip."
        )
    if not paths:
        raise TrainingError(f"{location}: no such shard.")
    return Shards(paths)


def _samples(path: Path, number: int) -> Iterator[tuple[str, dict[str, _Span]]]:
    """(key, {suffix: span}) of one shard. A damaged shard gives what stands before the damage, and a warning."""
    found: dict[str, dict[str, _Span]] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if member.isreg():
                    name = PurePosixPath(member.name)
                    stem, dot, suffix = name.name.partition(".")
                    span = _Span(number, member.offset_data, member.size)
                    found.setdefault(str(name.with_name(stem)) if stem else member.name, {})[
                        dot + suffix.lower()
                    ] = span
                archive.members = []  # type: ignore[attr-defined]  # tarfile keeps every header otherwise
    except (tarfile.TarError, OSError, EOFError) as error:
        log.warning("%s: damaged (%s); the %d pairs before the damage are used", path, error, len(found))
    yield from found.items()


def _captions(raw: str) -> list[str]:
    try:
        data = json.loads(raw)
    except ValueError:
        return []
    for name in CAPTION_COLUMNS:
        if isinstance(data, dict) and (value := data.get(name)):
            texts = value if isinstance(value, list) else [value]
            return [text.strip() for text in texts if isinstance(text, str) and text.strip()]
    return []


def _braces(pattern: str) -> Iterator[str]:
    """a{00..02}.tar -> a00.tar, a01.tar, a02.tar."""
    if not (span := re.search(r"\{(\d+)\.\.(\d+)\}", pattern)):
        yield pattern
        return
    first, last = span.groups()
    for number in range(int(first), int(last) + 1):
        yield from _braces(pattern[: span.start()] + str(number).zfill(len(first)) + pattern[span.end() :])
