"""Compress a bundle under an accuracy budget.

    settings = CompressSettings(budgets=parse_budgets(["cosine=0.999"]), images=Path("photos"))
    report = compress_bundle(open_bundle("clip-b32"), Path("clip-b32-int8"), settings=settings)
    print(report.chosen["image"].latency)      # 1.94x (1.90-1.98)

The figures of the manifest come from pictures that nothing was fitted on; what is slower than fp32 on the target, or out of
budget, is refused with its figures.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from edgeclip.bundle import Bundle, Variant
from edgeclip.errors import CheckFailed, InputError
from edgeclip.export.compress.bench import (
    TOWERS,
    Bench,
    Candidate,
    axes_of,
    computes_in_fp32,
    reference_rows,
)
from edgeclip.export.compress.budget import KINDS, Budget, of_tower, parse_budgets
from edgeclip.export.compress.curve import Point, Tower
from edgeclip.export.compress.data import Data, halves, read_data
from edgeclip.export.compress.figures import Half, Judge
from edgeclip.export.compress.heads import heads_alike
from edgeclip.export.compress.scores import Refit, refit_scores
from edgeclip.export.compress.target import Target, read_report, this_machine
from edgeclip.export.compress.tower import Aim, TowerResult, Wish, compress_tower
from edgeclip.export.derive import NewVariant, derive_bundle
from edgeclip.export.precision import METHODS, Method
from edgeclip.export.precision.finished import load_ranges
from edgeclip.export.steps import Steps
from edgeclip.runtime.cpu import BYTE_SUMS

log = logging.getLogger(__name__)

# What is tried when no precision is named. On CPUs fp16, bf16 and int4 compute in fp32 and are slower: they save bytes only.
TRIED: dict[Aim, tuple[str, ...]] = {
    "speed": ("int8", "int8-dynamic"),
    "size": ("int8", "int8-dynamic", "fp16", "int4"),
}
FINISHED = ("int8",)  # of a student whose ranges are given


@dataclass(frozen=True)
class CompressSettings:
    """Everything that may be chosen about a compression."""

    budgets: tuple[Budget, ...] = parse_budgets(
        ()
    )  # all must hold, of each tower those that `budget.of_tower` says
    methods: tuple[str, ...] = ()  # of precision.METHODS; none: those of TRIED
    towers: tuple[Tower, ...] = ()  # must end compressed; none: whichever can be
    aim: Aim = "speed"
    images: Path | None = None  # folder of pictures; None: made-up ones, whose figures say little
    texts: Path | None = None  # file of texts, one a line; None: built-in ones
    labels: tuple[str, ...] = ()  # of the top-1 figure; none: the texts stand in
    labels_from: Path | None = None  # folder with a folder of pictures for each label
    device_report: Path | None = None  # of the target; None: this machine
    unproven: bool = False  # write what fits the budget without any proof of its speed
    ranges: Path | None = (
        None  # of a student that was finished in int8: its towers become that and nothing else
    )
    drop_float: bool = False  # leave the float variants of the compressed towers out
    threads: int | None = None
    overwrite: bool = False


class NothingFits(CheckFailed):
    """Everything was refused; the curve shows which budget could be kept."""

    def __init__(self, message: str, points: tuple[Point, ...]) -> None:
        super().__init__(message)
        self.points = points


@dataclass(frozen=True)
class CompressReport:
    """What was tried, what was chosen, and on what evidence."""

    bundle: Bundle
    target: Target
    budgets: tuple[Budget, ...]
    results: tuple[TowerResult, ...]
    refit: Refit | str  # of the image tower's scores, or why there is none
    seconds: dict[str, float]
    samples: dict[str, int]
    pictures: str  # where they came from; "": made up
    ranges: str = ""  # SHA-256 of the file of ranges that a finished student brought; "": they were searched

    @property
    def points(self) -> list[Point]:
        """The trade-off curve of every tower."""
        return [point for result in self.results for point in result.points]

    @property
    def chosen(self) -> dict[str, Point]:
        """Tower -> the point that its new first variant is."""
        return {r.tower: r.chosen[0].point for r in self.results if r.chosen}

    @property
    def refusals(self) -> list[str]:
        """One line each."""
        return [line for result in self.results for line in result.refusals]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "path": str(self.bundle.root),
            "seconds": {k: round(v, 2) for k, v in self.seconds.items()},
            **self.evidence(),
        }

    def evidence(self) -> dict[str, Any]:
        """What the manifest keeps."""
        target = self.target.to_dict()
        return {
            "budgets": [str(budget) for budget in self.budgets],
            "target": {key: target[key] for key in target if key != "variants"},
            "saturating": self.target.saturating,
            "pictures": self.pictures or "made up",
            "samples": self.samples,
            **({"ranges": self.ranges} if self.ranges else {}),
            "curve": [point.to_dict() for point in self.points],
            "sensitivities": {
                name: [asdict(group) for group in order]
                for result in self.results
                for name, order in result.sensitivities.items()
            },
            "scores": self.refit if isinstance(self.refit, str) else asdict(self.refit),
        }


def compress_bundle(
    bundle: Bundle,
    output: Path,
    *,
    settings: CompressSettings | None = None,
    tell: Callable[[str, float | None], None] = lambda name, seconds: None,
) -> CompressReport:
    """Find the fastest (or smallest) variants within the budget, and write a bundle in which they come first.

    Args:
        output: the folder to make. It appears whole, or not at all.
        tell: called with each step's name when it starts (None) and with its seconds when it ends.
    Raises:
        InputError: samples, precisions or an output that cannot be used.
        NothingFits: nothing does, or not in a tower that was asked for; says what was refused, with the figures.
        CheckFailed: both towers together lose more top-1 than allowed, or the result does not verify.
    """
    settings = settings or CompressSettings()
    _check(bundle, output, settings)
    steps = Steps(tell)
    target = read_report(settings.device_report) if settings.device_report else this_machine(settings.threads)
    threads = settings.threads or this_machine(None).threads
    with steps("read pictures and texts"):
        data = read_data(
            bundle, images=settings.images, texts=settings.texts, labels=settings.labels, labels_from=settings.labels_from,
        )  # fmt: skip
    _warn(data, settings)
    with steps("run the float towers"):
        references = reference_rows(bundle, data, threads)
    methods = settings.methods or TRIED[settings.aim]
    ranges = load_ranges(settings.ranges) if settings.ranges else {}
    benches = {
        tower: Bench(
            bundle, tower, data, references, target, threads=threads, time_here=not settings.unproven,
            finished=ranges.get(tower),
        )
        for tower in settings.towers or tuple(references)
    }  # fmt: skip
    wishes = {
        tower: Wish(
            of_tower(settings.budgets, tower),
            FINISHED if tower in ranges else methods,
            settings.aim,
            settings.unproven,
        )
        for tower in benches
    }
    _check_detections(benches, wishes)
    results = [compress_tower(bench, wishes[tower], steps) for tower, bench in benches.items()]
    _require(results, settings, output)
    for candidate in (candidate for result in results for candidate in result.chosen):
        if candidate.point.latency is not None and not candidate.point.latency.steady:
            log.warning(
                "%s: %s: this machine was busy while it was timed; repeat it on an idle one before you quote the ratio",
                candidate.point.base, candidate.point.latency,
            )  # fmt: skip
    _require_together(results, benches, settings)
    best = {result.tower: result.chosen[0] for result in results if result.chosen}
    refit = _refit(bundle, benches, best, settings)
    budgets = tuple(dict.fromkeys(budget for wish in wishes.values() for budget in wish.budgets))
    report = CompressReport(
        bundle,
        target,
        budgets,
        tuple(results),
        refit,
        steps.seconds,
        _samples(data),
        data.source,
        _digest(settings),
    )
    written = [candidate for result in results for candidate in (*result.chosen, *result.unproven)]
    new: list[NewVariant] = []
    last: set[str] = set()  # what was not proven is nobody's first choice
    for found in written:
        made = _variant(benches[found.variant.tower], found, target, refit)
        every = [made, *heads_alike(bundle, found.variant, made)]
        new += every
        last |= {one.variant.id for one in every if found.point.verdict == "unproven"}
    with steps("seal and verify the bundle"):
        derived = derive_bundle(
            bundle, output, new,
            keep=lambda v: not (settings.drop_float and v.tower in best and computes_in_fp32(v)),
            order=lambda found: sorted(found, key=lambda v: v.id in last),
            files={one.variant.labels: bundle.path(one.variant.labels).read_bytes() for one in new if one.variant.labels},
            record={"compress": report.evidence()},
            overwrite=settings.overwrite, threads=threads,
        )  # fmt: skip
    return replace(report, bundle=derived)


def _variant(bench: Bench, candidate: Candidate, target: Target, refit: Refit | str) -> NewVariant:
    """The manifest's entry, with the held-out figures."""
    base, point = candidate.variant, candidate.point
    assert candidate.rows is not None
    axes = axes_of(base, METHODS[point.method])
    proven = point.latency is not None and point.latency.faster
    fitted = refit.scores if isinstance(refit, Refit) and refit.kept and point.verdict == "chosen" else None
    variant = replace(
        base,
        id=axes.name(base.tower),
        axes=axes,
        fidelity=bench.judge.fidelity(candidate.rows, "held_out", bench.plain.id),
        proven=(target.engine,) if proven else (),
        scores=fitted if base.tower == "image" else None,
        # what onnxruntime's CPU has no kernels for was judged with its roundings written out
        requires=_requires(base, METHODS[point.method], candidate.opens, target.saturating),
    )
    return NewVariant(variant, candidate.model)


def _requires(base: Variant, method: Method, opens: bool, saturating: bool) -> dict[str, str]:
    """What the new graph needs where it is opened: of two releases of onnxruntime the later, and sums that its bytes fit."""
    oldest = max(
        base.requires.get("onnxruntime", "0"),
        method.onnxruntime,
        key=lambda text: [*map(int, text.split("."))],
    )
    found = {**base.requires, "onnxruntime": oldest}
    if method.precision == "int8" and not saturating:
        found[BYTE_SUMS] = "wide"
    return found if opens else {**found, "engine": "gpu"}


def _refit(
    bundle: Bundle, benches: dict[Tower, Bench], best: dict[Tower, Candidate], settings: CompressSettings
) -> Refit | str:
    if "image" not in best:
        return "no image tower was compressed"
    if not (settings.labels or settings.labels_from):
        return "no labels: pass --labels or --labels-from"
    rows, judge = best["image"].rows, benches["image"].judge
    assert rows is not None
    assert isinstance(judge, Judge)
    return refit_scores(judge, rows, bundle.manifest)


def check_methods(methods: Sequence[str]) -> None:
    """Raise InputError for a precision that does not exist."""
    for method in methods:
        if method not in METHODS:
            raise InputError(f"--precision {method}: unknown. Choose from {', '.join(METHODS)}.")


def check_output(output: Path, overwrite: bool) -> None:
    """Raise InputError for an output that is there and may not be replaced."""
    if output.exists() and not overwrite:
        raise InputError(
            f"{output}: already exists. Choose another place, or pass --overwrite to replace it."
        )


def _check(bundle: Bundle, output: Path, settings: CompressSettings) -> None:
    """What would fail after minutes of work."""
    check_output(output, settings.overwrite)
    check_methods(settings.methods)
    if settings.unproven and not settings.methods:
        raise InputError("--unproven: name what is to be written without proof, e.g. --precision fp8.")
    if settings.ranges and set(settings.methods) - set(FINISHED):
        raise InputError(
            "--ranges: the student was finished for int8. Leave --precision out, or compress without the ranges."
        )
    for tower in load_ranges(settings.ranges) if settings.ranges else ():
        if not bundle.manifest.variants_of(tower):
            raise InputError(
                f"--ranges {settings.ranges}: is of a student with a tower {tower!r}, {bundle.root} has none."
            )
    for tower in settings.towers:
        if tower not in TOWERS:
            raise InputError(
                f"--tower {tower}: only {', '.join(TOWERS)} are compressed. A region encoder's towers are exported with fewer bytes by "
                "`edgeclip export --store fp16`."
            )
        if not bundle.manifest.variants_of(tower):
            raise InputError(f"--tower {tower}: {bundle.root} has none.")
    has = {tower for tower in TOWERS if bundle.manifest.variants_of(tower)}
    if "detector" not in has and (boxes := [b.kind for b in settings.budgets if KINDS[b.kind].boxes]):
        raise InputError(
            f"--budget {boxes[0]}: {bundle.root} has no detector, so that nothing has boxes. Drop it."
        )
    if any(budget.kind == "top1" for budget in settings.budgets) and not {"image", "text"} <= has:
        raise InputError(
            f"--budget top1: {bundle.root} has no image tower beside a text tower, so that nothing can be classified."
        )


def _check_detections(benches: dict[Tower, Bench], wishes: dict[Tower, Wish]) -> None:
    """Nothing agrees with nothing: a bound on the detections needs some of fp32's."""
    bench = benches.get("detector")
    if bench is None or not any(budget.kind == "agreement" for budget in wishes["detector"].budgets):
        return
    rows = bench.references["detector"]
    halves_: tuple[Half, Half] = ("calibration", "held_out")
    for half in halves_:
        if bench.judge.figures(rows, half).agreement is None:
            raise InputError(
                f"--budget agreement: {bench.plain.id} finds nothing in the {half.replace('_', '-')} pictures. "
                "Pass --images with pictures of things and --labels with their names."
            )


def _warn(data: Data, settings: CompressSettings) -> None:
    if data.made_up and (data.pixels or data.detector):
        log.warning("no --images: scales and figures come from made-up pictures and say little of real ones")
    held_out = len(halves(len(data.pixels["float32"]))["held_out"]) if data.pixels else data.texts // 2
    for budget in settings.budgets if not data.detector or data.pixels else ():
        if budget.kind == "top1" and 100 / held_out > -budget.bound > 0:
            log.warning(
                "--budget %s: one of the %d held-out pictures is %.1f points; nothing at all may change",
                budget, held_out, 100 / held_out,
            )  # fmt: skip


def _digest(settings: CompressSettings) -> str:
    return hashlib.sha256(settings.ranges.read_bytes()).hexdigest() if settings.ranges else ""


def _samples(data: Data) -> dict[str, int]:
    pictures = len(data.pixels["float32"]) if data.pixels else 0
    counts = {"pictures": pictures, "texts": data.texts}
    if data.detector:
        counts["detector_pictures"] = len(data.detector["float32"])
    return {f"{name}_{half}": len(which) for name, n in counts.items() for half, which in halves(n).items()}


def _require(results: Sequence[TowerResult], settings: CompressSettings, output: Path) -> None:
    done = {result.tower for result in results if result.chosen or result.unproven}
    if done and done >= set(settings.towers):
        return
    lines = [line for result in results if result.tower not in done for line in result.refusals]
    points = tuple(point for result in results for point in result.points)
    why = (
        "; ".join(lines)
        or "the bundle has no image or text tower and no detector that gives embeddings, which is what is compressed"
    )
    raise NothingFits(f"{output}: not written. {why}.", points)


def _require_together(
    results: Sequence[TowerResult], benches: dict[Tower, Bench], settings: CompressSettings
) -> None:
    """Each tower alone keeps the top-1 budget; so must both."""
    budget = next((b for b in settings.budgets if b.kind == "top1"), None)
    rows = {result.tower: result.chosen[0].rows for result in results if result.chosen}
    images, texts = rows.get("image"), rows.get("text")
    if budget is None or images is None or texts is None:
        return
    bench = benches["image"]
    assert isinstance(bench.judge, Judge)
    change = bench.judge.top1(bench.cosines(images, texts, "held_out"), "held_out")
    if not change >= budget.bound:
        raise CheckFailed(
            f"top1: {change:.2f} points with both towers compressed, at least {budget.bound:g} allowed; each alone fits. "
            "Compress one of them, e.g. --tower image."
        )
