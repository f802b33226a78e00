"""What the manifest of a bundle with a detector must say, so that nothing is found missing while a picture is looked at."""

from __future__ import annotations

from edgeclip.bundle.manifest import Manifest
from edgeclip.errors import BundleError

_REGIONS = {"boxes", "region_embeddings", "logit_scales", "logit_biases"}
PORTS = {  # head -> ports that its graphs must have
    "embeddings": {"pixels"} | _REGIONS,
    "prompts": {"pixels", "prompt_embeddings", "prompt_mask", "boxes", "logits"},
    "labels": {"pixels", "boxes", "logits"},
}


def check_detector(manifest: Manifest, where: str) -> None:
    """Compare the detector's variants with `detection`; a bundle without one passes.

    Raises:
        BundleError: `detection` is missing or holds a number that is no share, a port is missing, or pixels have another size.
    """
    variants = [variant for variant in manifest.variants if variant.tower == "detector"]
    if not variants:
        return
    facts, spec = manifest.detection, manifest.preprocessing_of("detector")
    if facts is None or spec is None:
        raise BundleError(
            f"{where}: has a detector, but says nothing of its detection or preprocessing. Export the model again."
        )
    for name, share in (("threshold", facts.threshold), ("nms_iou", facts.nms_iou)):
        if not 0 <= share <= 1:
            raise BundleError(f"{where}: detection.{name}: expected 0 to 1, got {share}.")
    for variant in variants:
        ports = {port.name: port.shape for port in (*variant.inputs, *variant.outputs)}
        wanted = PORTS[variant.axes.head] | ({"objectness"} if facts.objectness else set())
        if missing := sorted(wanted - ports.keys()):
            raise BundleError(
                f"{where}: {variant.id}: expected the ports {', '.join(sorted(wanted))}; {missing[0]} is missing."
            )
        sides = [side for side in ports["pixels"][1:] if isinstance(side, int)]
        if len(sides) == 3 and sorted(sides) != sorted((3, *spec.size)):
            raise BundleError(
                f"{where}: {variant.id}: takes pixels of {ports['pixels']}, but pictures are prepared at {spec.size}."
            )
