"""webdataset tar shards: members of one name before the first dot belong together (0001.jpg, 0001.txt, 0001.json).

Nothing is extracted and nothing is unpickled. A shard that is cut short gives what is whole.
"""

from __future__ import annotations

import glob
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from edgeclip.errors import InputError
from edgeclip.files import PICTURE_SUFFIXES
from edgeclip.runtime.images.decode import DecodeLimits
from edgeclip.runtime.index.sources.entry import Entry, Unreadable, Whole, caption_facts, check_key, digest
from edgeclip.runtime.index.sources.folder import absolute, fields_of
from edgeclip.runtime.index.types import Origin

_TEXT = (".txt", ".caption", ".text")
_MOST_TEXT = 1 << 20  # bytes of a caption or of fields
_BLOCK = 512  # bytes; a whole archive ends in two blocks of zeros
Members = dict[str, tarfile.TarInfo]  # suffix, lower case -> member


def matches(location: str) -> bool:
    """Whether this names .tar files: one, a pattern, or a folder that holds some."""
    path = Path(location)
    return ".tar" in path.suffixes or path.suffix == ".tgz" or (path.is_dir() and any(path.glob("*.tar")))


def open_source(location: str, root: str | os.PathLike[str] | None = None) -> Shards:
    """The shards that `location` names.

    Raises:
        InputError: none is there, or they are compressed.
    """
    patterns = (
        [str(Path(glob.escape(location)) / "*.tar")] if Path(location).is_dir() else list(_braces(location))
    )
    paths = [absolute(name) for pattern in patterns for name in _shards(pattern)]
    if packed := [path for path in paths if path.suffix != ".tar"]:
        raise InputError(
            f"{packed[0]}: expected an uncompressed .tar, since pictures are read again at their place. Unpack it once: gunzip."
        )
    if not paths:
        raise InputError(
            f"{location}: no such shard. Expected a .tar, a folder of them, or a pattern as a-{{000..009}}.tar."
        )
    return Shards(paths)


def _shards(pattern: str) -> list[str]:
    return [pattern] if Path(pattern).is_file() else sorted(glob.glob(pattern))  # noqa: PTH207  (absolute patterns)


def _braces(pattern: str) -> Iterator[str]:
    """a{00..02}.tar -> a00.tar, a01.tar, a02.tar."""
    if not (span := re.search(r"\{(\d+)\.\.(\d+)\}", pattern)):
        yield pattern
        return
    first, last = span.groups()
    for number in range(int(first), int(last) + 1):
        yield from _braces(pattern[: span.start()] + str(number).zfill(len(first)) + pattern[span.end() :])


class Shards(Whole):
    """Tar files, read in turn."""

    has_vectors = False
    origin: Origin | None = None

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self.names: Sequence[str] = [str(path) for path in paths]

    def count(self) -> int:
        """How many pictures there are; walks the headers only."""
        return sum(isinstance(found, tuple) for path in self._paths for found in _groups(path))

    def __iter__(self) -> Iterator[Entry | Unreadable]:
        for path in self._paths:
            whole = 0
            try:
                with path.open("rb") as stream:
                    for found in _groups(path):
                        whole += isinstance(found, tuple)
                        yield _entry(path, stream, *found) if isinstance(found, tuple) else found
            except OSError as error:
                yield Unreadable(path.name, f"{path}: cannot be read ({error.strerror}).", partly=True)


def _groups(path: Path) -> Iterator[tuple[str, Members] | Unreadable]:
    """(name, members) of each sample with a picture; the last says where the shard was found damaged, if it was."""
    name, members, whole = "", Members(), 0
    try:
        with tarfile.open(path, "r:") as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # tarfile keeps every header otherwise
                if not member.isreg():
                    continue
                own = PurePosixPath(member.name)
                stem, dot, rest = own.name.partition(".")
                if (stem := str(own.with_name(stem)) if stem else member.name) != name:
                    if _picture(members):
                        whole += 1
                        yield name, members
                    name, members = stem, {}
                members[dot + rest.lower()] = member
            problem = "" if _ends(path, archive.offset) else "it has no end"
    except (tarfile.TarError, EOFError, ValueError) as error:
        problem = str(error)
        if members and not _within(path, members):  # the member that the damage is in
            members.popitem()
    if _picture(members):
        whole += 1
        yield name, members
    if problem:
        reason = f"{path}: damaged ({problem}); the {whole} pictures before that are used. Copy it again."
        yield Unreadable(path.name, reason, partly=True)


def _ends(path: Path, offset: int) -> bool:
    with path.open("rb") as stream:
        stream.seek(offset)
        return stream.read(_BLOCK) == bytes(_BLOCK)


def _within(path: Path, members: Members) -> bool:
    last = list(members.values())[-1]
    return last.offset_data + last.size <= path.stat().st_size


def _picture(members: Members) -> tarfile.TarInfo | None:
    return next((member for suffix, member in members.items() if suffix in PICTURE_SUFFIXES), None)


def _entry(path: Path, stream: BinaryIO, name: str, members: Members) -> Entry | Unreadable:
    key = f"{path.name}/{name}"
    try:
        check_key(key)
        picture = _picture(members)
        assert picture is not None
        data = _read(stream, picture, DecodeLimits().max_bytes)
        record = {
            "source": str(path),
            "path": picture.name,
            "offset": picture.offset_data,
            "size": len(data),
            "sha256": digest(data),
        }
        if table := members.get(".json"):
            record.update(
                fields_of(_read(stream, table, _MOST_TEXT).decode(errors="replace"), f"{path}/{table.name}")
            )
        if text := next((members[suffix] for suffix in _TEXT if suffix in members), None):
            record.update(
                caption_facts(_read(stream, text, _MOST_TEXT).decode(errors="replace").splitlines())
            )
    except InputError as error:
        return Unreadable(key, str(error))
    return Entry(key, record, data)


def _read(stream: BinaryIO, member: tarfile.TarInfo, most: int) -> bytes:
    if member.size > most:
        raise InputError(
            f"{stream.name}/{member.name}: {member.size} bytes; the limit is {most}. Save it smaller."
        )
    stream.seek(member.offset_data)
    data = stream.read(member.size)
    if len(data) < member.size:
        raise InputError(f"{stream.name}/{member.name}: cut short. Copy the shard again.")
    return data
