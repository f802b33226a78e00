"""One launch of a scenario: a fresh process that opens the bundle, warms up, measures and answers in JSON.

Two processes that run the same call differ by some 5 % in their p50, whatever the machine does meanwhile: each has its own layout in
memory. So a scenario is measured in several of them, one after another.

The request is one line of JSON and then the bytes of all pictures: every launch sees the inputs that the parent read, whatever happens to the
folder meanwhile.
"""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass

from edgeclip.bench.between import Between
from edgeclip.bench.child import accepted, answers, program, refusal
from edgeclip.bench.opening import Used, open_model, used
from edgeclip.bench.pulse import Pulses
from edgeclip.bench.report import PictureSet, ScenarioResult
from edgeclip.bench.samples import Inputs
from edgeclip.bench.scenarios import run_scenario
from edgeclip.bench.settings import ScenarioName, Settings
from edgeclip.bench.tasks import open_task
from edgeclip.bundle import open_bundle
from edgeclip.bundle.typed import from_json_value
from edgeclip.errors import EdgeClipError, EngineError

COMMAND = program("from edgeclip.bench.launch import main; main()")


@dataclass(frozen=True)
class Request:
    """What a launch is asked to do."""

    bundle: str  # what opens it
    scenario: ScenarioName
    settings: Settings  # of this launch: its share of the durations, its own seed
    reference_ms: float  # p50 of a single stream, for the server's bound
    facts: PictureSet
    texts: tuple[str, ...]
    sizes: tuple[int, ...]  # bytes of each picture


@dataclass(frozen=True)
class Launched:
    """What a launch found."""

    result: ScenarioResult
    begun_ns: int  # its measuring, by time.perf_counter_ns, which all processes of a Linux machine share
    ended_ns: int
    used: Used
    warnings: tuple[str, ...] = ()  # that the runtime logged


def launch(
    bundle: str, scenario: ScenarioName, settings: Settings, inputs: Inputs, reference_ms: float = 0.0
) -> Launched:
    """Measure one scenario in a fresh process, and wait for it.

    Args:
        bundle: what `open_bundle` opens.
        settings: durations and seed of this launch.
        reference_ms: p50 of a single stream, for the server's bound.
    Raises:
        EdgeClipError: whatever the launch met, as it met it; EngineError when it was killed.
    """
    sizes = tuple(map(len, inputs.pictures))
    request = Request(bundle, scenario, settings, reference_ms, inputs.facts, inputs.texts, sizes)
    line = json.dumps(asdict(request)).encode()
    done = subprocess.run(
        COMMAND, input=b"\n".join((line, b"".join(inputs.pictures))), capture_output=True, check=False
    )
    if done.returncode < 0:
        raise EngineError(
            f"{bundle}: the process that measured {scenario} was ended by {_signal(-done.returncode)}. "
            "Out of memory? Try fewer threads, a smaller --batch, or another --engine."
        )
    if done.returncode:
        raise RuntimeError(f"edgeclip.bench.launch: {done.stderr.decode(errors='replace')}")
    return from_json_value(Launched, accepted(json.loads(done.stdout)), "launch")


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def answer_to(raw: bytes) -> str:
    """The answer to a request, as one JSON object: a `Launched`, or the class and message of an EdgeClipError."""
    line, _, rest = raw.partition(b"\n")
    request = from_json_value(Request, json.loads(line), "request")
    pictures, at = [], 0
    for size in request.sizes:
        pictures.append(rest[at : at + size])
        at += size
    warned = _Warned()
    logging.getLogger("edgeclip").addHandler(warned)
    try:
        found = _measure(request, Inputs(tuple(pictures), request.texts, request.facts), warned.lines)
    except EdgeClipError as error:
        return json.dumps(refusal(error))
    finally:
        logging.getLogger("edgeclip").removeHandler(warned)
    return json.dumps(asdict(found))


def _measure(request: Request, inputs: Inputs, warned: list[str]) -> Launched:
    between = Begun(Pulses())
    with open_model(open_bundle(request.bundle), request.settings) as model:
        task = open_task(request.settings.task, model, inputs, request.settings)
        result = run_scenario(
            request.scenario, task, request.settings, between, reference_ms=request.reference_ms
        )
        ran = used(model)
    last = result.latencies
    length_ms = last.at_ms[-1] + last.ms[-1] if last and last.ms else 1e3 * result.seconds
    return Launched(
        result, between.begun_ns, between.begun_ns + int(1e6 * length_ms), ran, tuple(dict.fromkeys(warned))
    )


class Begun:
    """Notes when measuring began, beside what is done between queries."""

    def __init__(self, between: Between) -> None:
        self._between, self.begun_ns = between, time.perf_counter_ns()
        self.tick, self.pulse = between.tick, between.pulse

    def begin(self) -> None:
        """A scenario's measuring begins."""
        self.begun_ns = time.perf_counter_ns()
        self._between.begin()


class _Warned(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def main() -> None:
    """The child: stdin to stdout."""
    try:
        with answers() as stream:
            stream.write(answer_to(sys.stdin.buffer.read()))
    except KeyboardInterrupt:
        sys.exit(130)  # the parent was interrupted as well, and says so
