"""`index.json`: what belongs to an index. A file that it does not name does not exist."""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgeclip.bundle.typed import from_json_value, short
from edgeclip.errors import BundleError, InputError
from edgeclip.files import sha256_file
from edgeclip.runtime.index.types import FORMAT, VERSION, IndexSettings, Origin

NAME = "index.json"
IDS = "ids.bin"  # of a segment: int64, little endian, ascending
ENDS = 4096  # bytes at each end of a file that are read when it is opened
DAMAGED = "`edgeclip index verify` says what is damaged; take a copy of the index, or build it again."
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class FileEntry:
    """One file as it was when it was published; it never changes."""

    size: int  # bytes
    sha256: str
    ends: int  # CRC-32 of its first and last `ENDS` bytes: what opening checks

    @classmethod
    def of(cls, path: Path) -> FileEntry:
        """Read the whole file."""
        return cls(path.stat().st_size, sha256_file(path), ends_of(path))

    def read(self, path: Path) -> bytes:
        """The whole content. Raises InputError where it is not what was published."""
        self.check(path)
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise InputError(f"{path}: not what was written there. {DAMAGED}")
        return data

    def check(self, path: Path) -> None:
        """The quick look that opening takes. Raises InputError for another file than the one that was published."""
        try:
            size = path.lstat().st_size
        except FileNotFoundError as error:
            raise InputError(f"{path}: missing. {DAMAGED}") from error
        if path.is_symlink() or not path.is_file():
            raise InputError(f"{path}: expected a file, got a link or a folder. {DAMAGED}")
        if size != self.size:
            raise InputError(f"{path}: expected {self.size} bytes, got {size}. {DAMAGED}")
        if ends_of(path) != self.ends:
            raise InputError(f"{path}: its first or last bytes are not those that were written. {DAMAGED}")


@dataclass(frozen=True)
class SegmentEntry:
    """One folder under `segments/`."""

    name: str
    count: int  # of its vectors, removed ones too
    files: Mapping[str, FileEntry]


@dataclass(frozen=True)
class Manifest:
    """The whole of `index.json`."""

    generation: int  # counts the manifests of this index
    origin: Origin
    settings: IndexSettings
    log: int  # the generation that began it: logs/<log>.log
    next_id: int  # that the log's first new item gets
    segments: tuple[SegmentEntry, ...] = ()
    removed: str = ""  # file of the ids that segments and log hold and that are gone; "": none
    scales: str = ""  # file of what int8 and bits were fitted to; "": none
    files: Mapping[str, FileEntry] = field(default_factory=dict)  # those two
    measured: Mapping[str, Any] = field(default_factory=dict)  # recall and the like
    made: Mapping[str, str] = field(default_factory=dict)  # version of edgeclip, times

    def to_json(self) -> str:
        """The file's text: sorted, with the digest of all other fields."""
        data = {"format": FORMAT, "version": VERSION, **asdict(self)}
        return json.dumps({**data, "digest": _digest(data)}, indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, where: str) -> Manifest:
        """Parse and check. `where` names the file in messages.

        Raises:
            InputError: no index, a newer version, a wrong field, content that was edited.
        """
        try:
            data = json.loads(text)
        except ValueError as error:
            raise InputError(f"{where}: not JSON ({error}). {DAMAGED}") from error
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise InputError(f'{where}: expected "format": "{FORMAT}", got {short(data)}. This is no index.')
        if (version := data.get("version")) != VERSION:
            raise InputError(
                f"{where}: index version {short(version)}, this edgeclip reads {VERSION}. Install a newer edgeclip, or build again."
            )
        if data.pop("digest", None) != _digest(data):
            raise InputError(f"{where}: edited or damaged: it does not match its own digest. {DAMAGED}")
        del data["format"], data["version"]
        try:
            found = from_json_value(cls, data, where)
        except BundleError as error:  # names the place
            raise InputError(f"{str(error).rstrip('.')}. {DAMAGED}") from error
        except InputError as error:  # of IndexSettings
            raise InputError(f"{where}: settings: {str(error).rstrip('.')}. {DAMAGED}") from error
        found._check(where)
        return found

    def _check(self, where: str) -> None:
        names = [entry.name for entry in self.segments]
        inner = [name for entry in self.segments for name in entry.files]
        wrong = [name for name in (*names, *inner, *self.files) if not _PLAIN.fullmatch(name)]
        wrong += [name for name in (self.removed, self.scales) if name and name not in self.files]
        wrong += [entry.name for entry in self.segments if not _ids_fit(entry)]
        if wrong or len(set(names)) < len(names) or self.origin.dim < 1 or min(self.log, self.next_id) < 0:
            what = f"{short(wrong[0])} cannot be" if wrong else "its fields contradict each other"
            raise InputError(f"{where}: {what}. {DAMAGED}")


def ends_of(path: Path) -> int:
    """CRC-32 of a file's first and last `ENDS` bytes."""
    with path.open("rb") as stream:
        first = zlib.crc32(stream.read(ENDS))
        stream.seek(max(0, path.stat().st_size - ENDS))
        return zlib.crc32(stream.read(ENDS), first)


def _ids_fit(entry: SegmentEntry) -> bool:
    ids = entry.files.get(IDS)
    return ids is not None and entry.count >= 0 and ids.size == 8 * entry.count


def _digest(data: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
