"""Engines on disk: written whole, found by what they are for, verified before one byte of them is executed.

<name>.json               the record, under the seal of this machine; moving it in makes the engine the current one
<name>.<sha256>.engine    the plan that it names
graphs/                   graphs that were made beside an engine
timing/, runtime/         caches.py
"""

from __future__ import annotations

import hashlib
import logging
import os
import shlex
import stat
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import datetime, timezone
from functools import cache
from pathlib import Path

from edgeclip.bundle import Bundle, Variant
from edgeclip.bundle.store import MANIFEST
from edgeclip.errors import EdgeClipError, EngineError
from edgeclip.files import sha256_file, write_file
from edgeclip.runtime.cuda import Device
from edgeclip.runtime.engines.seam import EngineOptions
from edgeclip.runtime.tensorrt.fit import Here, misfit, this_platform
from edgeclip.runtime.tensorrt.guard import locked, make_private, read_private
from edgeclip.runtime.tensorrt.key import machine_key
from edgeclip.runtime.tensorrt.library import Library
from edgeclip.runtime.tensorrt.record import BuildOptions, Record
from edgeclip.runtime.tensorrt.records import (
    HALF,
    PLAN,
    name_of,
    plan_name,
    read_record,
    read_records,
    write_record,
)

LOCK = ".lock"
VARIABLE = "EDGECLIP_ENGINES"

log = logging.getLogger(__name__)


def store_of(bundle: Bundle, options: EngineOptions) -> Store:
    """Where a bundle's engines are: the folder that the options name, else that of $EDGECLIP_ENGINES, else the bundle's own in the cache."""
    named = os.environ.get(VARIABLE)
    return Store(options.engines or (Path(named) if named else default_folder(bundle)), bundle)


def default_folder(bundle: Bundle) -> Path:
    """A bundle's own folder of engines in the cache."""
    return bundle.cache / "engines"


class Store:
    """The engines in one folder.

    Args:
        folder: need not be there yet.
        bundle: whose engines they are, and are checked against; None: anybody's, as an inspector wants them.
    """

    def __init__(self, folder: Path, bundle: Bundle | None = None) -> None:
        self.folder, self.bundle = folder, bundle

    def prepare(self) -> None:
        """Make the folder and the key, or say why not: to be called before a build that takes minutes.

        Raises:
            EngineError: the folder cannot be written, others may write in it, or a bundle lies there; or the key cannot be
                made or trusted.
        """
        if any((folder / MANIFEST).exists() for folder in (self.folder, *self.folder.absolute().parents)):
            raise EngineError(f"{self.folder}: inside a bundle, which never changes. Choose another folder.")
        make_private(self.folder)
        machine_key(create=True)
        with self._locked():
            pass  # it can be written

    def put(self, record: Record, plan: bytes | memoryview) -> Record:
        """Keep an engine; the one of the same name gives way to it.

        Args:
            record: its size, digest, platform and date are filled in here.
            plan: not copied.
        Raises:
            EngineError: see `prepare`.
            InputError: it cannot be written, or the disk is full; the old engine stays.
        """
        self.prepare()
        plan = memoryview(plan).cast("B")
        record = replace(
            record,
            size=plan.nbytes,
            sha256=hashlib.sha256(plan).hexdigest(),
            platform=record.platform or this_platform(),
            created=record.created or datetime.now(timezone.utc).isoformat(timespec="microseconds"),
        )
        with self._locked():
            try:
                self._sweep(name_of(record))
                write_file(self.plan_path(record), plan, private=True)
                write_record(self.folder, record)
            finally:
                self._sweep(name_of(record))
        return record

    def update(self, record: Record) -> bool:
        """Write down what was learnt of an engine, e.g. its fidelity. False: the store cannot be written, as on a read-only disk.

        Raises:
            EngineError: it is no longer there, or another one took its place.
        """
        try:
            with self._locked():
                self._current(record)
                write_record(self.folder, record)
        except EdgeClipError as error:
            self._current(record)  # raises where that is the reason
            log.info("%s: not written down: %s", record.variant.id, error)
            return False
        return True

    def records(self) -> list[Record]:
        """Every engine under this machine's seal, newest first. Reads no plan. Never raises: see `problems`."""
        return [
            each
            for each in read_records(self.folder)[0]
            if self.bundle is None or each.bundle == self.bundle.digest
        ]

    def problems(self) -> list[str]:
        """What lies here but cannot be used, and why, one line each."""
        lost = [
            f"{self.plan_path(record)}: missing, or not of the {record.size} bytes that its record says."
            for record in self.records()
            if not self._is_there(record)
        ]
        return read_records(self.folder)[1] + lost

    def misfit(self, record: Record, library: Library | None = None, device: Device | None = None) -> str:
        """Why an engine may not run here; "": it may. None: not asked."""
        return misfit(record, Here(self.bundle, library, device))

    def find(
        self,
        *,
        library: Library | None = None,
        name: str | None = None,
        device: Device | None = None,
        variant: Variant | str | None = None,
        options: BuildOptions | None = None,
        graphs: Mapping[str, str] | None = None,
    ) -> list[Record]:
        """The engines that may run here, newest first. None: not asked. Looks at no plan. Never raises.

        Args:
            library: that opens them.
            name: of the library, where it need not be imported.
            device: that runs them.
            variant: that they are of, or its id.
            options, graphs: that they were built with, exactly.
        """
        wanted = variant.id if isinstance(variant, Variant) else variant
        found = []
        everything, problems = read_records(self.folder)
        for line in problems:
            _warn(line)
        for record in everything:
            asked = (
                (name, record.library),
                (wanted, record.variant.id),
                (options, record.options),
                (graphs, record.graphs),
            )
            if any(wish not in (None, fact) for wish, fact in asked):
                continue
            if reason := self.misfit(record, library, device):
                log.info("%s: passed over: %s", self.plan_path(record), reason)
            else:
                found.append(record)
        return found

    def local_variants(
        self, *, library: Library | None = None, name: str | None = None, device: Device | None = None
    ) -> list[Variant]:
        """What there are engines for, newest first, each id once. See `find`."""
        newest: dict[str, Variant] = {}
        for record in self.find(library=library, name=name, device=device):
            newest.setdefault(record.variant.id, record.variant)
        return list(newest.values())

    def plan(self, record: Record, library: Library | None = None, device: Device | None = None) -> bytes:
        """An engine's bytes after every check. Only these very bytes may be deserialised.

        Args:
            record: of `find`. It is read and verified once more.
            library, device: that will run it; None: not asked.
        Raises:
            EngineError: the check that failed, and how to build the engine again.
        """
        kept = self._current(record)
        if reason := self.misfit(kept, library, device):
            raise EngineError(f"{self.plan_path(kept)}: {reason}. {self._again(kept)}")
        if kept.options.strip_weights:
            self.graph(kept)  # its weights will come from there
        try:
            plan = read_private(self.plan_path(kept), kept.size)
        except FileNotFoundError:
            raise EngineError(f"{self.plan_path(kept)}: missing. {self._again(kept)}") from None
        except EngineError as error:
            raise EngineError(f"{error} {self._again(kept)}") from error
        if len(plan) != kept.size or hashlib.sha256(plan).hexdigest() != kept.sha256:
            raise EngineError(
                f"{self.plan_path(kept)}: not the {kept.size} bytes that were built: changed or cut short. "
                f"{self._again(kept)}"
            )
        return plan

    def take(self, variant: Variant, library: Library, device: Device) -> tuple[Record, bytes]:
        """The newest engine of a variant that may run here, and its bytes. See `plan`.

        Raises:
            EngineError: there is none, or it cannot be trusted.
        """
        tried: list[Record] = []
        while found := self.find(library=library, device=device, variant=variant)[:1]:
            try:
                return found[0], self.plan(found[0], library, device)
            except EngineError:
                if found == tried:  # else another process may just have replaced it
                    raise
                tried = found
        raise EngineError(self._nothing(variant, library, device))

    def graph(self, record: Record) -> Path:
        """The graph that an engine was built from, every byte of it verified. Raises EngineError."""
        if not record.made_from and self.bundle is None:
            raise EngineError(
                f"{self.folder}: the graph of {record.variant.id} lies in its bundle. Open that."
            )
        root = self.folder if record.made_from or self.bundle is None else self.bundle.root
        for name, digest in record.graphs.items():
            path = root / name
            try:
                same = not path.is_symlink() and sha256_file(path) == digest
            except OSError as error:
                raise EngineError(
                    f"{path}: cannot be read ({error.strerror or error}). {self._again(record)}"
                ) from error
            if not same:
                raise EngineError(f"{path}: not what the engine was built from. {self._again(record)}")
        return root / record.variant.files[0]

    def plan_path(self, record: Record) -> Path:
        """Where its bytes lie. For messages: `plan` reads them."""
        return self.folder / plan_name(record)

    def remove(self, record: Record) -> None:
        """Forget an engine. Its graph stays: others may be built from it."""
        with self._locked():
            self._path(record).unlink(missing_ok=True)
            self._sweep(name_of(record))

    def clear(self) -> int:
        """Remove a bundle's engines and their graphs; from its own folder everything. Returns the bytes that were freed."""
        if not self.folder.is_dir():
            return 0
        with self._locked():
            mine = self.records()
            others = [record for record in read_records(self.folder)[0] if record not in mine]
            gone = {path for record in mine for path in self._files(record)}
            gone -= {path for record in others for path in self._files(record)}
            gone |= {path for path in self.folder.iterdir() if HALF.fullmatch(path.name)}
            if self._is_own:
                gone |= {path for path in self.folder.rglob("*") if path != self.folder / LOCK}
            return sum(_unlink(path) for path in sorted(gone, reverse=True))  # a folder after what lies in it

    def _current(self, record: Record) -> Record:
        """What is kept now under an engine's name."""
        path = self._path(record)
        try:
            kept = read_record(self.folder, name_of(record))
        except FileNotFoundError:
            raise EngineError(f"{path}: missing. {self._again(record)}") from None
        except EngineError as error:
            raise EngineError(f"{error} {self._again(record)}") from error
        if (kept.sha256, kept.size) != (record.sha256, record.size):
            raise EngineError(f"{path}: another engine took its place. Open it again.")
        return kept

    def _path(self, record: Record) -> Path:
        return self.folder / f"{name_of(record)}.json"

    def _files(self, record: Record) -> list[Path]:
        graphs = [self.folder / name for name in record.graphs] if record.made_from else []
        return [self._path(record), self.plan_path(record), *graphs]

    def _is_there(self, record: Record) -> bool:
        try:
            return self.plan_path(record).lstat().st_size == record.size
        except OSError:
            return False

    def _locked(self) -> AbstractContextManager[None]:
        return locked(self.folder / LOCK)

    def _sweep(self, name: str) -> None:
        """Under the lock: remove plans of this name that no record names, and halves that killed writers left."""
        try:
            keep = self.plan_path(read_record(self.folder, name))
        except (FileNotFoundError, EngineError):
            keep = None
        for path in self.folder.iterdir():
            plan = PLAN.fullmatch(path.name)
            if (plan and plan[1] == name and path != keep) or HALF.fullmatch(path.name):
                path.unlink(missing_ok=True)

    def _again(self, record: Record) -> str:
        """The command that builds an engine again."""
        archs = ["--arch", ",".join(record.options.archs)] if record.options.archs else []
        return self._command(record.library, ["--precision", record.variant.axes.precision, *archs])

    def _command(self, library: str, more: list[str]) -> str:
        words = ["edgeclip", "build", str(self.bundle.root) if self.bundle else "BUNDLE", "--target", library]
        return f"Run: {shlex.join([*words, *more, *([] if self._is_own else ['-o', str(self.folder)])])}"

    @property
    def _is_own(self) -> bool:
        return self.bundle is not None and self.folder == default_folder(self.bundle)

    def _nothing(self, variant: Variant, library: Library, device: Device) -> str:
        """The message for a variant without an engine, with the reason for the newest that there is."""
        why = [
            f"One was {self.misfit(record, library, device)}. "
            for record in self.records()
            if record.variant.id == variant.id
        ]
        here = f"{library.name} {library.version} on {device.name} ({device.arch})"
        again = self._command(library.name, ["--precision", variant.axes.precision])
        but = next(iter([*why, *(f"{line} " for line in read_records(self.folder)[1])]), "")
        return f"{self.folder}: no engine of {variant.id} for {here}. {but}{again}"


@cache  # once a process: engines are looked for at each opening
def _warn(line: str) -> None:
    log.warning("no engine that may be loaded: %s", line)


def _unlink(path: Path) -> int:
    """Remove a file or an empty folder. Returns its bytes."""
    try:
        found = path.lstat()
        path.rmdir() if stat.S_ISDIR(found.st_mode) else path.unlink()
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise EngineError(f"{path}: cannot be removed ({error.strerror or error}).") from error
    return 0 if stat.S_ISDIR(found.st_mode) else found.st_size
