"""One tower on the bench: its float graphs are converted, run on the user's samples, and timed beside each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeclip.bundle import Bundle, Variant
from edgeclip.errors import EdgeClipError, EngineError
from edgeclip.export.compress.curve import Point, Tower
from edgeclip.export.compress.data import Data, halves
from edgeclip.export.compress.figures import Half, Judge
from edgeclip.export.compress.latency import compare
from edgeclip.export.compress.search import Group, Layers
from edgeclip.export.compress.target import LENGTH, Target
from edgeclip.export.derive import read_graph
from edgeclip.export.linears import convolutions, linears
from edgeclip.export.observe import session
from edgeclip.export.passes import PassReport
from edgeclip.export.precision import METHODS, Method, Request, convert
from edgeclip.runtime.engines.onnxruntime_session import first_line
from edgeclip.runtime.fidelity import check_sane, relative_distance

Array = NDArray[Any]
FLOAT = "float"  # in place of a method: the base as it is
HALF = ("fp16", "bf16")
BATCHES = (1, 3, 8)
HOPELESS = 1e3  # relative distance; two unrelated samples have 1
PROBES = 4  # calibration samples that a group's sensitivity is measured on
_CHUNK = 8  # samples a call


@dataclass(frozen=True)
class Candidate:
    """A converted graph and what was measured of it."""

    variant: Variant  # the base
    model: ir.Model
    reports: tuple[PassReport, ...]
    point: Point
    rows: Array | None  # (M, D); the calibration half is filled in; None: it does not run here
    opens: bool = True  # in onnxruntime's CPU engine


class Graph:
    """A graph opened on this machine, with the inputs that it takes."""

    def __init__(self, model: ir.Model, inputs: Array, threads: int, byte_kernels: bool = True) -> None:
        try:
            self._session = session(model, threads=threads, byte_kernels=byte_kernels)
        except Exception as error:  # onnxruntime's errors have no common base
            raise EngineError(f"onnxruntime cannot open it here ({first_line(error)})") from error
        self._name, self._inputs = self._session.get_inputs()[0].name, inputs
        one = inputs[:1]
        self._one = one if one.ndim > 2 or self._fixed else one[:, :LENGTH]

    @property
    def _fixed(self) -> bool:
        return isinstance(self._session.get_inputs()[0].shape[1], int)

    def rows(self, which: Array, batch: int = _CHUNK) -> Array:
        """(len(which), D) rows of these inputs."""
        parts = [which[i : i + batch] for i in range(0, len(which), batch)]
        try:
            found = [self._session.run(None, {self._name: self._inputs[part]})[0] for part in parts]
        except Exception as error:
            raise EngineError(f"onnxruntime fails to run it here ({first_line(error)})") from error
        return np.concatenate(found)

    def call(self) -> None:
        """Batch 1, once."""
        self._session.run(None, {self._name: self._one})


class Bench:
    """A tower's float variants, its samples, and the judge of what becomes of them.

    Args:
        tower: "image" or "text".
        references: rows of each tower's plain variant, see `reference_rows`.
        time_here: time graphs on this machine; False: the target's report says, or nothing does.
        for_gpu: bytes are those of TensorRT, symmetric and summed in 32 bits; this machine measures them in floats.
    """

    def __init__(
        self, bundle: Bundle, tower: Tower, data: Data, references: Mapping[Tower, Array], target: Target, *,
        threads: int, time_here: bool, for_gpu: bool = False,
    ) -> None:  # fmt: skip
        self.bundle, self.tower, self.data, self.target = bundle, tower, data, target
        self._references, self._other_rows = references, dict[str, Array]()
        self._all: dict[
            tuple[str, str], Layers
        ] = {}  # (base, method) -> what it converts when nothing is left out
        self.threads, self._time_here = threads, time_here and not target.report
        self._for_gpu = for_gpu
        self.bases = float_variants(bundle, tower)
        self.plain = self.bases[0]

    @cached_property
    def judge(self) -> Judge:
        """Knows fp32's rows; the other tower's, for labels, are made by its own plain variant."""
        rows, truth = self._references[self.tower], self.data.truth
        check_sane(rows, self.plain.id)
        if len(self._references) < 2 or self.data.labels is None:
            return Judge(rows, self._halves)
        (other,) = (found for tower, found in self._references.items() if tower != self.tower)

        def cosines(found: Array, half: Half) -> Array:
            return (
                self.cosines(found, other, half)
                if self.tower == "image"
                else self.cosines(other, found, half)
            )

        pictures = halves(len(self._references["image"]))
        known = None if truth is None else {half: truth[which] for half, which in pictures.items()}
        return Judge(rows, self._halves, cosines, known)

    def cosines(self, images: Array, texts: Array, half: Half) -> Array:
        """(pictures of the half, labels): from rows of all pictures, and of all texts and prompts."""
        labels = self.data.labels
        assert labels is not None
        pictures = images[halves(len(images))[half]].astype(np.float64)
        found: Array = pictures @ labels.ensemble(texts[self.data.texts if labels.given else 0 :]).T
        return found

    def float_point(self, base: Variant) -> Point:
        """A float variant's place on the curve; the plain one is what all others are compared with."""
        model = read_graph(self.bundle, base)
        point = Point(self.tower, base.id, FLOAT, (), size_of(model), None, None, "base")
        if base is self.plain:
            figures = self.judge.figures(self._references[self.tower], "calibration")
            return replace(point, figures=figures, verdict="reference")
        return self._measured(Candidate(base, model, (), point, None)).point

    def convert(self, base: Variant, method: str, left: Layers = frozenset()) -> Candidate:
        """All layers converted, or all but some; run and timed.

        Raises:
            CheckFailed: the result is not finite, or the same for every input.
            EdgeClipError: the method refuses the graph.
        """
        layers = self._all[base.id, method] - left if left else None
        model, reports = self._converted(base, method, layers, len(self._halves["calibration"]))
        if not left:
            self._all[base.id, method] = frozenset(name for name, _ in self.converted_layers(base, model))
        point = Point(self.tower, base.id, method, tuple(sorted(left)), size_of(model), None, None, "step")
        return self._measured(Candidate(base, model, reports, point, None))

    def finish(self, candidate: Candidate) -> Candidate:
        """The held-out figures, and how much a row depends on its batch mates."""
        graph = self._judged(candidate)
        assert candidate.rows is not None
        which = self._halves["held_out"]
        rows = candidate.rows.copy()
        rows[which] = graph.rows(which)
        first = which[np.arange(max(BATCHES)) % len(which)]
        alone, *others = (graph.rows(first, batch).astype(np.float64) for batch in BATCHES)
        change = max(relative_distance_of(alone, other) for other in others)
        figures = self.judge.figures(rows, "held_out")
        point = replace(candidate.point, held_out=figures, batch_change=change)
        return replace(candidate, point=point, rows=rows)

    def sensitivity(self, base: Variant, method: str, group: Group) -> Group:
        """The group with the distance that converting it alone makes."""
        model, _ = self._converted(base, method, frozenset(group.layers), PROBES)
        which = self._halves["calibration"][:PROBES]
        found = self._open(model, base).rows(which).astype(np.float64)
        wanted = self._float_rows(base)[which].astype(np.float64)
        distance = relative_distance(wanted, found)
        return replace(group, distance=distance if distance < HOPELESS else HOPELESS)  # not finite: the same

    def converted_layers(self, base: Variant, model: ir.Model) -> list[tuple[str, int]]:
        """(name, weights) of every layer that is float in the base and no longer in the model, in the graph's order."""
        still = {name for name, _ in layers_of(model)}
        return [pair for pair in layers_of(read_graph(self.bundle, base)) if pair[0] not in still]

    def name_of(self, base: Variant, method: str) -> str:
        """The id of the variant that a method makes of a base."""
        return base.id if method == FLOAT else axes_of(base, METHODS[method]).name(self.tower)

    def _measured(self, candidate: Candidate) -> Candidate:
        """With its figures and its latency; without what this machine cannot say, and with the reason."""
        base, point = candidate.variant, candidate.point
        point = replace(point, latency=self.target.variants.get(self.name_of(base, point.method)))
        try:
            graph = self._open(candidate.model, base)
            if self._time_here:
                point = replace(point, latency=compare(self._plain_graph.call, graph.call, self.threads))
        except EngineError as error:
            point = replace(point, reason=str(error))
            candidate = replace(candidate, opens=False)
        try:
            rows = self._rows(self._judged(candidate), "calibration")
        except EngineError:
            return replace(candidate, point=point)
        figures = self.judge.figures(rows, "calibration")
        return replace(candidate, point=replace(point, figures=figures), rows=rows)

    def _judged(self, candidate: Candidate) -> Graph:
        """What gives the rows: onnxruntime's CPU leaves out the roundings of 16-bit graphs, so there they are written out."""
        method = METHODS.get(candidate.point.method)
        if method is None or method.precision not in HALF:
            return self._open(candidate.model, candidate.variant)
        from edgeclip.export.precision.typed import rounded

        return self._open(rounded(candidate.model), candidate.variant)

    @cached_property
    def _halves(self) -> dict[Half, Array]:
        count = len(self.data.pixels["float32"]) if self.tower == "image" else self.data.texts
        return halves(count)

    @cached_property
    def _plain_graph(self) -> Graph:
        return self._open(read_graph(self.bundle, self.plain), self.plain)

    def _float_rows(self, base: Variant) -> Array:
        if base is self.plain:
            return self._references[self.tower]
        if base.id not in self._other_rows:
            graph = self._open(read_graph(self.bundle, base), base)
            self._other_rows[base.id] = self._rows(graph, "calibration")
        return self._other_rows[base.id]

    def _converted(
        self, base: Variant, method: str, layers: Layers | None, samples: int
    ) -> tuple[ir.Model, tuple[PassReport, ...]]:
        inputs = inputs_of(self.data, base)[self._halves["calibration"][:samples]]
        request = Request(
            inputs=inputs,
            layers=layers,
            saturating=self.target.saturating and not self._for_gpu,
            activations="int8" if self._for_gpu else "uint8",
            threads=self.threads,
        )
        done = convert(read_graph(self.bundle, base), method, request)
        return done.model, done.reports

    def _open(self, model: ir.Model, base: Variant) -> Graph:
        return Graph(model, inputs_of(self.data, base), self.threads, byte_kernels=not self._for_gpu)

    def _rows(self, graph: Graph, half: Half) -> Array:
        """(M, D), filled in for this half; all of the text tower's, whose labels belong to both."""
        rows = np.zeros(self._references[self.tower].shape, np.float32)
        which = self._halves[half] if self.tower == "image" else np.arange(len(rows))
        rows[which] = graph.rows(which)
        return rows


def layers_of(model: ir.Model) -> list[tuple[str, int]]:
    """(name, weights) of every layer with plain float weights: convolutions, then linear ones."""
    kernels = [(layer.name, int(layer.kernel.size)) for layer in convolutions(model)]
    return kernels + [(layer.name, layer.parameters) for layer in linears(model)]


def float_variants(bundle: Bundle, tower: str) -> list[Variant]:
    """What may be compressed: one float variant for each way to merge tokens and to take pictures, the plain one first.

    Graphs that old engines read come before the others. Raises EdgeClipError for a tower without any.
    """
    found = [v for v in bundle.manifest.variants_of(tower) if computes_in_fp32(v)]
    found.sort(
        key=lambda v: (
            v.axes.token_merging,
            v.axes.input == "uint8",
            v.axes.opset,
            v.axes.precision != "fp32",
        )
    )
    kinds: dict[tuple[int, str], Variant] = {}
    for variant in found:
        kinds.setdefault((variant.axes.token_merging, variant.axes.input), variant)
    if (0, "float32") not in kinds:
        raise EdgeClipError(f"{bundle.root}: no {tower} tower in fp32 to start from. Export the model again.")
    return list(kinds.values())


def computes_in_fp32(variant: Variant) -> bool:
    """An exported graph: fp32, or fp16 in its files only. What was converted is compared with the variant it came from."""
    return variant.computes_in == "fp32"


def axes_of(base: Variant, method: Method) -> Any:
    """The axes of what a method makes of a base."""
    opset = max(base.axes.opset, method.opset)
    return replace(base.axes, precision=method.precision, activations=method.activations, opset=opset)


def inputs_of(data: Data, variant: Variant) -> Array:
    """All of the tower's inputs, as this variant takes them."""
    if variant.tower == "image":
        return data.pixels[variant.inputs[0].dtype]
    assert data.input_ids is not None
    return data.input_ids


def size_of(model: ir.Model) -> int:
    """Bytes of its weights."""
    return sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)


def relative_distance_of(a: Array, b: Array) -> float:
    """0 for rows that are equal, and where there is nothing to relate to."""
    return 0.0 if np.array_equal(a, b) else relative_distance(a, b)


def reference_rows(bundle: Bundle, data: Data, threads: int) -> dict[Tower, Array]:
    """What each tower's plain variant gives on all of its inputs: tower -> (M, D) float32."""
    found: dict[Tower, Array] = {}
    towers: tuple[Tower, ...] = ("image", "text")
    for tower in towers:
        if bundle.manifest.variants_of(tower):
            variant = float_variants(bundle, tower)[0]
            inputs = inputs_of(data, variant)
            graph = Graph(read_graph(bundle, variant), inputs, threads)
            found[tower] = graph.rows(np.arange(len(inputs)))
    return found
