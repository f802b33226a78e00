"""A manifest that does not fit its detector is refused when the bundle is opened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from edgeclip.bundle import Detection, Manifest
from edgeclip.bundle.detectors import PORTS, check_detector
from edgeclip.errors import BundleError
from tests.runtime.detectors import make_detector


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """With every head, beside an image tower of 32 x 32 pixels."""
    return make_detector(
        tmp_path_factory.mktemp("planted") / "bundle", heads=tuple(PORTS), image=True
    ).manifest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: replace(m, detection=None), "has a detector, but says nothing of its detection"),
        (lambda m: rules(m, threshold=float("nan")), r"detection\.threshold: expected 0 to 1, got nan"),
        (lambda m: rules(m, nms_iou=-1.0), r"detection\.nms_iou: expected 0 to 1, got -1\.0"),
        (lambda m: rules(m, objectness=True), "detector-fp32: expected the ports .*; objectness is missing"),
        (
            lambda m: rules(m, preprocessing=None),
            r"detector-fp32: takes pixels of .*64.*prepared at \(32, 32\)",
        ),
    ],
    ids=range(5),
)
def test_what_the_manifest_says_wrongly(
    change: Callable[[Manifest], Manifest], message: str, manifest: Manifest
) -> None:
    with pytest.raises(BundleError, match=f"a/bundle.json: {message}"):
        check_detector(change(manifest), "a/bundle.json")


@pytest.mark.parametrize("head", PORTS)
def test_a_port_that_is_missing(head: str, manifest: Manifest) -> None:
    variant = manifest.variants_of("detector", head)[0]
    for name in PORTS[head]:
        inputs, outputs = (
            tuple(port for port in ports if port.name != name) for ports in (variant.inputs, variant.outputs)
        )
        lacking = replace(manifest, variants=(replace(variant, inputs=inputs, outputs=outputs),))
        with pytest.raises(BundleError, match=f"{variant.id}: expected the ports .*; {name} is missing"):
            check_detector(lacking, "a/bundle.json")


def rules(manifest: Manifest, **changes: Any) -> Manifest:
    """With other fields of `detection`."""
    return replace(manifest, detection=replace(manifest.detection or Detection(), **changes))
