"""A bundle in a process of its own that answers queries when it is its turn: one side of `bench compare --live`.

stdin: one line of JSON that says what to open, the bytes of all pictures, and then a line of JSON for each turn: a list of queries, each a list of
samples. stdout: a line for each, ns of every query; the first tells what ran, or an EdgeClipError's class and message.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from tempfile import TemporaryFile
from types import TracebackType
from typing import IO, Any

from edgeclip.bench.child import accepted, answers, program, refusal
from edgeclip.bench.opening import Used, open_model, used
from edgeclip.bench.report import PictureSet
from edgeclip.bench.samples import Inputs
from edgeclip.bench.settings import Settings
from edgeclip.bundle import open_bundle
from edgeclip.bundle.typed import from_json_value
from edgeclip.errors import EdgeClipError, EngineError

COMMAND = program("from edgeclip.bench.turns import main; main()")
Queries = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Request:
    """What a side opens."""

    bundle: str
    settings: Settings
    facts: PictureSet
    texts: tuple[str, ...]
    sizes: tuple[int, ...]  # bytes of each picture


class Side:
    """The parent's end. A process that is not asked sleeps on its stdin and takes nothing from the other."""

    def __init__(
        self, bundle: str, settings: Settings, inputs: Inputs, command: Sequence[str] = COMMAND
    ) -> None:
        """Start it; `opened` waits until it is ready."""
        self.bundle = bundle
        self._errors = TemporaryFile()  # noqa: SIM115  # until `close`
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors
        )
        request = Request(bundle, settings, inputs.facts, inputs.texts, tuple(map(len, inputs.pictures)))
        self._send(json.dumps(asdict(request)).encode() + b"\n" + b"".join(inputs.pictures))

    def opened(self) -> Used:
        """What runs in it. Raises what it met, an EdgeClipError."""
        return from_json_value(Used, self._answer(), "side")

    def turn(self, queries: Queries) -> list[int]:
        """ns of each query, one after another."""
        self._send(json.dumps(queries).encode() + b"\n")
        found: list[int] = self._answer()
        return found

    def close(self) -> None:
        """End it."""
        with suppress(BrokenPipeError):  # it has ended before it read what was last sent
            _open(self._process.stdin).close()
        _open(self._process.stdout).close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def __enter__(self) -> Side:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, data: bytes) -> None:
        try:
            _open(self._process.stdin).write(data)
            _open(self._process.stdin).flush()
        except BrokenPipeError:
            pass  # it has ended: why is told by what it answered, or did not

    def _answer(self) -> Any:
        line = _open(self._process.stdout).readline()
        if not line:
            code = self._process.wait()
            if code < 0:
                raise EngineError(
                    f"{self.bundle}: the process that ran it was ended by signal {-code}; 9 is mostly a lack of memory. "
                    "Close other programs, or compare one at a time: reports of `edgeclip bench`."
                )
            self._errors.seek(0)
            raise RuntimeError(f"{self.bundle}: {self._errors.read().decode(errors='replace')}")
        return accepted(json.loads(line))


def serve(requests: IO[bytes], stream: IO[str]) -> None:
    """The child's end, until its stdin is closed."""
    from edgeclip.bench.scenarios.loop import settled
    from edgeclip.bench.tasks import open_task

    def answer(value: Any) -> None:
        print(json.dumps(value), file=stream, flush=True)

    request = from_json_value(Request, json.loads(requests.readline()), "request")
    pictures = tuple(requests.read(size) for size in request.sizes)
    try:
        with open_model(open_bundle(request.bundle), request.settings) as model:
            task = open_task(
                request.settings.task, model, Inputs(pictures, request.texts, request.facts), request.settings
            )
            task.query([0])  # opens the engines
            answer(asdict(used(model)))
            with settled():
                for line in requests:
                    answer(timed_turn(task.query, json.loads(line)))
    except EdgeClipError as error:
        answer(refusal(error))


def timed_turn(query: Any, queries: Queries) -> list[int]:
    """ns of each query. One more goes before them: the caches belonged to the other side."""
    query(queries[-1])
    found, clock = [], time.perf_counter_ns
    for samples in queries:
        start = clock()
        query(samples)
        found.append(clock() - start)
    return found


def _open(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None  # asked for with PIPE
    return stream


def main() -> None:
    """stdin to stdout."""
    try:
        serve(sys.stdin.buffer, answers())
    except (KeyboardInterrupt, BrokenPipeError):
        sys.exit(130)  # the parent was interrupted, and says so
