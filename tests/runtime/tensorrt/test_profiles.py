"""Every size that the runtime may ask for lies within a profile."""

from __future__ import annotations

from dataclasses import replace

import pytest

import edgeclip
from edgeclip.bundle import Axes, Bundle, Port, Variant
from edgeclip.errors import EngineError, InputError
from edgeclip.runtime.regions import AT_ONCE
from edgeclip.runtime.tensorrt.profiles import BOXES, check_profiles, parse_batch, profiles_for


@pytest.mark.parametrize(
    ("text", "batch"),
    [("1:8:32", (1, 8, 32)), ("1:32", (1, 32, 32)), ("8", (8, 8, 8)), (" 2:2:2 ", (2, 2, 2))],
)
def test_a_batch_is_read(text: str, batch: tuple[int, int, int]) -> None:
    assert parse_batch(text) == batch


@pytest.mark.parametrize(
    "text", ["", "0", "8:4", "1:8:4", "8:1:32", "1:2:3:4", "a", "1:", "-1", "1.5", "1:8:99999999"]
)
def test_a_batch_that_makes_no_sense(text: str) -> None:
    with pytest.raises(InputError, match="expected least:best:most such as 1:8:32"):
        parse_batch(text)


def test_towers_of_a_bundle() -> None:
    manifest = edgeclip.open_bundle("nano").manifest
    image, text = manifest.variants_of("image")[0], manifest.variants_of("text")[0]
    assert profiles_for(image, manifest, [(1, 8, 32), (64, 64, 64)]) == (
        {"N": (1, 8, 32)},
        {"N": (64, 64, 64)},
    )
    assert manifest.text is not None
    longest = manifest.text.context_length
    assert profiles_for(text, manifest, [(1, 8, 32)]) == (
        {"N": (1, 8, 32), "L": (1, min(16, longest), longest)},
    )
    for variant in manifest.variants:
        check_profiles(variant, profiles_for(variant, manifest, [(1, 8, 32)]))


def test_a_head_takes_the_prompts_that_prove_it(toy: Bundle) -> None:
    """As many as an embedding has columns, which are 1,152 in SigLIP SO400M."""
    image = toy.manifest.variants_of("image")[0]
    head = replace(image, inputs=(*image.inputs, Port("prompt_embeddings", "float32", ("B", "P", 1152))))
    for dim, most in ((8, 1024), (1152, 1152)):
        (profile,) = profiles_for(head, replace(toy.manifest, embedding_dim=dim), [(1, 8, 32)])
        assert profile == {"N": (1, 8, 32), "B": (1, 1, 32), "P": (1, 64, most)}


def test_boxes_of_a_picture(toy: Bundle) -> None:
    boxes = Variant("r", "regions", Axes(), ("a",), (Port("boxes", "float32", ("N", "R", 4)),), ())
    (profile,) = profiles_for(boxes, toy.manifest, [(1, 1, 2)])
    assert profile == {"N": (1, 1, 2), "R": BOXES}
    assert BOXES[2] == AT_ONCE  # what the runtime asks for in one call


def test_fixed_and_unknown_sizes(toy: Bundle) -> None:
    image = toy.manifest.variants_of("image")[0]
    port = image.inputs[0]
    fixed = replace(image, inputs=(replace(port, shape=(1, *port.shape[1:])),))
    assert profiles_for(fixed, toy.manifest, [(1, 8, 32)]) == ()
    check_profiles(fixed, ())
    with pytest.raises(EngineError, match=r"image-fp32: its batch is open\. Say for which"):
        profiles_for(image, toy.manifest, [])
    odd = replace(image, inputs=(replace(port, shape=("N", 3, "H", "H")),))
    with pytest.raises(EngineError, match="nothing is known of its size 'H'"):
        profiles_for(odd, toy.manifest, [(1, 8, 32)])
