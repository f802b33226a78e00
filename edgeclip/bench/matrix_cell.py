"""One cell of a matrix in a process of its own: whatever an engine does there, crash or hang or take all memory, ends that cell only."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter_ns
from typing import Any

from edgeclip.bench.between import Nothing
from edgeclip.bench.child import answers, program
from edgeclip.bench.fresh import task_of
from edgeclip.bench.memory import resident
from edgeclip.bench.opening import open_model
from edgeclip.bench.report import PictureSet, Spread
from edgeclip.bench.samples import Inputs
from edgeclip.bench.scenarios.loop import Until, draws, settled, timed
from edgeclip.bench.settings import Settings
from edgeclip.bench.statistics import spread
from edgeclip.bench.sweeps import LEAST, PATIENCE
from edgeclip.bench.warmup import warm_up
from edgeclip.bundle import open_bundle
from edgeclip.bundle.typed import from_json_value
from edgeclip.errors import EdgeClipError, EngineError
from edgeclip.runtime import stages
from edgeclip.runtime.engines import rows_at_once
from edgeclip.runtime.model import Model

COMMAND = program("from edgeclip.bench.matrix_cell import main; main()")


@dataclass(frozen=True)
class Asked:
    """What a cell is asked to do."""

    bundle: str  # what opens it
    settings: Settings  # with one engine and one variant
    batch: int
    pack: str | None  # file of a label pack; None: the task has no labels, or they are baked in


@dataclass(frozen=True)
class Found:
    """What it found."""

    provider: str
    latency: Spread  # of a call
    load_ms: float  # opening the bundle and its tower
    peak_rss_bytes: int | None


def measure_cell(
    asked: Asked, inputs: Inputs, limit_s: float, command: Sequence[str] = COMMAND
) -> Found | str:
    """Measure in a fresh process.

    Args:
        limit_s: then it is ended.
        command: of the process.
    Returns:
        What it found, or on one line why it found nothing.
    """
    request = {
        **asdict(asked),
        "facts": asdict(inputs.facts),
        "texts": inputs.texts,
        "sizes": [len(picture) for picture in inputs.pictures],
    }
    raw = b"\n".join((json.dumps(request).encode(), b"".join(inputs.pictures)))
    try:
        done = subprocess.run(command, input=raw, capture_output=True, check=False, timeout=limit_s)
    except subprocess.TimeoutExpired:
        return f"no result after {limit_s:g} s"
    if done.returncode < 0:
        return _killed(-done.returncode)
    try:
        answer = json.loads(done.stdout)
        return answer["error"] if "error" in answer else from_json_value(Found, answer, "cell")
    except ValueError:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        return f"the process ended with code {done.returncode}: {said[-1] if said else 'it said nothing'}"


def _killed(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = ""
    hint = "out of memory?" if name == "SIGKILL" else name
    return f"killed by signal {number}{f' ({hint})' if hint else ''}"


def answer_to(raw: bytes) -> dict[str, Any]:
    """The answer to a request: the fields of a `Found`, or an error's line."""
    line, _, rest = raw.partition(b"\n")
    request = json.loads(line)
    facts = from_json_value(PictureSet, request.pop("facts"), "request")
    texts, pictures, at = tuple(request.pop("texts")), list[bytes](), 0
    for size in request.pop("sizes"):
        pictures.append(rest[at : at + size])
        at += size
    try:
        return asdict(
            _measure(from_json_value(Asked, request, "request"), Inputs(tuple(pictures), texts, facts))
        )
    except (EdgeClipError, MemoryError) as error:
        return {"error": " ".join(str(error).split()) or "no memory is left"}


def _measure(asked: Asked, inputs: Inputs) -> Found:
    settings, seconds = asked.settings, asked.settings.part_seconds
    with stages.listen() as spans:
        begun = perf_counter_ns()
        model = open_model(open_bundle(asked.bundle), settings)
        loading = perf_counter_ns() - begun
        task = task_of(model, settings, inputs, Path(asked.pack) if asked.pack else None)
        task.query([0])  # opens the tower
    loading += sum(end - begin for begin, end, name in spans if name == "open")

    def begin() -> Iterator[list[int]]:
        return draws(task.samples, asked.batch, settings.seed)

    with model:
        provider = _read_back(model, asked)
        with settled():
            warm_up(task.query, begin, seconds)
            found = timed(task.query, begin(), Until(seconds, LEAST, PATIENCE * seconds), Nothing())
    at_ms = (found.began_ns - found.began_ns[0]) / 1e6
    return Found(provider, spread(found.lasted_ns / 1e6, at_ms), loading / 1e6, resident()[1])


def _read_back(model: Model, asked: Asked) -> str:
    """The provider that ran. Raises EngineError where it was not this engine with this variant, or not this many rows at once."""
    (engine,), (variant,) = asked.settings.engines, asked.settings.variants
    opened = [tower.engine for tower in model.towers if tower.engine is not None]
    for found in opened:
        if (found.name, found.variant.id) == (engine, variant):
            if (most := rows_at_once(found, asked.batch)) < asked.batch:
                raise EngineError(f"the engine was built for {most} rows a call at most.")
            return found.provider
    ran = ", ".join(f"{found.variant.id} on {found.name}" for found in opened) or "nothing"
    raise EngineError(f"asked for {variant} on {engine}, the task ran {ran}.")


def main() -> None:
    """The child: stdin to stdout."""
    with contextlib.suppress(
        OSError
    ):  # where memory ends, the kernel should end this process and not its parent
        Path("/proc/self/oom_score_adj").write_text("1000")
    with answers() as stream:
        json.dump(answer_to(sys.stdin.buffer.read()), stream)
