"""Which engines a build makes, and from which graphs: each tower and head once, from what the bundle has or what can be made of it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from edgeclip.bundle import Bundle, Variant
from edgeclip.errors import EdgeClipError, EngineError, InputError
from edgeclip.runtime.expert_order import in_order
from edgeclip.runtime.tensorrt.flavour import choose, reads
from edgeclip.runtime.tensorrt.library import Library
from edgeclip.runtime.tensorrt.settings import PRECISION, BuildSettings, Converter

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """One graph that an engine may be built from."""

    variant: Variant  # as it is, or will be
    base: Variant | None = None  # the bundle's variant that it is made of; None: it is the bundle's own
    facts: Mapping[str, str] = field(
        default_factory=dict
    )  # of the conversion; none: nothing but its name changes


Job = list[Candidate]  # what one engine may be built from, in the order to try


def jobs_for(
    bundle: Bundle, settings: BuildSettings, library: Library, converter: Converter | None
) -> list[Job]:
    """One job for each engine.

    Raises:
        InputError: a tower that the bundle lacks.
        EngineError: a variant that it lacks, or a precision that it neither has nor can be made.
    """
    if settings.variants:
        named = [_named(bundle, name) for name in settings.variants]
        return [
            _job(bundle, [one], settings.precision or one.computes_in, library, converter) for one in named
        ]
    for tower in settings.towers:
        if not any(variant.tower == tower for variant in bundle.manifest.variants):
            raise InputError(f"--tower {tower}: {bundle.root} has no {tower} tower.")
    precision, jobs, reasons = settings.precision or PRECISION, [], []
    for group in _groups(bundle, settings.towers):
        try:
            jobs.append(_job(bundle, group, precision, library, converter))
        except EdgeClipError as error:
            if group[0].axes.head == "embeddings" and group[0].tower in ("image", "text"):
                raise
            reasons.append(str(error))
    if not jobs:
        raise EngineError(reasons[0])
    for reason in reasons:
        log.warning("left out: %s", reason)
    return jobs


def _named(bundle: Bundle, name: str) -> Variant:
    known = {variant.id: variant for variant in bundle.manifest.variants}
    if name not in known:
        raise EngineError(f"{bundle.root}: no variant {name!r}; it has {', '.join(known)}.")
    return known[name]


def _groups(bundle: Bundle, towers: Sequence[str]) -> Iterator[list[Variant]]:
    """The variants of each tower and head."""
    groups: dict[tuple[str, str], list[Variant]] = {}
    for variant in bundle.manifest.variants:
        if variant.axes.head == "routing":
            continue  # is for looking at, once; a caller may name it
        if not towers or variant.tower in towers:
            groups.setdefault((variant.tower, variant.axes.head), []).append(variant)
    yield from groups.values()


def _job(
    bundle: Bundle, group: Sequence[Variant], precision: str, library: Library, converter: Converter | None
) -> Job:
    """From variants of one tower and head. Those that merge tokens or take bytes count only where the bundle prefers them.

    Of experts, the first form that the library reads: every expert for every token, else as many tokens as fixed.
    """
    readable = in_order([v for v in group if reads(library, v)] or group, library.name)
    ready = _alike([v for v in readable if v.computes_in == precision])
    bases = _alike([v for v in readable if v.computes_in == "fp32"])
    found = [Candidate(v) if v.axes.precision == precision else _renamed(v) for v in ready]
    quantised = any(
        v.axes.activations != "float" for v in ready
    )  # other engines' bytes may not be TensorRT's
    if bases and precision != "fp32" and (not ready or (quantised and converter is not None)):
        found += _converted(bundle, bases, precision, library, converter)
    if not found:
        have = ", ".join(dict.fromkeys(variant.computes_in for variant in group))
        raise EngineError(
            f"{bundle.root}: its {_what(group[0])} is in {have}, and only fp32 can be made {precision}. Export the model again."
        )
    order = choose([one.variant for one in found], library)
    if not order:
        names = ", ".join(one.variant.id for one in found)
        gathers = any(one.variant.axes.moe == "gather" for one in found)
        more = (
            " The form gather has sizes that depend on data: export the model with --moe dense."
            if gathers
            else ""
        )
        raise EngineError(f"{bundle.root}: {library.name} {library.version} reads none of {names}.{more}")
    return [next(one for one in found if one.variant is variant) for variant in order]


def _alike(variants: Sequence[Variant]) -> list[Variant]:
    """Those that differ from the first in how attention is written only."""
    kinds = [(v.axes.token_merging, v.axes.input, v.axes.moe) for v in variants]
    return [v for v, kind in zip(variants, kinds, strict=True) if kind == kinds[0]]


def _renamed(variant: Variant) -> Candidate:
    """A graph whose weights are stored in fp16, under the name of what it computes in."""
    axes = replace(variant.axes, precision="fp32")
    return Candidate(replace(variant, id=axes.name(variant.tower), axes=axes), variant)


def _converted(
    bundle: Bundle, bases: Sequence[Variant], precision: str, library: Library, converter: Converter | None
) -> list[Candidate]:
    first = bases[0]
    if first.axes.head != "embeddings":
        small = f"edgeclip compress BUNDLE -o SMALL --precision {precision} --unproven"
        if first.tower == "detector":
            how = f"Compress the detector, which converts its heads as well: {small}."
        else:
            how = f"Bake the labels on a compressed variant: {small}, then edgeclip bake SMALL -o OUT --variant ID."
        raise EngineError(f"{bundle.root}: its {_what(first)} is in fp32 only. {how}")
    if converter is None:
        raise EngineError(
            f"{bundle.root}: its {_what(first)} is in fp32 only. To convert it: edgeclip build {bundle.root} "
            f"--target {library.name} --precision {precision}"
        )
    return [
        Candidate(converter.plan(base, precision), base, converter.facts(base, precision)) for base in bases
    ]


def _what(variant: Variant) -> str:
    return f"{variant.tower} tower" + (
        f" that gives {variant.axes.head}" if variant.axes.head != "embeddings" else ""
    )
