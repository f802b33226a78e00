"""OWLv2's pictures: equal to transformers' on every shape, and boxes that land where their object does, whatever the layout."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edgeclip.bundle import Preprocessing
from edgeclip.errors import BundleError
from edgeclip.runtime.images import Preprocessor, bytes_of, preprocess
from edgeclip.runtime.images.geometry import to_input, to_picture
from tests.runtime.test_images import CLIP, MEAN, PAD, SHAPES, SIGLIP, STD, levels, photograph_file
from tests.runtime.toy import picture

OWL = Preprocessing((96, 96), "pad", "gaussian", MEAN, STD, pad_anchor="top_left", pad_first=True)
# Noise of float32 is 1e-4 levels. A kernel cut at 3 sigma instead of 4 differs by 0.02, borders that are repeated instead of
# mirrored by 4, pixels rounded to bytes by 0.5.
NOISE = 2e-3


def transformers(side: int) -> Any:
    import tests.torchvision_shim  # noqa: F401

    module = pytest.importorskip("transformers.models.owlv2.image_processing_pil_owlv2")
    processor = module.Owlv2ImageProcessorPil(size={"height": side, "width": side})
    return lambda array: processor(images=array, return_tensors="np", input_data_format="channels_last")[
        "pixel_values"
    ][0]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_transformers(shape: tuple[int, int]) -> None:
    array = picture(6, *shape)
    assert levels(preprocess(array, OWL), transformers(96)(array), OWL).max() <= NOISE


@pytest.mark.parity
@pytest.mark.parametrize("shape", [(640, 480), (427, 640), (31, 1999), (1920, 1080), (4000, 3000)], ids=str)
@pytest.mark.parametrize("side", [960, 1008])
def test_equals_transformers_at_its_own_sizes(side: int, shape: tuple[int, int]) -> None:
    array, spec = picture(6, *shape), replace(OWL, size=(side, side))
    assert levels(preprocess(array, spec), transformers(side)(array), spec).max() <= NOISE


def scikit(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """What scikit-image's resize does with anti_aliasing, by scipy: (H, W, 3) levels."""
    ndimage = pytest.importorskip("scipy.ndimage")
    factors = np.array(array.shape[:2]) / size
    sigma = (*np.maximum(0, (factors - 1) / 2), 0)
    blurred = ndimage.gaussian_filter(array.astype(np.float64), sigma, mode="mirror")
    zoom = (*(1 / factors), 1)
    return np.asarray(ndimage.zoom(blurred, zoom, order=1, mode="mirror", grid_mode=True))


@pytest.mark.parametrize("anchor", ["top_left", "center"])
def test_padding_of_any_colour_at_either_place_on_a_tower_that_is_not_square(anchor: Any) -> None:
    spec = replace(OWL, size=(60, 100), pad_color=(9, 99, 199), pad_anchor=anchor)
    for width, height in ((161, 120), (77, 150), (40, 30), (300, 1)):
        array, side = picture(2, width, height), max(width, height)
        x, y = (0, 0) if anchor == "top_left" else ((side - width) // 2, (side - height) // 2)
        canvas = np.full((side, side, 3), spec.pad_color, np.uint8)
        canvas[y : y + height, x : x + width] = array
        want = (scikit(canvas, spec.size) / 255 - MEAN) / STD
        assert levels(preprocess(array, spec), want.transpose(2, 0, 1), spec).max() <= NOISE


def test_other_layouts_are_blurred_too() -> None:
    array = picture(2, 301, 200)
    squash = Preprocessing((64, 80), "squash", "gaussian", (0.0,) * 3, (1 / 255,) * 3)
    np.testing.assert_allclose(
        preprocess(array, squash).transpose(1, 2, 0), scikit(array, (64, 80)), rtol=0, atol=NOISE
    )
    crop = replace(
        squash, mode="shortest_crop", size=(64, 64)
    )  # 96 x 64, of which 16 columns go on either side
    np.testing.assert_allclose(
        preprocess(array, crop).transpose(1, 2, 0), scikit(array, (64, 96))[:, 16:80], rtol=0, atol=NOISE
    )
    pad = replace(crop, mode="pad", pad_color=(7, 8, 9))  # 64 x 42, 11 rows above and below
    found = preprocess(array, pad).transpose(1, 2, 0)
    np.testing.assert_allclose(found[11:53], scikit(array, (42, 64)), rtol=0, atol=NOISE)
    np.testing.assert_allclose(found[[0, 10, 53, 63]], np.tile([7, 8, 9], (4, 64, 1)), rtol=0, atol=NOISE)


@pytest.mark.parametrize("shape", [(1600, 1200), (1501, 1003), (999, 1667)], ids=str)
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_fast_decoding_stays_within_tolerance(shape: tuple[int, int], kind: str) -> None:
    data, spec = photograph_file(*shape, kind), replace(OWL, size=(112, 112))
    fast, exact = (preprocess(data, spec, decode=how) for how in ("fast", "exact"))  # type: ignore[arg-type]
    differences = levels(fast, exact, spec)
    assert 0 < differences.mean() <= 0.3, "0.5 is allowed; blur that the reduction did already costs 0.2"
    assert np.percentile(differences, 99) <= 2
    assert differences.max() <= 6, "a border that is off shows as tens of levels in a few rows"


@pytest.mark.parametrize("parts", [2, 5])
def test_rows_shared_between_threads_are_the_same(parts: int) -> None:
    data = photograph_file(999, 1667, "JPEG")
    found, want = np.full((3, 96, 96), np.nan, np.float32), np.empty((3, 96, 96), np.float32)
    with ThreadPoolExecutor(2) as helpers:
        Preprocessor(OWL).into(data, found, helpers=helpers, parts=parts)
    assert Preprocessor(OWL).into(data, want) == (1667, 999)
    assert levels(found, want, OWL).max() <= NOISE


def test_bytes_lose_half_a_level() -> None:
    array = picture(6, 333, 500)
    exact = preprocess(array, OWL)
    found = Preprocessor(OWL, decode="exact").uint8(array)
    back = ((found / 255 - MEAN) / STD).transpose(2, 0, 1)
    assert 0.4 < levels(exact, back, OWL).max() <= 0.5 + NOISE
    np.testing.assert_array_equal(bytes_of(exact[None], OWL)[0], found)


def test_a_ribbon_costs_what_its_pixels_cost() -> None:
    """Padded, it would hold 10 GB."""
    for width, height in ((60_000, 1), (1, 60_000)):
        array = np.full((height, width, 3), 200, np.uint8)
        found = Preprocessor(OWL).uint8(array)
        assert found.shape == (96, 96, 3)
        assert found.max() <= 1, "one row in 625 is hardly anything"


def test_padding_first_is_for_blurred_pictures() -> None:
    with pytest.raises(BundleError, match='pad_first expects resample "gaussian", the bundle says "bicubic"'):
        Preprocessor(replace(OWL, resample="bicubic"))


LAYOUTS = {
    "owlv2": OWL,
    "owlv2-centred": replace(OWL, pad_anchor="center"),
    "blurred-crop": replace(OWL, mode="shortest_crop"),
    "squash": replace(SIGLIP, size=(90, 110)),
    "crop": replace(CLIP, size=(96, 96), resize=110),
    "crop-with-a-border": replace(CLIP, size=(96, 96), resize=60),
    "pad": replace(PAD, size=(96, 96)),
    "pad-to-oblong": replace(PAD, size=(100, 60)),
    "pad-top-left": replace(PAD, size=(96, 96), pad_anchor="top_left"),
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("decode", ["exact", "fast"])
def test_a_marked_rectangle_is_found_where_its_box_is_mapped(name: str, decode: Any) -> None:
    spec = replace(LAYOUTS[name], mean=(0.0,) * 3, std=(1 / 255,) * 3, pad_color=(0, 0, 0))
    rng = np.random.default_rng(7)
    for _ in range(12):
        width, height = rng.integers(80, 700, 2).tolist()
        middle = np.array([width, height] * 2) / 2
        # in the middle, so that a crop holds it
        box = (middle + rng.uniform(0.1, 0.3, 4) * min(width, height) * [-1, -1, 1, 1]).round()
        left, top, right, bottom = box.astype(int)
        array = np.zeros((height, width, 3), np.uint8)
        array[top:bottom, left:right] = 255
        found = preprocess(array, spec, decode=decode)[0]
        on_input = to_input(box.astype(np.float32), spec, (height, width))
        want = on_input * np.tile(spec.size[::-1], 2)
        columns, rows = found.max(axis=0) / 255, found.max(axis=1) / 255
        got = [
            _rise(columns),
            _rise(rows),
            len(columns) - _rise(columns[::-1]),
            len(rows) - _rise(rows[::-1]),
        ]
        assert np.abs(got - want).max() < 0.6, (
            name,
            width,
            height,
        )  # pixels; a padding left out is off by tens
        np.testing.assert_allclose(to_picture(on_input, spec, (height, width)), box, rtol=0, atol=1e-3)


def _rise(profile: np.ndarray) -> float:
    """Where a profile first passes one half, in pixels from its border."""
    i = int(np.argmax(profile > 0.5))
    before = profile[i - 1] if i else 0.0
    return i + 0.5 - float((profile[i] - 0.5) / (profile[i] - before))


def test_boxes_of_owlv2_are_relative_to_the_longer_side() -> None:
    """By hand: transformers scales by max(height, width), and so far beyond the picture a box may reach."""
    boxes = np.array([[0, 0, 1, 1], [0.25, 0.5, 0.5, 0.75]], np.float32)
    np.testing.assert_allclose(
        to_picture(boxes, OWL, (300, 400)), [[0, 0, 400, 400], [100, 200, 200, 300]], rtol=1e-6
    )
    np.testing.assert_allclose(
        to_picture(boxes, SIGLIP, (300, 400)), [[0, 0, 400, 300], [100, 150, 200, 225]], rtol=1e-6
    )


def test_the_corner_is_where_a_picture_stands_that_is_padded_afterwards() -> None:
    found = Preprocessor(LAYOUTS["pad-top-left"]).uint8(np.full((100, 200, 3), 255, np.uint8))
    assert found[:48].min() == 255
    np.testing.assert_array_equal(found[48:], np.broadcast_to(PAD.pad_color, (48, 96, 3)))
