"""Records of engines as files, each under the seal of this machine."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict
from pathlib import Path

from edgeclip.bundle.typed import from_json_value
from edgeclip.errors import BundleError, EngineError
from edgeclip.runtime.tensorrt.guard import check_folder
from edgeclip.runtime.tensorrt.key import machine_key, read_sealed, write_sealed
from edgeclip.runtime.tensorrt.record import Record

FORMAT = "edgeclip.engine"
VERSION = 1
MAX_BYTES = 1 << 20
_NAME = r"[\w-]+-[0-9a-f]{16}"
RECORD = re.compile(rf"{_NAME}\.json")
PLAN = re.compile(rf"({_NAME})\.[0-9a-f]{{16}}\.engine")
HALF = re.compile(rf"\.{_NAME}(\.json|\.[0-9a-f]{{16}}\.engine)\.\w+")  # of a writer that was killed


def name_of(record: Record) -> str:
    """What an engine is called after: its graph, library, place and options. Of those with one name only the newest is kept."""
    device = record.device
    facts = {
        "variant": record.variant.id,
        "bundle": record.bundle,
        "graphs": dict(record.graphs),
        "library": [record.library, record.version, record.platform],
        "device": [device.name, device.capability, device.memory >> 30]
        if device and not record.options.archs
        else None,
        "options": asdict(record.options),
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return f"{re.sub(r'[^A-Za-z0-9_-]', '_', record.variant.id)[:80]}-{digest[:16]}"


def plan_name(record: Record) -> str:
    """The file of its plan: another plan is another file, so that a record never points at half of one."""
    return f"{name_of(record)}.{record.sha256[:16]}.engine"


def read_record(folder: Path, name: str) -> Record:
    """The record of that name.

    Raises:
        FileNotFoundError: there is none.
        EngineError: no seal of this machine, of another version, or a renamed copy.
    """
    path = folder / f"{name}.json"
    data = json.loads(read_sealed(path, FORMAT, MAX_BYTES) + b"\n}")
    if data.get("version") != VERSION:
        raise EngineError(
            f"{path}: version {data.get('version')} of {FORMAT}, this edgeclip reads {VERSION}. Build the engine again."
        )
    try:
        record = from_json_value(Record, data["record"], str(path))
    except BundleError as error:
        raise EngineError(f"{error} Build the engine again.") from error
    if name_of(record) != name:
        raise EngineError(
            f"{path}: its name does not follow from its content: a renamed copy, or another edgeclip's. Remove it."
        )
    return record


def write_record(folder: Path, record: Record) -> None:
    """Write a record, whole or not at all. Raises InputError where it cannot be written."""
    text = json.dumps(
        {"format": FORMAT, "version": VERSION, "record": asdict(record)}, indent=1, allow_nan=False
    )
    write_sealed(folder / f"{name_of(record)}.json", text.removesuffix("\n}").encode(), FORMAT)


def read_records(folder: Path) -> tuple[list[Record], list[str]]:
    """Every engine of a folder, newest first, and what is wrong with the rest, one line each. Never raises."""
    found, problems = [], []
    try:
        names = sorted(path.stem for path in folder.iterdir() if RECORD.fullmatch(path.name))
        if names:
            check_folder(folder)
            machine_key()  # one line for all of them
    except FileNotFoundError:
        return [], []
    except OSError as error:
        return [], [f"{folder}: cannot be read ({error.strerror or error})."]
    except EngineError as error:
        return [], [str(error)]
    for name in names:
        try:
            found.append(read_record(folder, name))
        except FileNotFoundError:
            continue  # removed since
        except EngineError as error:
            problems.append(str(error))
    return sorted(found, key=lambda record: record.created, reverse=True), problems
