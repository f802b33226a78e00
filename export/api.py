"""Export a source model into a verified bundle.

report = export_bundle(load_source("hf:openai/clip-vit-base-patch32"), Path("clip-b32"))
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from edgeclip import __version__
from edgeclip.bundle import Bundle, Manifest, Preprocessing, Variant, identity, seal
from edgeclip.errors import InputError
from edgeclip.export import parity
from edgeclip.export.capacity import DROP
from edgeclip.export.codecs import write_codecs
from edgeclip.export.golden import GoldenInputs, golden_file, golden_inputs
from edgeclip.export.parity import Parity, Samples
from edgeclip.export.passes import PassReport
from edgeclip.export.proofs import PROOFS, Material, Proof, open_proof
from edgeclip.export.routing import Routing, watches
from edgeclip.export.routing_parity import compare_routing
from edgeclip.export.samples import (
    EXTREME_TEXTS,
    TEXTS,
    encode,
    made_up_pictures,
    pictures_in,
    pixels_of,
    texts_in,
)
from edgeclip.export.steps import Steps
from edgeclip.export.targets import flavours_for
from edgeclip.export.towers import towers_of
from edgeclip.export.variants import Asked, Made, check_wishes, groups_of, write_towers
from edgeclip.files import new_folder, write_file
from edgeclip.models.regions import whole, with_regions
from edgeclip.models.resolution import at_resolution
from edgeclip.models.source import Source
from edgeclip.runtime.fidelity import check_sane
from edgeclip.runtime.verify import verify

log = logging.getLogger(__name__)

TOKENIZER, GOLDEN = "tokenizer.json", "golden.safetensors"


@dataclass(frozen=True)
class ExportSettings:
    """Everything that may be chosen about an export."""

    targets: tuple[str, ...] = ("all",)  # of targets.TARGETS
    images: Path | None = None  # folder of pictures for the comparison; None: made-up ones
    texts: Path | None = None  # file of texts for it, one a line; None: built-in ones
    tolerance: float | None = None  # of the comparison; None: the precision's own, see parity.TOLERANCES
    store: Literal["fp32", "fp16"] = "fp32"  # weights in the files: fp16 halves them, engines compute in fp32
    uint8: bool = False  # image variants that take (N, H, W, 3) bytes too, and normalise in the graph
    # image variants that merge so many tokens away in each block too, one for each number
    token_merging: tuple[int, ...] = ()
    resolution: tuple[int, int] | None = None  # (H, W) of the pictures; None: the source's own
    regions: bool = False  # of a CLIP: a dense map, and boxes pooled from it
    threads: int | None = None  # of the engine in the comparison
    overwrite: bool = False
    keep_failed: bool = False  # a bundle that failed is kept at <output>.failed
    revision: str | None = None  # of the source, for its provenance
    # how mixtures of experts are written, of targets.EXPERT_FORMS; (): as the targets need it
    moe: tuple[str, ...] = ()
    moe_drop: float = DROP  # largest share of an expert's tokens that finds no place in the form "capacity"


@dataclass(frozen=True)
class ExportReport:
    """What was done, how long it took and how well the result agrees with its source."""

    bundle: Bundle
    parities: tuple[Parity, ...]
    passes: dict[str, list[PassReport]]  # by variant
    seconds: dict[str, float]  # by step
    warnings: tuple[str, ...]  # of the licence passport
    experts: tuple[str, ...] = ()  # why they were written as they were, one line a tower and form

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "path": str(self.bundle.root),
            "model_id": self.bundle.manifest.model_id,
            "size_bytes": sum(entry.size for entry in self.bundle.manifest.files.values()),
            "variants": [asdict(parity) for parity in self.parities],
            "experts": list(self.experts),
            "passes": {name: [asdict(report) for report in reports] for name, reports in self.passes.items()},
            "seconds": {step: round(seconds, 2) for step, seconds in self.seconds.items()},
            "licence": asdict(self.bundle.manifest.licence),
            "warnings": list(self.warnings),
        }


def export_bundle(
    source: Source,
    output: Path,
    *,
    settings: ExportSettings | None = None,
    tell: Callable[[str, float | None], None] = lambda name, seconds: None,
) -> ExportReport:
    """Trace every tower, prove that they agree with the source, and pack them as a bundle.

    Args:
        source: as `load_source` gives it; its model is put into eval mode.
        output: the folder to make. It appears whole, or not at all.
        tell: called with each step's name when it starts (None) and with its seconds when it ends.
    Raises:
        InputError: an unknown target, an output that is there already, pictures or texts that cannot be used, a size or
            merging that the image tower does not allow.
        SourceError: the model's class has no traceable forward.
        CheckFailed: the source gives NaN or the same for every input, or a figure fell short; says which.
    """
    settings = settings or ExportSettings()
    steps = Steps(tell)
    flavours = flavours_for(settings.targets)
    if settings.tolerance is not None and not settings.tolerance > 0:
        raise InputError(f"--tolerance: expected a number above 0, got {settings.tolerance}.")
    trained_at = source.preprocessing.size if source.preprocessing else None
    if settings.regions:
        source = with_regions(source)
    if settings.resolution is not None:
        source = at_resolution(source, settings.resolution)
    check_wishes(source, settings)
    source.model.eval()
    with new_folder(output, overwrite=settings.overwrite) as scratch:
        if source.text is not None:
            write_file(scratch / TOKENIZER, source.tokenizer_json)
        with steps("run the source on pictures and texts"):
            samples, routings = _samples(source, scratch / TOKENIZER, settings)
            golden = golden_inputs(source, scratch / TOKENIZER)
            proofs = _proofs(source, samples, golden, settings)
        made = Made()
        asked = _asked(samples, golden, routings)
        for kinds in groups_of(source):
            write_towers(made, source, kinds, flavours, scratch, settings, steps, asked)
        _write_golden(source, golden, made.golden, proofs, scratch)
        manifest = _manifest(source, made, settings, trained_at)

        def compare(variant: Variant) -> Parity:
            unsealed = Bundle(scratch, manifest, "")
            with steps(f"compare {variant.id} with the source"):
                if variant.tower in proofs:
                    return proofs[variant.tower].compare(unsealed, variant)
                if variant.axes.head == "routing":
                    routing = routings[variant.tower]
                    return compare_routing(unsealed, variant, samples, routing, threads=settings.threads)
                return parity.compare(
                    unsealed, variant, samples, tolerance=settings.tolerance, threads=settings.threads,
                    lossy=made.lossy.get(variant.id),
                )  # fmt: skip

        parities = [compare(variant) for variant in made.variants]
        trials = [compare(variant) for variant in made.trials]
        for variant in made.trials:
            (scratch / variant.files[0]).unlink()
        measured = tuple(
            replace(v, fidelity=p.fidelity) for v, p in zip(made.variants, parities, strict=True)
        )
        with steps("seal and verify the bundle"):
            # without the odd texts at the end, which nobody asks with
            asking = None if samples.text_rows is None else samples.text_rows[: -len(EXTREME_TEXTS)]
            manifest = write_codecs(scratch, manifest, samples.image_rows, asking)
            bundle = seal(scratch, replace(manifest, variants=measured))
            with _kept(scratch, output, settings.keep_failed):
                parity.require([*parities, *trials], str(output))
                verify(bundle, threads=settings.threads).require()
    bundle = replace(bundle, root=output.resolve())
    return ExportReport(
        bundle, tuple(parities), made.passes, steps.seconds, source.licence.warnings, tuple(made.forms)
    )


def _pictures(settings: ExportSettings) -> list[Path] | list[NDArray[Any]]:
    return pictures_in(settings.images) if settings.images else made_up_pictures()


def _samples(source: Source, tokenizer: Path, settings: ExportSettings) -> tuple[Samples, dict[str, Routing]]:
    texts = (texts_in(settings.texts) if settings.texts else TEXTS) + EXTREME_TEXTS
    pixels = None
    if source.model.image is not None and source.preprocessing is not None:
        pixels = pixels_of(_pictures(settings), source.preprocessing)
    encoded = None if source.text is None else encode(texts, tokenizer, source.text)
    watching = watches([("image", source.model.image), ("text", source.model.text)])
    rows = parity.source_rows(source, pixels, None if encoded is None else encoded.input_ids, watching)
    for kind, own in zip(("image", "text"), rows, strict=True):
        if own is not None:
            check_sane(own, f"{source.spec}: {kind} tower of the source")  # before minutes of tracing
    routings = {kind: watch.routing() for kind, watch in watching.items()}
    near = {kind: routing.near_ties for kind, routing in routings.items()}
    return Samples(pixels, encoded, *rows, near), routings


def _asked(samples: Samples, golden: GoldenInputs, routings: dict[str, Routing]) -> Asked:
    ids = None if samples.texts is None else samples.texts.input_ids
    inputs = {"image": samples.pixels, "text": ids}
    replayed = {"image": golden.pixels, "text": golden.input_ids}
    return Asked(
        {kind: array for kind, array in inputs.items() if array is not None},
        {kind: array for kind, array in replayed.items() if array is not None},
        routings,
    )


def _proofs(
    source: Source, samples: Samples, golden: GoldenInputs, settings: ExportSettings
) -> dict[str, Proof]:
    """By tower, of those beside pictures and texts."""
    texts = None if samples.text_rows is None else samples.text_rows[: -len(EXTREME_TEXTS)]
    material = Material(_pictures(settings), golden.pictures, texts, settings.tolerance, settings.threads)
    return {kind: open_proof(source, kind, material) for kind in towers_of(source) if kind in PROOFS}


def _write_golden(
    source: Source,
    golden: GoldenInputs,
    lossy: dict[str, NDArray[Any]],
    proofs: dict[str, Proof],
    folder: Path,
) -> None:
    rows = parity.source_rows(source, golden.pixels, golden.input_ids)
    others = lossy | {name: array for proof in proofs.values() for name, array in proof.golden().items()}
    content = golden_file(
        golden.pictures, golden.pixels, rows[0], golden.input_ids, rows[1], golden.texts, others
    )
    write_file(folder / GOLDEN, content)


def _manifest(
    source: Source, made: Made, settings: ExportSettings, trained_at: tuple[int, int] | None
) -> Manifest:
    model = source.model
    text = source.text and replace(source.text, tokenizer=TOKENIZER)
    tokenizer = hashlib.sha256(source.tokenizer_json).hexdigest() if text else ""
    return Manifest(
        name=source.name,
        model_id=identity(
            source.digest, source.family, source.preprocessing, text, tokenizer, source.pooling
        ),
        family=source.family,
        embedding_dim=source.embedding_dim,
        activation=source.activation,
        logit_scale=math.exp(float(model.logit_scale.detach())),  # not cut at 100: sigmoid families pass it
        logit_bias=0.0 if model.logit_bias is None else float(model.logit_bias.detach()),
        variants=tuple(made.variants),
        preprocessing=source.preprocessing,
        text=text,
        licence=source.licence,
        files={},
        golden=GOLDEN,
        templates=source.templates,
        detection=source.detection,
        region_preprocessing=_of_regions(source),
        source=source.spec,
        source_digest=source.digest,
        created_by=f"edgeclip {__version__}",
        provenance={
            "revision": settings.revision,
            "targets": list(settings.targets),
            "versions": {
                name: version(name) for name in ("torch", "onnx", "onnxscript", "onnxruntime", "numpy")
            },
            "python": platform.python_version(),
            "passes": {name: [asdict(report) for report in reports] for name, reports in made.passes.items()},
            **_resampled(source, trained_at),
        },
    )


def _of_regions(source: Source) -> Preprocessing | None:
    """How pictures are prepared whose regions are asked, where that differs."""
    if source.preprocessing is None or getattr(source.model, "tokens", None) is None:
        return None
    seen = whole(source.preprocessing)
    return None if seen is source.preprocessing else seen


def _resampled(source: Source, trained_at: tuple[int, int] | None) -> dict[str, Any]:
    """For the provenance: which positions are not as they were trained."""
    if source.preprocessing is None or trained_at is None or source.preprocessing.size == trained_at:
        return {}
    size = {"trained_at": list(trained_at), "exported_at": list(source.preprocessing.size)}
    return {"resolution": {**size, "positions": "bicubic, antialiased"}}


@contextlib.contextmanager
def _kept(scratch: Path, output: Path, keep: bool) -> Iterator[None]:
    """On an error, leave a copy of the sealed bundle at <output>.failed if that was asked for."""
    try:
        yield
    except Exception:
        if keep:
            failed = output.with_name(f"{output.name}.failed")
            shutil.rmtree(failed, ignore_errors=True)
            shutil.copytree(scratch, failed)
            log.warning("the bundle that failed is kept at %s", failed)
        raise
