"""The heads of a compressed detector: as its float variants have them, behind the compressed graph."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from edgeclip.bundle import Bundle, Variant
from edgeclip.export.derive import NewVariant
from edgeclip.export.heads import detect_labels, detect_prompts
from edgeclip.runtime.labels import LabelPack


def heads_alike(bundle: Bundle, base: Variant, made: NewVariant) -> Iterator[NewVariant]:
    """For each head that the bundle has of a float variant, the same on what was made of it, with which it shares the weights.

    What it states is the fidelity of the regions inside: logits follow from them in fp32.
    """
    for variant in bundle.manifest.variants:
        if variant.tower != "detector" or variant.axes.head == "embeddings":
            continue
        if replace(variant.axes, head="embeddings") != base.axes:
            continue
        model, axes = made.model.clone(), replace(made.variant.axes, head=variant.axes.head)
        if variant.axes.head == "labels":
            detect_labels(model, LabelPack.open(bundle.path(variant.labels)).vectors)
        else:
            places = variant.inputs[1].shape[1]
            detect_prompts(model, bundle.manifest.embedding_dim, places if isinstance(places, int) else None)
        headed = replace(made.variant, id=axes.name("detector"), axes=axes, inputs=variant.inputs)
        yield NewVariant(replace(headed, outputs=variant.outputs, labels=variant.labels), model)
