"""Fresh processes that open a bundle and do the task: what cold starts and memory are measured in.

The child's first lines are those of a user's program, timed; what it needs beyond them for measuring is imported afterwards and counts
as nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from time import perf_counter_ns
from typing import Any, Literal

from edgeclip.bench.child import accepted, answers, program, refusal
from edgeclip.bench.report import PictureSet
from edgeclip.bench.samples import Inputs
from edgeclip.bench.settings import Settings
from edgeclip.bench.tasks import TASKS, Task, open_task
from edgeclip.bundle import Bundle
from edgeclip.bundle.typed import from_json_value
from edgeclip.errors import EdgeClipError, EngineError
from edgeclip.runtime.model import Model

Child = Literal["cold", "memory"]  # edgeclip.bench.<child> has `in_child`

CALLS = 10  # inputs that a child gets, and calls after which its memory is read
PROGRAM = """\
import time; begun = time.perf_counter_ns()
import edgeclip.runtime.model; imported = time.perf_counter_ns()
from edgeclip.bench.fresh import main; main(begun, imported)
"""


def in_fresh_process(
    child: Child, bundle: Bundle, settings: Settings, inputs: Inputs, pack: Path | None = None
) -> dict[str, Any]:
    """What a child found, and `started_ns`: when it was started, by `perf_counter_ns`, which processes of one machine share.

    Args:
        pack: file of a label pack, for a task that takes labels; None: it makes the vectors itself.
    Raises:
        EdgeClipError: what the child met, as it met it; EngineError when it was killed.
    """
    request = json.dumps(
        {
            "child": child,
            "bundle": bundle.spec,
            "settings": asdict(settings),
            "pictures": [b64encode(data).decode() for data in inputs.pictures[:CALLS]],
            "texts": inputs.texts[:CALLS],
            "facts": asdict(inputs.facts),
            "pack": None if pack is None else str(pack),
        }
    )
    started_ns = perf_counter_ns()
    done = subprocess.run(
        program(PROGRAM), input=request, capture_output=True, text=True, encoding="utf-8", check=False
    )  # fmt: skip
    if done.returncode < 0:
        raise EngineError(
            f"{bundle.root}: a fresh process that opened it was killed by signal {-done.returncode}; 9 is mostly a lack of memory. "
            "Close other programs, or choose a smaller variant."
        )
    if done.returncode:
        raise RuntimeError(f"a fresh process failed: {done.stderr}")
    return {**accepted(json.loads(done.stdout)), "started_ns": started_ns}


def task_of(model: Model, settings: Settings, inputs: Inputs, pack: Path | None) -> Task:
    """The task, ready; without a pack of labels it embeds them here.

    Raises:
        InputError: the bundle cannot do it. BundleError: a damaged pack.
    """
    if pack is None:
        return open_task(settings.task, model, inputs, settings)
    from edgeclip.runtime.labels import LabelPack

    task: Task = import_module(TASKS[settings.task]).open_task(model, inputs, settings, LabelPack.open(pack))
    return task


def answer(request: Mapping[str, Any], begun_ns: int, imported_ns: int) -> dict[str, Any]:
    """What the child measures; an EdgeClipError as its class and message."""
    settings = from_json_value(Settings, request["settings"], "settings")
    facts = from_json_value(PictureSet, request["facts"], "inputs")
    inputs = Inputs(tuple(map(b64decode, request["pictures"])), tuple(request["texts"]), facts)
    pack = None if request["pack"] is None else Path(request["pack"])
    measure: Callable[..., dict[str, Any]] = import_module(f"edgeclip.bench.{request['child']}").in_child
    try:
        found = measure(request["bundle"], settings, inputs, pack)
    except EdgeClipError as error:
        return refusal(error)
    return {**found, "begun_ns": begun_ns, "imported_ns": imported_ns}


def main(begun_ns: int, imported_ns: int) -> None:
    """The child: a request on stdin, its answer on stdout."""
    with answers() as stream:
        json.dump(answer(json.loads(sys.stdin.buffer.read()), begun_ns, imported_ns), stream)
