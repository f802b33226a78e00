"""What onnxruntime's own profile says of a graph's nodes: their shapes, and how long each took.

Source: onnxruntime.ai/docs/performance/tune-performance/profiling-tools.html; onnxruntime/core/framework/sequential_executor.cc writes the
events that are read here.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from numpy.typing import NDArray

from edgeclip.bench.roofline.operations import Node
from edgeclip.errors import EngineError
from edgeclip.runtime.engines.onnxruntime_session import CPU, first_line, load_onnxruntime, session_options
from edgeclip.runtime.engines.seam import EngineOptions

_NODE = "_kernel_time"  # how the name of an event ends that is one execution of one node


def run_profiled(
    graph: Path,
    feeds: Mapping[str, NDArray[Any]],
    options: EngineOptions,
    threads: int,
    *,
    optimised: bool,
    calls: int = 1,
) -> list[list[Node]]:
    """Run a graph on the CPU.

    Args:
        feeds: its inputs.
        options: as of the engine; `prepacking=False` keeps the shapes of weights in the profile.
        optimised: as an engine runs it; False: node by node as the file has it.
    Returns:
        for each call its nodes, in the order in which they ran.
    Raises:
        EngineError: onnxruntime cannot open or run it here, or there is no room for its profile.
    """
    onnxruntime = load_onnxruntime("cpu")
    settings = session_options(onnxruntime, options, threads)
    if not optimised:
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        with tempfile.TemporaryDirectory(prefix="edgeclip-profile-") as folder:
            settings.enable_profiling, settings.profile_file_prefix = True, str(Path(folder) / "run")
            session = onnxruntime.InferenceSession(str(graph), settings, providers=[CPU])
            for _ in range(calls):
                session.run(None, dict(feeds))
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    except Exception as error:  # onnxruntime's errors have no common base
        raise EngineError(f"{graph}: cannot be profiled ({first_line(error)}).") from error
    return _by_call(events, graph)


def without_prepacking(options: EngineOptions) -> EngineOptions:
    """The same, but weights stay as the graph has them."""
    return replace(options, prepacking=False)


def shares(calls: Sequence[Sequence[Node]]) -> dict[str, float]:
    """Operator -> share of the nodes' time, median over the calls and scaled to add up to 1, largest first."""
    found: dict[str, list[float]] = defaultdict(list)
    for nodes in calls:
        times: dict[str, float] = defaultdict(float)
        for node in nodes:
            times[node.kind] += node.us
        whole = sum(times.values()) or 1.0
        for kind, us in times.items():
            found[kind].append(us / whole)
    middle = {kind: median(values) for kind, values in found.items()}
    whole = sum(middle.values()) or 1.0
    return {kind: value / whole for kind, value in sorted(middle.items(), key=lambda item: -item[1])}


def _by_call(events: Sequence[Mapping[str, Any]], graph: Path) -> list[list[Node]]:
    runs = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e["name"] == "model_run")
    nodes = [e for e in events if e.get("cat") == "Node" and e["name"].endswith(_NODE)]
    nodes.sort(key=lambda event: event["ts"])
    if not runs or not nodes:
        raise EngineError(f"{graph}: onnxruntime's profile holds no nodes. Update onnxruntime.")
    return [[Node.of(event) for event in nodes if begun <= event["ts"] <= ended] for begun, ended in runs]
