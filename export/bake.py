"""Heads on an image tower or a detector: labels baked in, so that pixels give scores; or prompts as an input, so that labels may change.

    bake(bundle, Path("shop"), pack, prompts=True)

A head is a few nodes behind the tower's `embeddings`. All graphs of a tower share their weights in one file, so a second or third
head costs its label matrix.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeclip.bundle import Bundle, Scores, Variant
from edgeclip.errors import CheckFailed, InputError
from edgeclip.export.derive import NewVariant, derive_bundle, read_graph
from edgeclip.export.heads import add_labels, add_prompts, detect_labels, detect_prompts
from edgeclip.export.observe import session
from edgeclip.export.samples import made_up_pictures, pixels_of
from edgeclip.runtime.detection_fidelity import Seen, logit_shares
from edgeclip.runtime.images import Preprocessor
from edgeclip.runtime.labels import LabelPack

Array = NDArray[Any]

# Of a cosine: float32 sums of some hundred products. Labels in another order, a scale left out or a bias twice move 1e-3 and more.
MAX_COSINE = 2e-6
PICTURES = 3  # on which a head is compared: more than one, and no batch of anything else


@dataclass(frozen=True)
class Baked:
    """What was made."""

    bundle: Bundle
    variants: tuple[str, ...]  # ids of the heads
    labels: int  # baked in
    worst: (
        float  # largest difference of a cosine behind a head's logits from the embeddings in the same graph
    )


def bake(
    bundle: Bundle,
    output: Path,
    pack: LabelPack | None,
    *,
    prompts: bool = True,
    places: int | None = None,
    variants: Sequence[str] = (),
    drop_text: bool = False,
    only_heads: bool = False,
    overwrite: bool = False,
    threads: int | None = None,
) -> Baked:
    """Write a bundle whose image tower, or detector, also has a head for these labels, and one that takes prompts.

    Heads that the tower had are replaced; the other towers stay.

    Args:
        pack: what to bake in; None: only the head that takes prompts.
        prompts: also make the head that takes prompts.
        places: how many prompts that head takes, fewer being padded; None: any number.
        variants: ids of the variants to build on; (): the preferred one of the image tower, or of the detector where there is none.
        drop_text: leave out the text tower and its tokenizer.
        only_heads: leave out the variants of that tower that give embeddings.
    Raises:
        InputError: no such variant, nothing to make, or a pack of another model.
        CheckFailed: a head does not give what the embeddings in the same graph say.
    """
    bases = _bases(bundle, variants)
    if pack is None and not prompts:
        raise InputError("nothing to bake: pass labels, or ask for the head that takes prompts.")
    files, label_file = {}, ""
    if pack is not None:
        pack.require(bundle.manifest.model_id, bundle.manifest.embedding_dim)
        content = pack.to_bytes()
        label_file = f"labels/{hashlib.sha256(content).hexdigest()[:12]}.labels"
        files[label_file] = content
    made: list[NewVariant] = []
    for base in bases:
        scores = bundle.manifest.scores_of(base)
        if pack is not None:
            made.append(_with_labels(bundle, base, pack, scores, label_file))
        if prompts:
            made.append(_with_prompts(bundle, base, scores, places))
    prove = _prove_detector if bases[0].tower == "detector" else _prove
    worst = max(prove(bundle, one, pack, threads) for one in made)
    # variants beside the heads are written again: so they share the heads' weights file
    shared = [v for v in bundle.manifest.variants if _stays(v, bases, only_heads) and _shares(v, bases)]
    again = [NewVariant(variant, read_graph(bundle, variant)) for variant in shared]
    derived = derive_bundle(
        bundle,
        output,
        [*again, *made],
        keep=lambda v: (
            _stays(v, bases, only_heads) and v not in shared and not (drop_text and v.tower == "text")
        ),
        order=lambda found: _ordered(bundle, found, bases),
        files=files,
        changes={"text": None} if drop_text else None,
        record={
            "step": "bake",
            "from": bundle.digest,
            "heads": [one.variant.id for one in made],
            "labels": len(pack.labels) if pack else 0,
            "places": places,
            "max_cosine_difference": worst,
        },
        overwrite=overwrite,
        threads=threads,
    )
    return Baked(derived, tuple(one.variant.id for one in made), len(pack.labels) if pack else 0, worst)


def _with_labels(
    bundle: Bundle, base: Variant, pack: LabelPack, scores: Scores, label_file: str
) -> NewVariant:
    model = read_graph(bundle, base)
    if base.tower == "detector":
        outputs = detect_labels(model, pack.vectors)
    else:
        outputs = add_labels(model, pack.vectors, scores, bundle.manifest.activation)
    return NewVariant(replace(_headed(base, "labels"), outputs=outputs, labels=label_file), model)


def _with_prompts(bundle: Bundle, base: Variant, scores: Scores, places: int | None) -> NewVariant:
    model, dim = read_graph(bundle, base), bundle.manifest.embedding_dim
    if base.tower == "detector":
        inputs, outputs = detect_prompts(model, dim, places)
    else:
        inputs, outputs = add_prompts(model, dim, scores, places)
    variant = _headed(base, "prompts")
    return NewVariant(replace(variant, inputs=(*variant.inputs, *inputs), outputs=outputs), model)


def _headed(base: Variant, head: Literal["labels", "prompts"]) -> Variant:
    """What stays of a variant with a head: also its fidelity, which is that of the rows inside."""
    axes = replace(base.axes, head=head)
    return replace(base, id=axes.name(base.tower), axes=axes)


def _bases(bundle: Bundle, wanted: Sequence[str]) -> list[Variant]:
    """Variants to build on, of one tower."""
    every = [v for tower in ("image", "detector") for v in bundle.manifest.variants_of(tower)]
    found = {variant.id: variant for variant in every}
    if not found:
        raise InputError(
            f"{bundle.root}: has no image tower or detector that gives embeddings. Bake from the bundle that it was made of."
        )
    if unknown := [name for name in wanted if name not in found]:
        raise InputError(f"{bundle.root}: no variant {unknown[0]!r} to bake on; it has {', '.join(found)}.")
    bases = [found[name] for name in dict.fromkeys(wanted)] or every[:1]
    if len({base.tower for base in bases}) > 1:
        raise InputError(
            f"{bundle.root}: {bases[0].id} and {bases[-1].id} are of different towers. Bake one tower, then the other."
        )
    return bases


def _shares(variant: Variant, bases: Sequence[Variant]) -> bool:
    """Whether a variant is one of the bases or reads the same weights file."""
    return any(variant.id == base.id or set(variant.files) & set(base.files) for base in bases)


def _stays(variant: Variant, bases: Sequence[Variant], only_heads: bool) -> bool:
    """Whether an old variant is in the new bundle: heads of the tower are not, nor its embeddings if only heads are wanted."""
    return variant.tower != bases[0].tower or (variant.axes.head == "embeddings" and not only_heads)


def _ordered(bundle: Bundle, found: Sequence[Variant], bases: Sequence[Variant]) -> list[Variant]:
    """As they stood before, heads of the tower last."""
    place = {variant.id: i for i, variant in enumerate(bundle.manifest.variants)}
    return sorted(found, key=lambda v: place[v.id] if _stays(v, bases, only_heads=False) else len(place))


def _prove(bundle: Bundle, made: NewVariant, pack: LabelPack | None, threads: int | None) -> float:
    """Largest difference between a head's cosines and those of the embeddings in the same graph, in float64.

    Raises:
        CheckFailed: it is too large.
    """
    model, scores = made.model.clone(), bundle.manifest.scores_of(made.variant)
    if made.variant.axes.head == "labels":
        assert pack is not None
        (reader,), sets = model.graph.initializers["head.labels"].consumers(), [pack.vectors[None]]
    else:
        reader = model.graph.initializers["head.axis"].consumers()[0]
        sets = _prompt_sets(made.variant, bundle.manifest.embedding_dim)
    rows = reader.inputs[0]
    assert rows is not None
    model.graph.outputs.append(rows)
    opened, pixels, worst = session(model, threads=threads), _pixels(bundle, made.variant), 0.0
    for vectors in sets:
        feed = {"pixels": pixels}
        if made.variant.axes.head == "prompts":
            feed |= {"prompt_embeddings": vectors, "prompt_mask": np.ones(vectors.shape[:2], bool)}
        logits, found = (array.astype(np.float64) for array in opened.run(["logits", rows.name], feed))
        wanted = (found[:, None] * vectors.astype(np.float64)).sum(axis=2)
        worst = max(worst, float(np.abs((logits - scores.logit_bias) / scores.logit_scale - wanted).max()))
    return _held(made, worst)


def _prove_detector(bundle: Bundle, made: NewVariant, pack: LabelPack | None, threads: int | None) -> float:
    """The same of a detector: its logits, as shares of themselves, against the embeddings, scales and biases of its base.

    Raises:
        CheckFailed: they differ too much, or it gives other boxes.
    """
    id_ = replace(made.variant.axes, head="embeddings").name("detector")
    (base,) = (variant for variant in bundle.manifest.variants if variant.id == id_)
    pixels, worst = _pixels(bundle, made.variant), 0.0
    said = _run(read_graph(bundle, base), {"pixels": pixels}, threads)
    sets: Sequence[Array] = [pack.vectors[None]] if made.variant.axes.head == "labels" and pack else []
    for vectors in sets or _prompt_sets(made.variant, bundle.manifest.embedding_dim):
        feed = {"pixels": pixels}
        if not sets:
            feed |= {"prompt_embeddings": vectors, "prompt_mask": np.ones(vectors.shape[:2], bool)}
        found = _run(made.model, feed, threads)
        if np.abs(found["boxes"] - said["boxes"]).max() > MAX_COSINE:
            raise CheckFailed(f"{made.variant.id}: gives other boxes than {base.id}. Please report it.")
        for i in range(len(pixels)):
            one = Seen.of({name: array[i : i + 1] for name, array in said.items()})
            shares = logit_shares(one, found["logits"][i : i + 1], vectors[min(i, len(vectors) - 1)])
            worst = max(worst, float(np.abs(shares[0] - shares[1]).max()))
    return _held(made, worst)


def _run(model: ir.Model, feed: dict[str, Array], threads: int | None) -> dict[str, Array]:
    opened = session(model, threads=threads)
    names = [node.name for node in opened.get_outputs()]
    return dict(zip(names, opened.run(names, feed), strict=True))


def _held(made: NewVariant, worst: float) -> float:
    if not worst <= MAX_COSINE:
        raise CheckFailed(
            f"{made.variant.id}: its cosines are {worst:.1e} from those of its embeddings, {MAX_COSINE:.0e} is allowed. "
            "Please report it."
        )
    return worst


def _prompt_sets(variant: Variant, dim: int) -> list[Array]:
    """Unit rows: one set for all pictures, and one for each."""
    size = variant.inputs[1].shape[1]
    sets = np.random.default_rng(0).normal(size=(PICTURES, size if isinstance(size, int) else 7, dim))
    sets = (sets / np.linalg.norm(sets, axis=2, keepdims=True)).astype(np.float32)
    return [sets[:1], sets]


def _pixels(bundle: Bundle, variant: Variant) -> Array:
    """A few made-up pictures, as the variant takes them."""
    spec = bundle.manifest.preprocessing_of(variant.tower)
    assert spec is not None
    pictures, preprocessor = made_up_pictures(PICTURES), Preprocessor(spec, decode="exact")
    if variant.inputs[0].dtype == "uint8":
        return np.stack([preprocessor.uint8(picture) for picture in pictures])
    return pixels_of(pictures, spec)
