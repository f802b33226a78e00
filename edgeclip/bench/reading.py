"""Reports, matrices and comparisons as JSON files: written for people to read too, opened with every field checked."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from edgeclip.bench import cells, comparison, report
from edgeclip.bench.cells import Matrix
from edgeclip.bench.comparison import Comparison
from edgeclip.bench.report import Pulse, Report, ScenarioResult
from edgeclip.bundle.typed import from_json_value, short
from edgeclip.errors import BundleError, InputError

T = TypeVar("T", Report, Matrix, Comparison)

MOST_BYTES = 64_000_000  # a full report of four scenarios has some 2 MB
MOST = 2.0**63  # of any number, and more than any figure is
DIGITS = 9  # of a number that is kept: 99 s in steps of 100 ns, 1 s in steps of 1 ns

# class -> what its file calls itself, and the version that is written
FORMATS: Mapping[type, tuple[str, tuple[int, int]]] = {
    Report: (report.FORMAT, report.FORMAT_VERSION),
    Matrix: (cells.FORMAT, cells.FORMAT_VERSION),
    Comparison: (comparison.FORMAT, comparison.FORMAT_VERSION),
}


def to_json(value: Report | Matrix | Comparison) -> str:
    """The file's text. Numbers are cut to nine digits, so that writing what was read gives the same text again.

    Raises:
        InputError: a number is not finite; says which.
    """
    name, version = FORMATS[type(value)]
    data = {"format": name, "version": list(version), **asdict(value)}
    _check_numbers(data, name)
    return "".join(_lines(data, "\n")) + "\n"


def open_report(path: Path) -> Report:
    """Read a report.

    Raises:
        InputError: no such file, not a report, of a newer major format, or a field that is not as it should be.
    """
    return parse(Report, _read(path), str(path))


def open_matrix(path: Path) -> Matrix:
    """Read a matrix. Raises InputError as `open_report`."""
    return parse(Matrix, _read(path), str(path))


def open_comparison(path: Path) -> Comparison:
    """Read a comparison. Raises InputError as `open_report`."""
    return parse(Comparison, _read(path), str(path))


def open_any(path: Path) -> Report | Matrix | Comparison:
    """Read a file of whichever kind it says it is. Raises InputError as `open_report`."""
    text = _read(path)
    name = _parse(text, str(path)).get("format")
    cls: type[Any] = next((kind for kind, (known, _) in FORMATS.items() if known == name), Report)
    found: Report | Matrix | Comparison = parse(cls, text, str(path))
    return found


def parse(cls: type[T], text: str, where: str) -> T:
    """What `to_json` wrote. `where` names the file in messages.

    Raises:
        InputError: as `open_report`.
    """
    data = _parse(text, where)
    _check_format(cls, data, where)
    try:
        _check_numbers(data, where)
    except RecursionError as error:  # Python 3.12 and newer read what they cannot walk
        raise InputError(f"{where}: nested too deep. This is not a latency report.") from error
    version = data.pop("version")
    del data["format"]
    try:
        found = from_json_value(cls, data, where, newer=version[1] > FORMATS[cls][1][1])
    except BundleError as error:  # the checks are shared with bundles, the file is none
        raise InputError(str(error)) from error
    if isinstance(found, Report):
        _check_lengths(found, where)
    return found


def _read(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            raw = stream.read(MOST_BYTES + 1)
        if len(raw) > MOST_BYTES:
            raise InputError(
                f"{path}: expected at most {MOST_BYTES // 10**6} MB, got more. This is not a latency report."
            )
        return raw.decode()
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror or error}). Expected a JSON file of `edgeclip bench -o`."
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: expected JSON in UTF-8, got other bytes. This is not a latency report."
        ) from error


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON ({error}). Measure again with `edgeclip bench -o`.") from error
    if not isinstance(data, dict):
        raise InputError(f"{where}: expected a JSON object, got {short(data)}. This is not a latency report.")
    return data


def _check_format(cls: type, data: dict[str, Any], where: str) -> None:
    name, (major, _minor) = FORMATS[cls]
    got = data.get("format")
    if got != name:
        kinds = {known: kind.__name__.lower() for kind, (known, _) in FORMATS.items()}
        is_other = isinstance(got, str) and got in kinds
        hint = f"This is a {kinds[str(got)]}" if is_other else "This is not a file of `edgeclip bench`"
        raise InputError(f'{where}: expected "format": "{name}", got {short(got)}. {hint}.')
    version = data.get("version")
    if not (isinstance(version, list) and len(version) == 2 and all(type(part) is int for part in version)):
        raise InputError(f"{where}: version: expected [major, minor], got {short(version)}. Measure again.")
    if version[0] != major:
        raise InputError(
            f"{where}: {name} format {version[0]}.{version[1]}, this edgeclip reads {major}.x. "
            "Install a newer edgeclip, or measure again."
        )


def _check_numbers(data: object, where: str) -> None:
    """Python's JSON reads and writes NaN and Infinity, and numbers that no page could draw."""
    if isinstance(data, dict):
        for key, value in data.items():
            _check_numbers(value, f"{where}: {key}")
    elif isinstance(data, (list, tuple)):
        for i, value in enumerate(data):
            if type(value) is not float or not abs(value) < MOST:
                # the path is made only where it is needed: a list may hold 20,000 numbers
                _check_numbers(value, f"{where}[{i}]")
    elif type(data) in (int, float) and not abs(data) < MOST:  # type: ignore[arg-type]
        raise InputError(
            f"{where}: expected a finite number, got {short(data)}. The file is damaged: measure again."
        )


def _check_lengths(found: Report, where: str) -> None:
    """Lists that go together are equally long, so that no page has to look again."""
    for name, lists in _lists(found):
        if len({len(values) for values in lists}) > 1:
            lengths = ", ".join(str(len(values)) for values in lists)
            raise InputError(
                f"{where}: {name}: expected lists of equal length, got {lengths}. Measure again."
            )
    for i, result in enumerate(found.scenarios):
        _check_scenario(result, f"{where}: scenarios[{i}]")


def _check_scenario(result: ScenarioResult, where: str) -> None:
    """Launches that hold something each, and figures that have logarithms."""
    spread = result.latency
    figures = [spread.mean_ms, spread.p50.ms, spread.p90.ms, spread.p99.ms, result.throughput_per_s]
    launches = set()
    for name, kept in (("latencies", result.latencies), ("pulse", result.pulse)):
        if kept is None:
            continue
        count = len(kept.at_ms)
        if list(kept.starts) != sorted({0, *(p for p in kept.starts if 0 <= p < count)}) or not count:
            raise InputError(
                f"{where}: {name}: starts: expected rising positions from 0 in a list of {count}, got {short(kept.starts)}."
            )
        launches.add(len(kept.starts))
        figures += kept.us if isinstance(kept, Pulse) else kept.ms
    if len(launches) > 1:
        raise InputError(f"{where}: expected as many launches of pulse as of latencies. Measure again.")
    if min(figures) <= 0:
        raise InputError(f"{where}: expected durations and a throughput above 0. Measure again.")


def _lists(found: Report) -> Iterator[tuple[str, tuple[tuple[Any, ...], ...]]]:
    for i, result in enumerate(found.scenarios):
        yield from ((f"scenarios[{i}]: {name}", lists) for name, lists in _parts(result))
    for series in found.state.series:
        yield f"state: series {series.name!r}", (series.at_s, series.values)


def _parts(result: ScenarioResult) -> Iterator[tuple[str, tuple[tuple[Any, ...], ...]]]:
    if one := result.latencies:
        yield "latencies", (one.at_ms, one.ms, one.sample)
    if pulse := result.pulse:
        yield "pulse", (pulse.at_ms, pulse.us)


def _lines(value: object, newline: str) -> Iterator[str]:
    """JSON text: a list of numbers on one line, everything else one step further in. `newline` ends in the indent."""
    inner = newline + " "
    if isinstance(value, dict) and value:
        for i, (key, item) in enumerate(value.items()):
            yield f"{'{' if i == 0 else ','}{inner}{_scalar(key)}: "
            yield from _lines(item, inner)
        yield newline + "}"
    elif isinstance(value, (list, tuple)) and value and not all(type(item) in (int, float) for item in value):
        for i, item in enumerate(value):
            yield ("[" if i == 0 else ",") + inner
            yield from _lines(item, inner)
        yield newline + "]"
    elif isinstance(value, (list, tuple)):
        yield f"[{', '.join(map(_scalar, value))}]"
    else:
        yield _scalar(value)


def _scalar(value: object) -> str:
    if type(value) is float:
        value = float(f"{value:.{DIGITS}g}")
    # a lone surrogate, of a file name that is no Unicode, cannot be written as UTF-8: \u escapes
    return json.dumps(value, ensure_ascii=not (isinstance(value, str) and value.isprintable()))
