"""Where reports are kept: local ones in the machine's cache, and those that travel inside a bundle."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection, Iterator
from datetime import datetime, timezone
from pathlib import Path

from edgeclip.bench.reading import open_report, to_json
from edgeclip.bench.report import Report
from edgeclip.bundle import Bundle
from edgeclip.bundle.amend import amend
from edgeclip.errors import EdgeClipError, InputError
from edgeclip.files import write_file

FOLDER = "reports"
MOST_LOCAL = 50  # a report has up to a megabyte; the oldest go

log = logging.getLogger(__name__)


def keep(bundle: Bundle, report: Report) -> Path:
    """Write a report among the bundle's local ones, and return its file. Of more than MOST_LOCAL the oldest are removed.

    Raises:
        InputError: the cache cannot be written.
    """
    text = to_json(report)
    folder = bundle.cache / FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        bundle.cache.chmod(0o700)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be written ({error.strerror or error}). Set EDGECLIP_CACHE, or pass --no-save."
        ) from error
    path = folder / _file_name(report, text)
    write_file(path, text, private=True)
    for old in _files(bundle)[MOST_LOCAL:]:
        old.unlink(missing_ok=True)
    return path


def kept(bundle: Bundle, limit: int | None = None) -> list[tuple[Path, Report]]:
    """The bundle's local reports with their files, newest first. Damaged ones are passed over with a warning.

    Args:
        limit: of how many; None: all.
    """
    return list(_readable(_files(bundle)[:limit]))


def count_kept(bundle: Bundle) -> int:
    """How many local reports there are."""
    return len(_files(bundle))


def attached(bundle: Bundle) -> list[tuple[Path, Report]]:
    """The reports inside the bundle, newest first. Damaged ones are passed over with a warning."""
    return list(_readable(sorted((bundle.path(name) for name in bundle.manifest.reports), reverse=True)))


def attach(bundle: Bundle, report: Report, output: Path, *, overwrite: bool = False) -> Bundle:
    """Write a bundle that is this one with a report in it: same model, same graphs.

    Raises:
        InputError: a report of another model or of graphs that this bundle does not have, one that it holds already, or an
            output that is there.
        CheckFailed: the bundle is damaged.
    """
    manifest = bundle.manifest
    if report.subject.model_id != manifest.model_id:
        raise InputError(
            f"{bundle.root}: the report is of another model ({report.subject.name}, model id "
            f"{report.subject.model_id[:16]}; expected {manifest.model_id[:16]}). Attach it to the bundle that it measured."
        )
    graphs = {manifest.files[variant.files[0]].sha256 for variant in manifest.variants}
    if missing := [t for t in report.subject.towers if t.graph_sha256 not in {*graphs, ""}]:
        raise InputError(
            f"{bundle.root}: the report is of the graph {missing[0].variant} ({missing[0].graph_sha256[:12]}...), which this "
            "bundle does not have. Attach it to the bundle that it measured."
        )
    text = to_json(report)
    name = f"{FOLDER}/{_file_name(report, text)}"
    if name in manifest.files:
        raise InputError(f"{bundle.root}: holds this report already ({name}).")
    reports = (*manifest.reports, name)
    return amend(bundle, output, {name: text.encode()}, overwrite=overwrite, reports=reports)


def still_true(bundle: Bundle, graphs: Collection[str]) -> list[str]:
    """Which reports of a bundle hold for another that has only some of its graphs.

    Args:
        graphs: SHA-256 of each.
    """
    return [
        path.relative_to(bundle.root).as_posix()
        for path, report in attached(bundle)
        if all(tower.graph_sha256 in graphs for tower in report.subject.towers)
    ]


def _file_name(report: Report, text: str) -> str:
    """Sorts by time; two reports of one second differ by their digest."""
    try:
        when = datetime.fromisoformat(report.created.replace("Z", "+00:00")).astimezone(timezone.utc)
    except (ValueError, OverflowError) as error:  # or in a year that has no UTC
        raise InputError(
            f"report: created: expected a time such as 2026-01-31T12:00:00+00:00, got {report.created[:40]!r}."
        ) from error
    return f"{when:%Y%m%dT%H%M%SZ}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"


def _files(bundle: Bundle) -> list[Path]:
    return sorted((bundle.cache / FOLDER).glob("[0-9]*.json"), reverse=True)


def _readable(paths: list[Path]) -> Iterator[tuple[Path, Report]]:
    for path in paths:
        try:
            yield path, open_report(path)
        except EdgeClipError as error:
            log.warning("passed over: %s", error)
