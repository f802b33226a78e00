"""Compress one tower: every float variant and method is tried, what does not fit is mended layer by layer, the best is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from edgeclip.bundle import Variant
from edgeclip.errors import EdgeClipError, InputError
from edgeclip.export.compress.bench import FLOAT, Bench, Candidate
from edgeclip.export.compress.budget import Budget, shortfalls, within
from edgeclip.export.compress.curve import Point, Tower, Verdict
from edgeclip.export.compress.search import Group, fewest, left_of, sensitivities
from edgeclip.export.precision import METHODS
from edgeclip.export.steps import Steps

Aim = Literal["speed", "size"]
# Methods that convert layer by layer; the others find for themselves what must stay in fp32.
BY_LAYER = {name for name, method in METHODS.items() if method.precision in ("int8", "int4", "fp8")}


@dataclass(frozen=True)
class Wish:
    """What is wanted of a tower."""

    budgets: Sequence[Budget]
    methods: Sequence[str]  # of METHODS
    aim: Aim
    unproven: bool  # what fits the budget is written without any proof of its speed


@dataclass
class TowerResult:
    """What became of one tower."""

    tower: Tower
    points: list[Point] = field(default_factory=list)  # in the order they were measured
    # "<variant> <method>" -> groups of layers, those first that give most back in float
    sensitivities: dict[str, list[Group]] = field(default_factory=dict)
    fitting: list[Candidate] = field(default_factory=list)  # within budget and worth it, best first
    chosen: list[Candidate] = field(
        default_factory=list
    )  # of those the best for each kind of input, best first
    unproven: list[Candidate] = field(default_factory=list)  # within budget; nobody knows how fast

    @property
    def refusals(self) -> list[str]:
        """One line for each float variant and method of which nothing was good enough: the last word on it."""
        last = {(p.base, p.method): p for p in self.points if p.verdict == "refused"}
        good = {(p.base, p.method) for p in self.points if p.verdict in ("fits", "chosen", "unproven")}
        return [f"{p.base}: {p.name}: {p.reason}" for key, p in last.items() if key not in good]

    def settle(self, candidate: Candidate, verdict: Verdict, reason: str = "") -> Candidate:
        """Note what became of a graph; its point is there already."""
        point = replace(candidate.point, verdict=verdict, reason=reason)
        keys = [(p.base, p.method, p.left) for p in self.points]
        self.points[keys.index((point.base, point.method, point.left))] = point
        return replace(candidate, point=point)


def compress_tower(bench: Bench, wish: Wish, steps: Steps) -> TowerResult:
    """Try everything, and sort what fits. What is refused is a point with its reason."""
    result = TowerResult(bench.tower)
    for base in bench.bases:
        with steps(f"measure {base.id}"):
            result.points.append(bench.float_point(base))
    for base in bench.bases:
        for method in wish.methods:
            _Trial(bench, wish, steps, result, base, method).run()
    result.fitting.sort(key=lambda found: _preference(found, wish.aim))
    kinds: dict[str, Candidate] = {}
    for candidate in result.fitting:
        kinds.setdefault(candidate.variant.axes.input, candidate)
    result.chosen = [result.settle(candidate, "chosen") for candidate in kinds.values()]
    return result


def _preference(candidate: Candidate, aim: Aim) -> tuple[bool, float]:
    """Smaller is better. Rows of a dynamically quantised graph depend on their batch mates: it comes after all others."""
    point = candidate.point
    ratio = (
        point.latency.low if point.latency else 0.0
    )  # what is certain: on a busy machine the median is not
    dynamic = METHODS[point.method].activations == "dynamic"
    return dynamic, point.size_bytes if aim == "size" else -ratio


@dataclass
class _Trial:
    """One float variant and one method, followed to a graph that fits or to a refusal."""

    bench: Bench
    wish: Wish
    steps: Steps
    result: TowerResult
    base: Variant
    method: str
    order: list[Group] = field(default_factory=list)  # as it may be left in float; found when it is needed
    count: int = 0  # groups left in float, in the last graph that was made

    def run(self) -> None:
        """Ends with a point that says what became of it."""
        try:
            self._follow()
        except EdgeClipError as error:  # the method refuses the graph, or makes one that gives nonsense
            left = tuple(sorted(left_of(self.order, self.count)))
            point = Point(
                self.bench.tower, self.base.id, self.method, left, 0, None, None, "refused", str(error)
            )
            self.result.points.append(point)

    def _follow(self) -> None:
        name = self.bench.name_of(self.base, self.method)
        if any(variant.id == name for variant in self.bench.bundle.manifest.variants):
            raise InputError(f"the bundle has {name} already. Start from a bundle without it")
        with self.steps(f"convert {self.base.id} in {self.method}"):
            whole = self._measure(0)
        if reason := self._hopeless(whole):
            self.result.settle(whole, "refused", reason)
        elif self._fits(whole):
            self._conclude(whole)
        elif (mended := self._mend(whole)) is not None:
            self._conclude(mended)
        else:
            self.result.settle(whole, "refused", self._out_of_budget(whole.point))

    def _conclude(self, candidate: Candidate) -> None:
        """The held-out half decides; where it falls short, more layers are left in float until it does not."""
        finished: Candidate | None = self._finish(candidate)
        assert finished is not None
        if not self._holds(finished):
            finished = self._mend_held_out(finished)
        if finished is None:
            return
        if reason := self._not_worth_it(finished.point):
            self.result.settle(finished, "refused", reason)
        elif self.wish.unproven:
            self.result.unproven.append(self.result.settle(finished, "unproven"))
        else:
            self.result.fitting.append(self.result.settle(finished, "fits"))

    def _finish(self, candidate: Candidate) -> Candidate:
        with self.steps(f"held-out half of {self.base.id}, {candidate.point.name}"):
            finished = self.bench.finish(candidate)
        short = "" if self._holds(finished) else self._out_of_budget(finished.point)
        return self.result.settle(finished, "refused" if short else "step", short)

    def _holds(self, finished: Candidate) -> bool:
        held_out = finished.point.held_out
        return held_out is not None and within(self.wish.budgets, held_out) and self._fits(finished)

    def _mend_held_out(self, short: Candidate) -> Candidate | None:
        """The held-out half is looked at about log2(groups) times: too seldom for a choice among figures this steady to flatter."""
        start, order = self.count, self._order(short)
        found = fewest(
            len(order) - start, lambda more: self._finish(self._measure(start + more)), self._holds
        )
        return found[1] if found else None

    def _measure(self, count: int) -> Candidate:
        """With the first `count` groups left in float; its point joins the curve."""
        self.count = count
        found = self.bench.convert(self.base, self.method, left_of(self.order, count))
        self.result.points.append(found.point)
        return found

    def _fits(self, candidate: Candidate) -> bool:
        figures = candidate.point.figures
        return figures is not None and within(self.wish.budgets, figures)

    def _mend(self, whole: Candidate) -> Candidate | None:
        order = self._order(whole)
        with self.steps(f"search for the layers of {self.base.id} to leave in float"):
            found = fewest(len(order), self._measure, self._fits)
        if found is None:
            return None
        self.count, candidate = found
        return candidate

    def _order(self, whole: Candidate) -> list[Group]:
        if not self.order and self.method in BY_LAYER:
            layers = self.bench.converted_layers(self.base, whole.model)
            name = f"sensitivity of {self.base.id} to {self.method}"

            def measure(group: Group) -> Group:
                self.steps.tell(
                    f"{name}: {group.layers[0]}, {len(group.layers)} of {len(layers)} layers", None
                )
                return self.bench.sensitivity(self.base, self.method, group)

            with self.steps(name):
                self.order = sensitivities(layers, measure)
            self.result.sensitivities[f"{self.base.id} {self.method}"] = self.order
        return self.order

    def _hopeless(self, whole: Candidate) -> str:
        """Why no search is worth its time; "" where one may be. All layers converted are the fastest and smallest."""
        if whole.point.figures is None:
            return f"{whole.point.reason}; what it loses is not known"
        if self.method in BY_LAYER and not self.bench.converted_layers(self.base, whole.model):
            missed = next(
                (miss for report in whole.reports for miss in report.near_misses), "it has no linear layer"
            )
            return f"no layer was converted ({missed})"
        return self._not_worth_it(whole.point)

    def _not_worth_it(self, point: Point) -> str:
        float_point = next(p for p in self.result.points if p.base == self.base.id and p.method == FLOAT)
        if self.wish.aim == "size":
            if point.size_bytes < float_point.size_bytes:
                return ""
            return (
                f"not smaller than {self.base.id}: {point.size_bytes} bytes, {float_point.size_bytes} there"
            )
        if self.wish.unproven:
            return ""
        target = self.bench.target
        if point.latency is None and point.reason:
            return f"speed unproven: {point.reason}. Pass --unproven to write it all the same"
        if point.latency is None:
            return (
                f"speed unproven: {target.report or target.device} has no figures of "
                f"{self.bench.name_of(self.base, self.method)}. Measure it there, or pass --unproven"
            )
        if not point.latency.faster:
            where = point.latency.device or target.device or "this machine"
            return f"not faster than {self.bench.plain.id} on {where}: {point.latency}, {point.latency.ms:.2f} ms"
        return ""

    def _out_of_budget(self, point: Point) -> str:
        figures = point.held_out or point.figures
        assert figures is not None
        half = "held-out" if point.held_out else "calibration"
        return f"out of budget on the {half} half: {shortfalls(self.wish.budgets, figures)}"
