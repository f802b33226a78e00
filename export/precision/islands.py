"""Which nodes of a graph must stay in fp32 when the rest moves to a 16-bit float: found by measuring, in two steps.

1. Ranges. One fp32 run gives every value's largest |x|. Values that the type cannot hold keep their nodes in fp32.
2. Rounding. The typed graph is run with every rounding written out. While it is too far from fp32, the kind of operator whose
   return to fp32 helps most is returned (all kinds, where none helps alone), and then as many of these nodes as possible go
   back to the 16-bit type.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
import onnx_ir as ir

from edgeclip.errors import CheckFailed
from edgeclip.export.linears import Array, linears
from edgeclip.export.observe import at_once, outputs_of, session
from edgeclip.export.passes import PassReport, number_nodes
from edgeclip.export.precision import Request
from edgeclip.export.precision.typed import FLOAT, fixed, prepare, refusal, retype, rounded
from edgeclip.runtime.detection_fidelity import ROWS
from edgeclip.runtime.fidelity import relative_distance

INPUTS = 16  # that the search runs on
REGIONS = 2048  # of a detector in their place: so many regions say as much
RUNS = 48  # at most
# Other pictures reach further than those seen. 0.6 leaves the masks (-32752, and scores of a few tens beneath) in the type.
HEADROOM = 0.6
LOST = 1 / 8  # of the smallest normal number: a peak below has under 8 bits left
HELPS = 0.95  # of the error: what helps less than this is not worth fp32


@dataclass(frozen=True)
class Half:
    """A 16-bit type and how far from fp32 rounding to it may lead, as relative distance."""

    name: str
    dtype: ir.DataType
    limit: float


# 11 bits of mantissa give 4e-3 on a ViT-B/32 of random weights, 8 bits 3e-2.
FP16 = Half("fp16", ir.DataType.FLOAT16, 0.01)
BF16 = Half("bf16", ir.DataType.BFLOAT16, 0.08)


def lower(model: ir.Model, request: Request, half: Half) -> list[PassReport]:
    """Move a graph to a 16-bit type in place, but for the nodes that must stay fp32; the reports name them.

    Raises:
        CheckFailed: its output, or that of the fp32 graph, is not finite on the calibration inputs.
    """
    assert request.inputs is not None
    prepare(model)
    number_nodes(model)
    search = _Search(model, request.inputs[: _inputs_for(model)], half.dtype, request.threads)
    wide = fixed(model, half.dtype)
    found = _out_of_range(model, peaks(model, request.inputs, threads=request.threads), half.dtype)
    found |= _left_out(model, request.layers)
    ranges = {node: why for node, why in found.items() if node not in wide}
    wide |= ranges
    error = search.error(wide)
    if error > half.limit:
        added, error = search.extend(wide, half.limit, error)
        ranges |= added
        wide |= added
    if not np.isfinite(error):
        raise CheckFailed(
            f"{half.name}: the graph's output is not finite even with {len(wide)} nodes in fp32. Keep fp32."
        )
    changed = retype(model, half.dtype, wide.keys())
    notes = [f"{node}: fp32, {why}" for node, why in ranges.items()]
    notes.append(
        f"graph: relative distance {error:.2g} to fp32 on {len(search.inputs)} inputs, every rounding counted"
    )
    if why := refusal(model):
        notes.append(f"graph: onnxruntime's CPU engine does not run it: {why}")
    return [PassReport(half.name, changed, tuple(notes)), PassReport(f"{half.name}_islands", len(ranges))]


def _inputs_for(model: ir.Model) -> int:
    outputs = model.graph.outputs
    regions = outputs[0].shape[1] if len(outputs) > 1 and outputs[0].shape is not None else 1
    return max(2, min(INPUTS, REGIONS // regions)) if isinstance(regions, int) else INPUTS


def peaks(model: ir.Model, inputs: Array, *, threads: int | None = None) -> dict[str, float]:
    """Largest |x| of a graph's input, of every fp32 value inside and of its constants, by name. Only one number a value is kept in memory."""
    copy = model.clone()
    names = {}
    for node in list(copy.graph):
        for value in node.outputs:
            if value.dtype == FLOAT:
                size = ir.node("Abs", [value])
                peak = ir.node("ReduceMax", [size.outputs[0]], {"keepdims": 0})
                result = peak.outputs[0]
                result.name, result.shape, result.type = (
                    f"{value.name}.peak",
                    ir.Shape(()),
                    ir.TensorType(FLOAT),
                )
                copy.graph.insert_after(node, [size, peak])
                names[result.name] = str(value.name)
                copy.graph.outputs.append(result)
    opened, batch = session(copy, threads=threads), at_once(model)
    feed = opened.get_inputs()[0].name
    parts = [opened.run(list(names), {feed: inputs[i : i + batch]}) for i in range(0, len(inputs), batch)]
    found = dict(zip(names.values(), np.array(parts, np.float64).max(axis=0).tolist(), strict=True))
    if inputs.dtype == np.float32:
        found[feed] = float(np.abs(inputs).max())
    for name, value in model.graph.initializers.items():
        if value.dtype == FLOAT and value.const_value is not None and value.const_value.size:
            found[name] = float(np.abs(value.const_value.numpy()).max())
    return found


def _out_of_range(model: ir.Model, found: dict[str, float], dtype: ir.DataType) -> dict[str, str]:
    """Nodes that make or read what the type cannot hold -> why."""
    limits = ml_dtypes.finfo(dtype.numpy())  # type: ignore[no-untyped-call]
    high, low = float(limits.max), float(limits.smallest_normal) * LOST
    wide = {}
    for node in model.graph:
        if not any(value.dtype == FLOAT for value in node.outputs):
            continue
        for value in (*node.outputs, *node.inputs):
            peak = found.get(str(value.name), 0.0) if value is not None else 0.0
            if not peak <= high * HEADROOM or 0 < peak < low:
                wide[str(node.name)] = f"|x| reaches {peak:.3g}, the type holds {low:.2g} to {high:.3g}"
                break
    return wide


def _left_out(model: ir.Model, layers: frozenset[str] | None) -> dict[str, str]:
    return {
        str(one.node.name): "not among the layers"
        for one in linears(model)
        if layers is not None and one.name not in layers
    }


@dataclass
class _Search:
    """Runs of one graph with different nodes in fp32."""

    model: ir.Model
    inputs: Array
    dtype: ir.DataType
    threads: int | None
    runs: int = 0
    want: list[Array] = field(init=False)  # by output

    def __post_init__(self) -> None:
        self.want = outputs_of(self.model, self.inputs, threads=self.threads)
        if not all(np.isfinite(array).all() for array in self.want):
            raise CheckFailed(
                "the fp32 graph's output is not finite on the calibration inputs. Repair the source."
            )

    def error(self, wide: Iterable[str]) -> float:
        """How far it is from fp32, see `far`; inf where a value is not finite."""
        self.runs += 1
        copy = self.model.clone()
        retype(copy, self.dtype, set(wide))
        got = outputs_of(rounded(copy), self.inputs, threads=self.threads)
        return far(self.want, got) if all(np.isfinite(array).all() for array in got) else float("inf")

    def extend(self, wide: dict[str, str], limit: float, error: float) -> tuple[dict[str, str], float]:
        """The nodes to add to `wide` so that the error falls under the limit, or as far as it does; and the error then."""
        rest: dict[str, list[str]] = {}
        for node in self.model.graph:
            if node.name not in wide and any(value.dtype == FLOAT for value in node.outputs):
                rest.setdefault(node.op_type, []).append(str(node.name))
        added: dict[str, None] = {}
        before = error
        while error > limit and rest and self.runs + len(rest) <= RUNS:
            errors = {op: self.error([*wide, *added, *nodes]) for op, nodes in rest.items()}
            best = min(errors, key=errors.__getitem__)
            if errors[best] >= error * HELPS:
                break
            added |= dict.fromkeys(rest.pop(best))
            error = errors[best]
        if error > limit:  # no kind helps alone: values pass through several before they are small again
            every = dict.fromkeys(
                str(node.name)
                for node in self.model.graph
                if any(node.name in nodes for nodes in (added, *rest.values()))
            )
            if (least := self.error([*wide, *every])) < error * HELPS:
                added, error = every, least
        if error <= limit:
            kept = trim(
                list(added),
                lambda nodes: self.runs < RUNS and self.error([*wide, *nodes]) <= limit,
            )
            error = self.error([*wide, *kept])
            added = dict.fromkeys(kept)
        why = f"its rounding: relative distance {before:.2g} without these nodes, {error:.2g} with"
        return dict.fromkeys(added, why), error


def trim(nodes: list[str], enough: Callable[[list[str]], bool]) -> list[str]:
    """A smaller list that is still enough: halves, quarters, eighths and sixteenths are left out where they can be."""
    kept = nodes
    for pieces in (2, 4, 8, 16):
        size = -(-len(nodes) // pieces)
        for start in range(0, len(nodes), size) if size else ():
            piece = set(nodes[start : start + size]) & set(kept)
            fewer = [node for node in kept if node not in piece]
            if piece and enough(fewer):
                kept = fewer
    return kept


def far(a: Sequence[Array], b: Sequence[Array]) -> float:
    """`distance` of a graph's one output. Of a detector's the largest: that of its embeddings (N, Q, D), region by region, and the
    mean change of all others beside 1 + their size, which for boxes is a share of the side.
    """
    if len(a) == 1:
        return distance(a[0], b[0])
    widest = max(range(len(a)), key=lambda i: (a[i].ndim, a[i].shape[-1]))
    rows = (array.reshape(-1, array.shape[-1]) for array in (a[widest], b[widest]))
    step = -(-a[widest][..., 0].size // ROWS)
    others = [
        np.abs(x - y) / (1 + np.abs(x)) for i, (x, y) in enumerate(zip(a, b, strict=True)) if i != widest
    ]
    return max(distance(*(array[::step] for array in rows)), *(float(array.mean()) for array in others))


def distance(a: Array, b: Array) -> float:
    """`fidelity.relative_distance`, of outputs of any rank; where all rows of a are the same, the mean ||a_i - b_i||."""
    a, b = (array.reshape(len(array), -1).astype(np.float64) for array in (a, b))
    if len(a) < 2 or np.ptp(a, axis=0).max() < 1e-4:
        return float(np.linalg.norm(a - b, axis=1).mean())
    return relative_distance(a, b)
