"""A graph that the bundle lacks, made beside the engine that is built from it: converted, checked by rule, measured on the CPU.

    build_engines(open_bundle("clip-b32"), "tensorrt-rtx", BuildSettings(precision="fp16", archs=("sm86",)))

What comes out of the bounds is refused with its figures before TensorRT sees it: an engine repeats a graph's faults, and hides them.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeclip.bundle import Bundle, Fidelity, Variant
from edgeclip.errors import CheckFailed, EngineError, InputError, MissingExtraError
from edgeclip.files import sha256_file
from edgeclip.runtime.tensorrt.api import build_engines as build_without
from edgeclip.runtime.tensorrt.library import Library
from edgeclip.runtime.tensorrt.record import Record
from edgeclip.runtime.tensorrt.settings import BuildSettings, Made, Tell, quiet

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgeclip.export.compress.bench import Candidate
    from edgeclip.export.compress.budget import Budget

log = logging.getLogger(__name__)

NEEDS = ("onnx", "onnx_ir", "onnxruntime", "ml_dtypes")
# Relative distance to fp32 on samples that nothing was fitted on; a budget of the user's replaces it.
LIMITS: Mapping[str, float] = {"fp16": 0.02, "bf16": 0.1, "int8": 0.1, "fp8": 0.1, "int4": 0.5}
CALIBRATED = ("int8", "fp8")  # scales follow from what flows through: made-up pictures would set them wrongly


def build_engines(
    bundle: Bundle,
    target: str,
    settings: BuildSettings | None = None,
    *,
    images: Path | None = None,
    texts: Path | None = None,
    budgets: Sequence[Budget] = (),
    threads: int | None = None,
    tell: Tell = quiet,
) -> list[Record]:
    """Build a bundle's engines, from graphs that are converted first where the bundle lacks the precision.

    Args:
        target: "tensorrt" or "tensorrt-rtx".
        images: folder of pictures to calibrate and measure a conversion on; None: made-up ones, not for int8 and fp8.
        texts: file of texts for the same, one a line; None: built-in ones.
        budgets: what a conversion may lose; none: LIMITS.
        threads: of the engine that measures; None: one for each physical core.
        tell: called with (what is built, what is being done, share done from 0 to 1).
    Returns:
        A record for each engine, built now or found in the store.
    Raises:
        As runtime.tensorrt.api.build_engines; CheckFailed: a conversion is out of its bounds.
    """
    converter = Converter(images, texts, tuple(budgets), threads)
    return build_without(bundle, target, settings, converter=converter, tell=tell)


@dataclass(frozen=True)
class Converter:
    """Makes graphs of another precision; see `build_engines`."""

    images: Path | None = None
    texts: Path | None = None
    budgets: tuple[Budget, ...] = ()
    threads: int | None = None

    def plan(self, base: Variant, precision: str) -> Variant:
        """What a conversion of a float variant would be called. Raises MissingExtraError, InputError."""
        need_onnx(precision)
        from edgeclip.export.compress.bench import axes_of
        from edgeclip.export.precision import METHODS

        if precision not in LIMITS:
            raise InputError(
                f"--precision {precision}: TensorRT has no such engines. Choose from fp32, {', '.join(LIMITS)}."
            )
        if base.tower not in ("image", "text", "detector"):
            raise EngineError(
                f"{base.id}: a {base.tower} is not converted by the way, it is built as its graph is typed. "
                f"Pass --precision fp32, or name a graph in {precision} with --variant."
            )
        axes = axes_of(base, METHODS[precision])
        return replace(base, id=axes.name(base.tower), axes=axes, fidelity=None, proven=(), scores=None)

    def facts(self, base: Variant, precision: str) -> dict[str, str]:
        """What a conversion depends on besides the bundle: another value makes another graph."""
        if base.tower != "text":
            samples = _digest(self.images) if self.images else "made up"
        else:
            samples = sha256_file(self.texts) if self.texts and self.texts.is_file() else "built in"
        return {
            "precision": precision,
            "samples": samples,
            "budget": ", ".join(map(str, self._budgets(precision, base.tower))),
        }

    def convert(
        self, bundle: Bundle, base: Variant, precision: str, library: Library, archs: Sequence[str], folder: Path, tell: Callable[[str], None],
    ) -> Made:  # fmt: skip
        """Convert, check, measure and write.

        Args:
            base: a float variant of the bundle.
            archs: GPUs that it is for, e.g. ("sm86",).
            folder: where the graph and its weights go.
            tell: called with what is being done.
        Raises:
            InputError: pictures that are needed and were not given, or a type that a GPU does not have.
            CheckFailed: out of its bounds, or the library would not read it.
        """
        planned = self.plan(base, precision)
        self._check(bundle, planned, archs)
        from edgeclip.export.tensorrt_rules import required
        from edgeclip.export.weights import save_graphs

        candidate, fidelity, notes = self._measured(bundle, base, precision, tell)
        _hold_to_rules(candidate.model, planned, library, archs)
        variant = replace(planned, fidelity=fidelity, requires={"tensorrt": required(candidate.model)})
        tell("replay the golden inputs")
        replay = _replay_detector if base.tower == "detector" else _replay
        replay(bundle, variant, candidate.model, self.threads)
        files = save_graphs([(variant.id, candidate.model)], folder, base.tower)[variant.id]
        return Made(replace(variant, files=files), notes)

    def _budgets(self, precision: str, tower: str) -> tuple[Budget, ...]:
        from edgeclip.export.compress.budget import Budget, of_tower

        return of_tower(self.budgets or (Budget("distance", LIMITS[precision]),), tower)

    def _check(self, bundle: Bundle, planned: Variant, archs: Sequence[str]) -> None:
        """What would fail after minutes of work."""
        from edgeclip.export.tensorrt_rules import FP8_CAPABILITY

        precision = planned.axes.precision
        old = [arch for arch in archs if capability(arch) < FP8_CAPABILITY]
        if precision == "fp8" and old:
            raise InputError(
                f"--precision fp8: {old[0]} has no fp8, which needs compute capability 8.9 (sm89). Use fp16, or build for sm89 and newer."
            )
        if planned.tower != "text" and precision in CALIBRATED and self.images is None:
            raise InputError(
                f"--precision {precision}: needs pictures to calibrate on, got none. Pass --images FOLDER with some 100 of yours."
            )
        if self.images is None and planned.tower != "text":
            log.warning(
                "no --images: what %s may hold and loses was looked at on made-up pictures, which say little of real ones",
                precision,
            )

    def _measured(
        self, bundle: Bundle, base: Variant, precision: str, tell: Callable[[str], None]
    ) -> tuple[Candidate, Fidelity, tuple[str, ...]]:
        from edgeclip.export.compress.bench import Bench, reference_rows
        from edgeclip.export.compress.data import read_data
        from edgeclip.export.compress.target import this_machine
        from edgeclip.export.compress.tower import Wish, compress_tower
        from edgeclip.export.steps import Steps

        tell("run the float graph")
        alone, plain, float_base = _alone(bundle, base)
        target = this_machine(self.threads)
        images, texts = (None, self.texts) if base.tower == "text" else (self.images, None)
        data = read_data(alone, images=images, texts=texts, labels=(), labels_from=None)
        rows = reference_rows(alone, data, target.threads)
        bench = Bench(
            alone, base.tower, data, rows, target, threads=target.threads, time_here=False, for_gpu=True
        )
        bench.bases = [float_base]
        wish = Wish(self._budgets(precision, base.tower), (precision,), "speed", unproven=True)
        result = compress_tower(bench, wish, Steps(lambda step, seconds: tell(step)))
        if not result.unproven:
            raise CheckFailed(f"{bundle.root}: no engine is built. {'; '.join(result.refusals)}.")
        (candidate,) = result.unproven
        assert candidate.rows is not None
        fidelity = bench.judge.fidelity(candidate.rows, "held_out", plain.id)
        left = len(candidate.point.left)
        notes = (f"{left} layer{'s' * (left > 1)} left in float to keep the budget",) if left else ()
        return candidate, fidelity, notes


def need_onnx(precision: str) -> None:
    """Raise MissingExtraError where graphs cannot be rewritten, as on most devices: says where it is done instead."""
    from importlib.util import find_spec

    missing = [name for name in NEEDS if find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"the bundle has no graph that computes in {precision}, and making one needs {missing[0]}. Make it at the workstation and copy the bundle: "
            f"edgeclip compress BUNDLE -o OUT --precision {precision} --unproven. Or build it in fp32, or run here: pip install onnx onnxscript onnxruntime"
        )


def documented(library: Library) -> str:
    """The release of tensorrt_rules.VERSIONS whose rules hold for a library: the newest that is not newer than it.

    TensorRT-RTX counts as the newest of them, whose parser it shares.
    """
    from edgeclip.export.tensorrt_rules import VERSIONS

    known = list(VERSIONS)
    if library.ahead_of_time:
        return known[-1]
    return next((name for name in reversed(known) if VERSIONS[name].number <= library.number), known[0])


def capability(arch: str) -> tuple[int, int]:
    """Compute capability of an architecture, e.g. "sm120" -> (12, 0)."""
    digits = arch.removeprefix("sm")
    return int(digits[:-1]), int(digits[-1])


def _hold_to_rules(model: ir.Model, variant: Variant, library: Library, archs: Sequence[str]) -> None:
    from edgeclip.export.tensorrt_rules import problems

    version = documented(library)
    oldest = min((capability(arch) for arch in archs), default=None)
    if found := problems(model, version, oldest):
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise CheckFailed(f"{variant.id}: TensorRT {version} would not take it: {found[0]}{more}.")


def _replay(bundle: Bundle, variant: Variant, model: ir.Model, threads: int | None) -> None:
    """Hold the graph to the bundle's golden rows, as the device will its engine. Raises CheckFailed."""
    from edgeclip.export.compress.bench import HALF, Graph
    from edgeclip.export.precision.typed import rounded
    from edgeclip.runtime.replay import inputs_of, limit_of, read_golden
    from edgeclip.runtime.threads import usable_cores

    inputs, want = inputs_of(bundle, variant, read_golden(bundle))
    if want is None:
        return
    exact = rounded(model) if variant.axes.precision in HALF else model
    graph = Graph(exact, inputs, threads or usable_cores(), byte_kernels=False)
    try:
        limit_of(variant).check(
            graph.rows(np.arange(len(inputs))).astype(np.float64), want.astype(np.float64)
        )
    except CheckFailed as error:
        raise CheckFailed(f"{variant.id}: {error}. No engine is built.") from error


def _replay_detector(bundle: Bundle, variant: Variant, model: ir.Model, threads: int | None) -> None:
    """The same of a detector: regions, boxes and scores. Raises CheckFailed."""
    import tempfile

    from edgeclip.export.compress.bench import HALF
    from edgeclip.export.precision.typed import rounded
    from edgeclip.export.weights import save_graphs
    from edgeclip.runtime.engines import EngineOptions, open_engine
    from edgeclip.runtime.replay import read_golden, replay_tower

    # bytes are those of TensorRT, which sums them in 32 bits
    options = EngineOptions(threads=threads, session_options={"session.disable_quant_qdq": "1"})
    with tempfile.TemporaryDirectory(prefix="edgeclip-") as scratch:
        folder = Path(scratch)
        exact = rounded(model) if variant.axes.precision in HALF else model.clone()
        (name, *_) = save_graphs([(variant.id, exact)], folder, "detector")[variant.id]
        engine = open_engine("onnxruntime-cpu", folder / name, variant, options)
        try:
            replay_tower(bundle, engine, read_golden(bundle))
        except CheckFailed as error:
            raise CheckFailed(f"{variant.id}: {error}. No engine is built.") from error
        finally:
            engine.close()


def _alone(bundle: Bundle, base: Variant) -> tuple[Bundle, Variant, Variant]:
    """-> (the bundle with one tower and what its figures compare, the float graph that they are to, the base as it is there)."""
    from edgeclip.export.compress.bench import float_variants

    manifest = bundle.manifest
    plain = float_variants(bundle, base.tower)[0]
    same = (base.axes.token_merging, base.axes.input) == (plain.axes.token_merging, plain.axes.input)
    plain = base if same else plain
    kept = [_as_fp32(one) for one in ((base,) if same else (plain, base))]
    manifest = replace(
        manifest,
        variants=tuple(kept),
        preprocessing=None if base.tower == "text" else manifest.preprocessing,
        text=manifest.text if base.tower == "text" else None,
    )
    return replace(bundle, manifest=manifest), plain, kept[-1]


def _as_fp32(variant: Variant) -> Variant:
    """A float graph under the name of what it computes in: fp16 may be no more than how its weights are stored."""
    axes = replace(variant.axes, precision="fp32")
    return replace(variant, id=axes.name(variant.tower), axes=axes)


def _digest(folder: Path) -> str:
    """Of a folder's pictures, by name and size."""
    from edgeclip.export.samples import pictures_in

    names = [f"{path.relative_to(folder)} {path.stat().st_size}" for path in pictures_in(folder)]
    return hashlib.sha256("\n".join(names).encode()).hexdigest()
