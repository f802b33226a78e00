"""What one call of a tower has to do: operations by precision, weights to read, and where its time goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray

from edgeclip.bench.roofline.operations import BYTES, RULES, UNCOUNTED, Node, operations, weight_bytes
from edgeclip.bench.roofline.profile import run_profiled, shares, without_prepacking
from edgeclip.bundle import Bundle, Variant
from edgeclip.errors import EngineError
from edgeclip.runtime.engines import Engine, EngineOptions
from edgeclip.runtime.engines.onnxruntime_session import CPU
from edgeclip.runtime.memory import available_memory, estimate_memory

CALLS = 8  # with the profile on, the first of which does not count


@dataclass(frozen=True)
class Work:
    """Of one call at one batch."""

    by_precision: Mapping[str, int]  # of products -> operations
    weight_bytes: int
    by_operator: Mapping[str, float]  # share of time; {} where the engine does not tell
    notes: tuple[str, ...] = ()

    @property
    def operations(self) -> int:
        """All of them."""
        return sum(self.by_precision.values())

    @property
    def precision(self) -> str:
        """Of most of them."""
        return max(self.by_precision, key=self.by_precision.__getitem__)


def count_work(
    bundle: Bundle, engine: Engine, options: EngineOptions, feeds: Mapping[str, NDArray[Any]]
) -> Work:
    """Count what the open engine does with these inputs.

    Args:
        options: that it was opened with.
        feeds: its inputs at the batch that is asked for.
    Raises:
        EngineError: no graph of this tower runs on the CPU, where operations are counted.
    """
    on_cpu = engine.provider == CPU
    variant, nodes = _as_written(bundle, engine.variant, options, engine.threads, feeds)
    notes = [] if variant.id == engine.variant.id else [f"operations counted on {variant.id}"]
    notes += [f"{kind}: not counted" for kind in sorted(UNCOUNTED & {node.kind for node in nodes})]
    total = sum(map(operations, nodes))
    if on_cpu:
        graph = bundle.path(variant.files[0])
        ran = run_profiled(graph, feeds, options, engine.threads, optimised=True, calls=CALLS)[1:]
        by_operator = shares(ran)
        if BYTES & {node.kind for node in ran[0]}:  # then their sizes need weights that are not reordered
            plain = without_prepacking(options)
            precisions = _split(total, run_profiled(graph, feeds, plain, engine.threads, optimised=True)[0])
        else:
            precisions = _split(total, ran[0])
    else:
        by_operator, precisions = {}, {engine.variant.computes_in: total}
        notes.append(f"time by operator: {engine.name} does not tell")
    if len(precisions) > 1:
        told = ", ".join(f"{100 * value / total:.0f} % in {name}" for name, value in precisions.items())
        notes.append(f"products: {told}")
    return Work(precisions, weight_bytes(nodes, widened=on_cpu), by_operator, tuple(notes))


def _as_written(
    bundle: Bundle, wanted: Variant, options: EngineOptions, threads: int, feeds: Mapping[str, NDArray[Any]]
) -> tuple[Variant, list[Node]]:
    """The nodes of one call, run on the CPU as the graph has them; of a sibling that does the same work where that is impossible."""
    plain, failed = without_prepacking(options), list[EngineError]()
    plain = replace(plain, session_options={}, provider_options={})  # they are the tower's engine's
    for variant in sorted(_siblings(bundle, wanted), key=lambda v: v.id != wanted.id):
        try:
            _require_room(bundle, variant)
            graph = bundle.path(variant.files[0])
            return variant, run_profiled(graph, feeds, plain, threads, optimised=False)[0]
        except EngineError as error:
            failed.append(error)
    raise EngineError(
        f"{wanted.id}: its operations cannot be counted. "
        + (str(failed[0]) if failed else "The bundle has no graph of it.")
    )


def _require_room(bundle: Bundle, variant: Variant) -> None:
    """Profiling opens the graph once more, beside the engine that is open. Raises EngineError where there is no memory for it."""
    need, free = estimate_memory(bundle, variant), available_memory()
    if free is not None and need > free:
        raise EngineError(
            f"{variant.id}: profiling takes {need >> 20} MiB beside the open engine, {free >> 20} MiB are free. "
            "Close other programs, or choose a smaller variant."
        )


def _siblings(bundle: Bundle, wanted: Variant) -> list[Variant]:
    """Variants with the same products: of the same tower, ports and merging, whatever their precision and attention."""
    return [
        v
        for v in bundle.manifest.variants
        if (v.tower, v.inputs, v.outputs, v.axes.token_merging)
        == (wanted.tower, wanted.inputs, wanted.outputs, wanted.axes.token_merging)
    ]


def _split(total: int, nodes: Sequence[Node]) -> dict[str, int]:
    """Operations by the precision in which an engine on the CPU does them, most first.

    Args:
        total: of the graph as it is written.
        nodes: as the engine runs it; with bytes among its products, all of their shapes are there.
    """
    in_bytes = min(total, sum(operations(node) for node in nodes if node.kind in BYTES))
    halves = [n.types[0] == "float16" for n in nodes if n.kind in RULES and n.kind not in BYTES]
    rest = "fp16" if halves and all(halves) else "fp32"
    found = {rest: total - in_bytes} | ({"int8": in_bytes} if in_bytes else {})
    return dict(sorted(found.items(), key=lambda item: -item[1]))
