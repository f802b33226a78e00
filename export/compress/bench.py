"""One tower on the bench: its float graphs are converted, run on the user's samples, and timed beside each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeclip.bundle import Bundle, Detection, Variant
from edgeclip.errors import EdgeClipError, EngineError
from edgeclip.export.compress.curve import Point, Tower
from edgeclip.export.compress.data import Data, halves
from edgeclip.export.compress.figures import Half, Judge
from edgeclip.export.compress.latency import compare
from edgeclip.export.compress.regions import RegionJudge, side_by_side, stand_ins
from edgeclip.export.compress.routing import routing_agreement
from edgeclip.export.compress.search import Group, Layers
from edgeclip.export.compress.target import LENGTH, Target
from edgeclip.export.derive import read_graph
from edgeclip.export.linears import convolutions, linears
from edgeclip.export.observe import at_once, session
from edgeclip.export.passes import PassReport
from edgeclip.export.precision import METHODS, Method, Request, convert
from edgeclip.export.precision.finished import Finished
from edgeclip.runtime.engines.onnxruntime_session import first_line

Array = NDArray[Any]
FLOAT = "float"  # in place of a method: the base as it is
HALF = ("fp16", "bf16")
BATCHES = (1, 3, 8)
HOPELESS = 1e3  # relative distance; two unrelated samples have 1
PROBES = 4  # calibration samples that a group's sensitivity is measured on
TOWERS: tuple[Tower, ...] = ("image", "text", "detector")  # what is compressed
# Of experts, as the plain variant is chosen: exact ones, the one that computes least first. What drops tokens is measured against them.
FORMS = ("none", "gather", "dense", "capacity")


@dataclass(frozen=True)
class Candidate:
    """A converted graph and what was measured of it."""

    variant: Variant  # the base
    model: ir.Model
    reports: tuple[PassReport, ...]
    point: Point
    rows: (
        Array | None
    )  # (M, D), of a detector (M, Q, C); the calibration half is filled in; None: it does not run here
    opens: bool = True  # in onnxruntime's CPU engine


class Graph:
    """A graph opened on this machine, with the inputs that it takes."""

    def __init__(self, model: ir.Model, inputs: Array, threads: int, byte_kernels: bool = True) -> None:
        try:
            self._session = session(model, threads=threads, byte_kernels=byte_kernels)
        except Exception as error:  # onnxruntime's errors have no common base
            raise EngineError(f"onnxruntime cannot open it here ({first_line(error)})") from error
        self._name, self._inputs, self.most = self._session.get_inputs()[0].name, inputs, at_once(model)
        one = inputs[:1]
        self._one = one if one.ndim > 2 or self._fixed else one[:, :LENGTH]

    @property
    def _fixed(self) -> bool:
        return isinstance(self._session.get_inputs()[0].shape[1], int)

    def rows(self, which: Array, batch: int = 0) -> Array:
        """(len(which), D) rows of these inputs, of a detector (len(which), Q, C); 0: as many a call as memory allows."""
        batch = batch or self.most
        parts = [which[i : i + batch] for i in range(0, len(which), batch)]
        try:
            found = [
                side_by_side(self._session.run(None, {self._name: self._inputs[part]})) for part in parts
            ]
        except Exception as error:
            raise EngineError(f"onnxruntime fails to run it here ({first_line(error)})") from error
        return np.concatenate(found)

    def call(self) -> None:
        """Batch 1, once."""
        self._session.run(None, {self._name: self._one})


class Bench:
    """A tower's float variants, its samples, and the judge of what becomes of them.

    Args:
        tower: one of TOWERS.
        references: rows of each tower's plain variant, see `reference_rows`.
        time_here: time graphs on this machine; False: the target's report says, or nothing does.
        finished: how a student's layers were trained to be quantised, by layer; None: ranges are searched.
        for_gpu: bytes are those of TensorRT, symmetric and summed in 32 bits; this machine measures them in floats.
    """

    def __init__(
        self, bundle: Bundle, tower: Tower, data: Data, references: Mapping[Tower, Array], target: Target, *,
        threads: int, time_here: bool, for_gpu: bool = False, finished: Mapping[str, Finished] | None = None,
    ) -> None:  # fmt: skip
        self.bundle, self.tower, self.data, self.target = bundle, tower, data, target
        self.references, self._other_rows = references, dict[str, Array]()
        self._all: dict[
            tuple[str, str], Layers
        ] = {}  # (base, method) -> what it converts when nothing is left out
        self.threads, self._time_here = threads, time_here and not target.report
        self._for_gpu, self._finished = for_gpu, finished
        self.bases = float_variants(bundle, tower)
        self.plain = self.bases[0]

    @cached_property
    def judge(self) -> Judge | RegionJudge:
        """Knows fp32's rows; the other tower's, for labels, are made by its own plain variant."""
        found = self._region_judge() if self.tower == "detector" else self._row_judge()
        found.check(self.plain.id)
        return found

    def _region_judge(self) -> RegionJudge:
        rows, texts, labels = self.references[self.tower], self.references.get("text"), self.data.labels
        ports = self.plain.outputs
        if texts is None or labels is None:
            vectors = stand_ins(rows, ports)
        else:
            vectors = labels.ensemble(texts[self.data.texts if labels.given else 0 :])
        return RegionJudge(rows, self._halves, ports, vectors, self.bundle.manifest.detection or Detection())

    def _row_judge(self) -> Judge:
        rows, truth = self.references[self.tower], self.data.truth
        other = self.references.get("text" if self.tower == "image" else "image")
        if other is None or self.data.labels is None:
            return Judge(rows, self._halves)

        def cosines(found: Array, half: Half) -> Array:
            return (
                self.cosines(found, other, half)
                if self.tower == "image"
                else self.cosines(other, found, half)
            )

        pictures = halves(len(self.references["image"]))
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
            figures = self.judge.figures(self.references[self.tower], "calibration")
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
        batches = BATCHES if graph.most >= max(BATCHES) else (1, max(2, graph.most))
        first = which[np.arange(max(batches)) % len(which)]
        alone, *others = (graph.rows(first, batch) for batch in batches)
        # 0 for equal rows, and where there is nothing to relate to
        change = max(
            0.0 if np.array_equal(alone, other) else self.judge.distance(alone, other) for other in others
        )
        figures = self.judge.figures(rows, "held_out")
        point = replace(
            candidate.point, held_out=figures, batch_change=change, routing=self._routing(candidate)
        )
        return replace(candidate, point=point, rows=rows)

    def sensitivity(self, base: Variant, method: str, group: Group) -> Group:
        """The group with the distance that converting it alone makes."""
        # so few samples show what a group costs, but not whether enough tokens take an expert: that was seen on all of them
        model, _ = self._converted(base, method, frozenset(group.layers), PROBES, fewest=1)
        which = self._halves["calibration"][:PROBES]
        distance = self.judge.distance(self._float_rows(base)[which], self._open(model, base).rows(which))
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
        pixels = {"image": self.data.pixels, "detector": self.data.detector}.get(self.tower)
        return halves(self.data.texts if pixels is None else len(pixels["float32"]))

    @cached_property
    def _plain_graph(self) -> Graph:
        return self._open(read_graph(self.bundle, self.plain), self.plain)

    def _float_rows(self, base: Variant) -> Array:
        if base is self.plain:
            return self.references[self.tower]
        if base.id not in self._other_rows:
            graph = self._open(read_graph(self.bundle, base), base)
            self._other_rows[base.id] = self._rows(graph, "calibration")
        return self._other_rows[base.id]

    def _converted(
        self, base: Variant, method: str, layers: Layers | None, samples: int, fewest: int | None = None
    ) -> tuple[ir.Model, tuple[PassReport, ...]]:
        inputs = inputs_of(self.data, base)[self._halves["calibration"][:samples]]
        request = Request(
            inputs=inputs,
            layers=layers,
            saturating=self.target.saturating and not self._for_gpu,
            activations="int8" if self._for_gpu else "uint8",
            threads=self.threads,
            finished=self._finished,
        )
        request = request if fewest is None else replace(request, fewest=fewest)
        done = convert(read_graph(self.bundle, base), method, request)
        return done.model, done.reports

    def _routing(self, candidate: Candidate) -> float | None:
        base = candidate.variant
        if base.axes.moe == "none":
            return None
        model, method = candidate.model, METHODS[candidate.point.method]
        if method.precision in HALF:
            from edgeclip.export.precision.typed import rounded

            model = rounded(model)
        inputs = inputs_of(self.data, base)[self._halves["held_out"]]
        return routing_agreement(read_graph(self.bundle, base), model, inputs, threads=self.threads)

    def _open(self, model: ir.Model, base: Variant) -> Graph:
        return Graph(model, inputs_of(self.data, base), self.threads, byte_kernels=not self._for_gpu)

    def _rows(self, graph: Graph, half: Half) -> Array:
        """(M, ...), filled in for this half; all of the text tower's, whose labels belong to both."""
        rows = np.zeros(self.references[self.tower].shape, np.float32)
        which = self._halves[half] if self.tower != "text" else np.arange(len(rows))
        rows[which] = graph.rows(which)
        return rows


def layers_of(model: ir.Model) -> list[tuple[str, int]]:
    """(name, weights) of every layer with plain float weights: convolutions, then linear ones."""
    kernels = [(layer.name, int(layer.kernel.size)) for layer in convolutions(model)]
    return kernels + [(layer.name, layer.parameters) for layer in linears(model)]


def float_variants(bundle: Bundle, tower: str) -> list[Variant]:
    """What may be compressed: one float variant for each way to merge tokens, to take pictures and to write experts, the plain one first.

    Graphs that old engines read come before the others, and forms of experts in the order of FORMS. Raises EdgeClipError for a tower without any.
    """
    found = [v for v in bundle.manifest.variants_of(tower) if computes_in_fp32(v)]
    found.sort(
        key=lambda v: (
            v.axes.token_merging,
            v.axes.input == "uint8",
            FORMS.index(v.axes.moe),
            v.axes.opset,
            v.axes.precision != "fp32",
        )
    )
    kinds: dict[tuple[int, str, str], Variant] = {}
    for variant in found:
        kinds.setdefault((variant.axes.token_merging, variant.axes.input, variant.axes.moe), variant)
    if not any(kind[:2] == (0, "float32") for kind in kinds):
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
    if variant.tower != "text":
        return (data.pixels if variant.tower == "image" else data.detector)[variant.inputs[0].dtype]
    assert data.input_ids is not None
    return data.input_ids


def size_of(model: ir.Model) -> int:
    """Bytes of its weights."""
    return sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)


def reference_rows(bundle: Bundle, data: Data, threads: int) -> dict[Tower, Array]:
    """What each tower's plain variant gives on all of its inputs: tower -> (M, D) float32, of a detector (M, Q, C)."""
    found: dict[Tower, Array] = {}
    for tower in TOWERS:
        if bundle.manifest.variants_of(tower):
            variant = float_variants(bundle, tower)[0]
            inputs = inputs_of(data, variant)
            graph = Graph(read_graph(bundle, variant), inputs, threads)
            found[tower] = graph.rows(np.arange(len(inputs)))
    return found
