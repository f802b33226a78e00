"""The largest student that a device runs in time, by reports that were measured there. Nothing is worked out from operations.

    write_candidates(teacher, CANDIDATES, Path("candidates"))      a bundle for each, named after the student, weights inherited
    edgeclip bench candidates/half -o reports/half.json            on the device, for each of them
    name, measured = choose(teacher, parse_ms("8ms"), [Path("reports")])

A report is matched to its student by the model_id that the teacher's digest and the student's name give, whatever weights the candidate
has: of another teacher's candidates, or of a student that was trained since, nothing is taken. A candidate that was compressed keeps its model_id, so that
int8 may be measured as well: of several reports of one student the fastest counts, and says its precision.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from edgeclip.bench.reading import open_any, open_report
from edgeclip.bench.report import Report
from edgeclip.bundle import identity
from edgeclip.errors import EdgeClipError, InputError
from edgeclip.export.api import TOKENIZER, ExportSettings, export_bundle
from edgeclip.files import new_folder
from edgeclip.models.importance import PairSamples
from edgeclip.models.source import Source
from edgeclip.models.students import is_made, needs_samples, slug, student

Percentile = Literal["p50", "p90", "p99"]
# what is tried without names: of each size one or two, the largest first
CANDIDATES = (
    "full",
    "short-text",
    "three-quarters",
    "half",
    "half-depth",
    "half-width",
    "half-both",
    "quarter",
)
_UNITS: Mapping[str, float] = {"us": 1e-3, "ms": 1.0, "s": 1e3}
_TRY = "edgeclip distill TEACHER --candidates OUT"


@dataclass(frozen=True)
class Measured:
    """What a student took on the device."""

    student: str
    ms: float
    percentile: Percentile
    parameters: int  # that compute: without the table of tokens, of which a text reads a few rows
    task: str
    device: str
    precisions: tuple[str, ...]  # of the towers that ran, e.g. ("int8", "fp32")
    report: Path
    notes: tuple[str, ...] = ()  # why the figure may not hold


class Choice(NamedTuple):
    """The chosen student."""

    name: str
    measured: Measured


def parse_ms(text: str) -> float:
    """From "8ms", "8 ms", "0.008s" or "8000us". Raises InputError for a number without a unit, or none above 0."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(us|ms|s)\s*", text, re.IGNORECASE)
    ms = float(found[1]) * _UNITS[found[2].lower()] if found else math.nan
    if not ms > 0:
        raise InputError(f"--latency {text!r}: expected a duration with its unit, e.g. 8ms or 0.008s.")
    return ms


def write_candidates(
    teacher: Source,
    names: Sequence[str],
    output: Path,
    *,
    settings: ExportSettings | None = None,
    samples: PairSamples | None = None,
) -> list[Path]:
    """A bundle for each student, to be measured on the device. They are not trained: only their speed says something.

    Args:
        output: a folder to make; it appears whole, with a folder for each student, or not at all.
        settings: of every export.
        samples: for names that need some (`students.needs_samples`).
    Returns:
        the bundles, in the order of `names`.
    Raises:
        InputError: no names, one twice, one that is no size of this teacher, or an output that is there.
        SourceError, CheckFailed: as `student` and `export_bundle`.
    """
    if not names or len({slug(name) for name in names}) < len(names):
        raise InputError(f"--candidates: expected different students, got {', '.join(names) or 'none'}.")
    if others := [name for name in names if not is_made(name)]:
        raise InputError(
            f"--candidates: {others[0]} is not made from the teacher. Export it by itself, with `edgeclip export`."
        )
    made = [candidate(teacher, name, samples) for name in names]  # all, before minutes of export
    with new_folder(output) as scratch:
        for name, source in zip(names, made, strict=True):
            export_bundle(source, scratch / slug(name), settings=settings)
    return [output / slug(name) for name in names]


def choose(
    teacher: Source,
    budget_ms: float,
    reports: Sequence[Path],
    *,
    percentile: Percentile = "p90",
    samples: PairSamples | None = None,
) -> Choice:
    """The student with the most parameters whose single query took no longer than the budget.

    Args:
        reports: of `edgeclip bench`, one or more; of a folder all that lie in it.
        percentile: of a single stream's latencies.
        samples: as `write_candidates` takes them.
    Raises:
        InputError: no report, one of something else than this teacher's candidates, several tasks or devices, or none that fits: says
            which was the fastest.
    """
    if not budget_ms > 0:
        raise InputError(f"--latency: expected a duration above 0 ms, got {budget_ms:g}.")
    if percentile not in get_args(Percentile):
        raise InputError(f"percentile {percentile!r}: expected one of {', '.join(get_args(Percentile))}.")
    opened = _opened(reports)
    _check_alike(opened)
    parameters: dict[str, int] = {}
    found = [
        _measured(teacher, path, report, percentile, samples, parameters) for path, report in opened.items()
    ]
    fastest: dict[str, Measured] = {}
    for one in sorted(found, key=lambda one: one.ms, reverse=True):
        fastest[one.student] = one
    fits = [one for one in fastest.values() if one.ms <= budget_ms]
    if not fits:
        best = min(fastest.values(), key=lambda one: one.ms)
        raise InputError(
            f"--latency {budget_ms:g}ms: no student is that fast. The fastest measured is {best.student} with {percentile} "
            f"{best.ms:.3g} ms ({best.task} on {best.device}). Allow that, measure smaller candidates, or compress them first."
        )
    chosen = max(fits, key=lambda one: (one.parameters, -one.ms))
    return Choice(chosen.student, chosen)


def candidate(teacher: Source, name: str, samples: PairSamples | None = None) -> Source:
    """A student to be measured. Its identity is of teacher and name alone: no weight decides a latency."""
    made = student(teacher, name, samples=samples if needs_samples(name) else None)
    told = repr([teacher.digest, "candidate", name]).encode()
    return replace(made, name=name, digest=hashlib.sha256(told).hexdigest())


def computing_parameters(source: Source) -> int:
    """Parameters that every query multiplies with: all but the table of tokens."""
    return sum(
        parameter.numel()
        for name, parameter in source.model.named_parameters()
        if not name.endswith("embedding.weight")
    )


def _opened(paths: Sequence[Path]) -> dict[Path, Report]:
    found: dict[Path, Report] = {}
    for path in paths:
        if not path.is_dir():
            found[path] = open_report(path)
            continue
        for file in sorted(path.glob("*.json")):
            try:
                report = open_any(file)  # a folder may hold matrices and comparisons as well
            except EdgeClipError as error:
                raise InputError(f"--device-report: {error}") from error
            if isinstance(report, Report):
                found[file] = report
    if not found:
        where = ", ".join(map(str, paths)) or "nothing"
        raise InputError(
            f"--device-report: no report in {where}. Run `{_TRY}`, then `edgeclip bench` for each bundle on the device."
        )
    return found


def _check_alike(reports: Mapping[Path, Report]) -> None:
    """One task, one device, one number of threads: anything else is not to be compared."""
    said = {
        "task": {report.settings.task for report in reports.values()},
        "device": {f"{report.device.name} ({report.device.cpu})" for report in reports.values()},
        "number of threads": {str(report.subject.threads) for report in reports.values()},
    }
    for what, values in said.items():
        if len(values) > 1:
            raise InputError(
                f"--device-report: expected reports of one {what}, got {' and '.join(sorted(values))}. Name those of one."
            )


def _measured(
    teacher: Source,
    path: Path,
    report: Report,
    percentile: Percentile,
    samples: PairSamples | None,
    parameters: dict[str, int],
) -> Measured:
    name = report.subject.name
    made = None
    if is_made(name):  # a name in a file must not make anything be downloaded
        try:
            made = candidate(teacher, name, samples)
        except EdgeClipError as error:
            raise InputError(f"{path}: measures {name}, which {teacher.spec} cannot have: {error}") from error
    if made is None or model_id_of(made) != report.subject.model_id:
        raise InputError(
            f"{path}: measures {name} (model {report.subject.model_id[:12]}), which is no candidate made of {teacher.spec}. "
            f"Run `{_TRY}` with this teacher, and measure those."
        )
    parameters.setdefault(name, computing_parameters(made))
    result = next((one for one in report.scenarios if one.scenario == "single-stream"), None)
    if result is None:
        raise InputError(
            f"{path}: has no single stream, which a budget of latency is about. Measure with --scenario single-stream."
        )
    notes = list(report.state.flags)
    if not result.enough:
        notes.append("the report's evidence is short: measure longer")
    return Measured(
        student=name,
        ms=getattr(result.latency, percentile).ms,
        percentile=percentile,
        parameters=parameters[name],
        task=report.settings.task,
        device=report.device.name,
        precisions=tuple(tower.precision for tower in report.subject.towers),
        report=path,
        notes=tuple(notes),
    )


def model_id_of(source: Source) -> str:
    """A source's, as the exporter gives it."""
    text = source.text and replace(source.text, tokenizer=TOKENIZER)
    tokenizer = hashlib.sha256(source.tokenizer_json).hexdigest() if text else ""
    return identity(source.digest, source.family, source.preprocessing, text, tokenizer, source.pooling)
