"""Which graph or engine serves a tower, and what of it goes into the model's folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from edgeclip.bundle import Bundle, Variant
from edgeclip.bundle.store import check_again
from edgeclip.errors import EngineError, InputError
from edgeclip.export.triton.config import BACKENDS, TritonSettings
from edgeclip.runtime.cpu import BYTE_SUMS
from edgeclip.runtime.engines import EngineOptions
from edgeclip.runtime.tensorrt.record import Record
from edgeclip.runtime.tensorrt.store import store_of


@dataclass(frozen=True)
class Choice:
    """What serves one tower."""

    variant: Variant
    files: Mapping[str, Path | bytes]  # of the folder of version 1, by name
    hashes: Mapping[str, str]  # SHA-256 of those that are copied
    most: int  # batch size that it can take
    best: tuple[int, ...]  # batch sizes that it was tuned for
    profiles: int
    sizes: Mapping[str, int]  # other symbolic sizes -> with which it is warmed up
    notes: tuple[str, ...]  # what the operator must know


def choose(bundle: Bundle, tower: str, head: str, settings: TritonSettings) -> Choice:
    """The graph or engine of a tower that the settings ask for.

    Raises:
        InputError: the bundle has none of this precision or id. EngineError: no engine was built, or none that can be served.
    """
    most = settings.max_texts if tower == "text" else settings.max_batch
    if settings.backend == "tensorrt":
        return _engine(bundle, tower, head, settings, most)
    variants = _fitting(bundle, bundle.manifest.variants_of(tower, head), tower, settings)
    variants.sort(key=lambda variant: _unproven(variant, settings))
    return _graph(bundle, variants[0], settings, most)


def _unproven(variant: Variant, settings: TritonSettings) -> bool:
    """A variant that proved its worth on other engines only comes last, as it does at run time."""
    engine = "onnxruntime-cuda" if settings.gpus else "onnxruntime-cpu"
    return bool(variant.proven) and engine not in variant.proven


def _fitting(
    bundle: Bundle, variants: Sequence[Variant], tower: str, settings: TritonSettings
) -> list[Variant]:
    if named := [variant for variant in variants if variant.id in settings.variants]:
        return named
    found = [v for v in variants if settings.precision in (None, v.axes.precision)]
    if not found:
        have = ", ".join(sorted({variant.axes.precision for variant in variants}))
        raise InputError(
            f"{bundle.root}: no {tower} tower in {settings.precision}; it has {have}. "
            "Choose one, or name a variant for each tower with --variant."
        )
    fit = [v for v in found if settings.gpus or v.requires.get("engine") != "gpu"]
    if not fit:
        raise InputError(
            f"{bundle.root}: {found[0].id} runs on a GPU only. Drop --cpu, or choose another precision."
        )
    return fit


def _graph(bundle: Bundle, variant: Variant, settings: TritonSettings, most: int) -> Choice:
    """The very files of the bundle. A graph names its weights as a neighbour, so the two lie side by side."""
    check_again(bundle, variant)
    names = [BACKENDS["onnxruntime"][1], *(PurePosixPath(name).name for name in variant.files[1:])]
    notes = []
    if least := variant.requires.get("onnxruntime"):
        notes.append(f"{variant.id} needs a Triton with onnxruntime {least} or newer")
    if variant.requires.get(BYTE_SUMS) == "wide" and not settings.gpus:
        notes.append(f"{variant.id} needs a processor that sums products of bytes in 32 bits (VNNI)")
    length = bundle.manifest.text.context_length if bundle.manifest.text else 1
    return Choice(
        variant,
        {name: bundle.path(file) for name, file in zip(names, variant.files, strict=True)},
        {name: bundle.manifest.files[file].sha256 for name, file in zip(names, variant.files, strict=True)},
        most,
        (),
        1,
        {"L": length} if variant.tower == "text" else {},
        tuple(notes),
    )


def _engine(bundle: Bundle, tower: str, head: str, settings: TritonSettings, most: int) -> Choice:
    store = store_of(bundle, EngineOptions(engines=settings.engines))
    build = f"edgeclip build {bundle.root} --target tensorrt"
    records = [
        record
        for record in store.records()
        if (record.library, record.bundle) == ("tensorrt", bundle.digest)
        and (record.variant.tower, record.variant.axes.head) == (tower, head)
    ]
    if not records:
        raise EngineError(
            f"{store.folder}: no TensorRT engine of the {tower} tower was built on this machine (one for TensorRT-RTX is "
            f"not for Triton). Run: {build}"
        )
    fit = _fitting(bundle, [record.variant for record in records], tower, settings)
    record = next(record for record in records if record.variant.id == fit[0].id)
    _check_servable(record, store.folder, build)
    spans = [profile["N"] for profile in record.options.profiles]
    return Choice(
        record.variant,
        {BACKENDS["tensorrt"][1]: store.plan(record)},
        {},
        min(most, max(span[2] for span in spans)),
        tuple(sorted({span[1] for span in spans})),
        len(spans),
        {name: span[1] for name, span in record.options.profiles[0].items() if name != "N"},
        _engine_notes(record),
    )


def _check_servable(record: Record, folder: Path, build: str) -> None:
    """Raise EngineError for an engine that the server cannot open, or that nobody has proved."""
    name = f"{folder}: the engine of {record.variant.id}"
    if record.options.strip_weights:
        raise EngineError(f"{name} holds no weights, and Triton does not refit. Run: {build}")
    if record.fidelity is None:
        raise EngineError(
            f"{name} was never replayed on a GPU, which its first opening does. Run: edgeclip classify PICTURE "
            "--labels 'a cat,a dog' -b BUNDLE --engine tensorrt"
        )
    if min(span[0] for span in (profile["N"] for profile in record.options.profiles)) > 1:
        raise EngineError(f"{name} takes no batch of 1. Run: {build} --batch 1:8:32")


def _engine_notes(record: Record) -> tuple[str, ...]:
    where = (
        f"{record.device.name} ({record.device.arch})" if record.device else ", ".join(record.options.archs)
    )
    what = f"TensorRT {record.version} exactly"
    if record.options.version_compatible:
        # Its plan leaves out the lean runtime by which a later release would run it, and the backend can be given none.
        what += " and --backend-config=tensorrt,version-compatible=true"
    return (f"{record.variant.id} needs a Triton with {what}, on {where}",)
