"""One export with everything beside the plain graphs: bytes, merged tokens, another picture size."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch.nn import functional as F

import edgeclip
from edgeclip.cli import run
from edgeclip.errors import InputError
from edgeclip.export.api import ExportSettings, export_bundle
from edgeclip.export.samples import made_up_pictures, pixels_of
from edgeclip.models.clip import ImageTower
from edgeclip.models.resolution import at_resolution
from edgeclip.models.sources import save_source
from edgeclip.runtime.images import bytes_of
from edgeclip.runtime.verify import verify
from tests.export.sources import IMAGE, clip_source, nano_source, one_tower

SIZE = (48, 64)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Any:
    source: Any = one_tower(clip_source(), "image")
    settings = ExportSettings(("portable",), uint8=True, token_merging=(3,), resolution=SIZE, threads=1)
    return source, export_bundle(source, tmp_path_factory.mktemp("variants") / "out", settings=settings)


def test_plain_variants_come_first_and_each_says_what_it_takes(exported: Any) -> None:
    manifest = exported[1].bundle.manifest
    assert [
        (v.id, v.axes.token_merging, v.inputs[0].dtype, v.inputs[0].shape) for v in manifest.variants
    ] == [
        ("image-fp32-decomposed", 0, "float32", ("N", 3, *SIZE)),
        ("image-fp32-decomposed-uint8", 0, "uint8", ("N", *SIZE, 3)),
        ("image-fp32-decomposed-merge3", 3, "float32", ("N", 3, *SIZE)),
        ("image-fp32-decomposed-merge3-uint8", 3, "uint8", ("N", *SIZE, 3)),
    ]
    plain, of_bytes, merged, merged_of_bytes = (v.fidelity for v in manifest.variants)
    assert max(plain.max_abs, of_bytes.max_abs) < 1e-6
    assert 1e-5 < merged.max_abs < 0.1  # stated, not demanded
    assert merged_of_bytes.relative_distance == pytest.approx(merged.relative_distance, rel=0.1)


def test_the_other_size_and_every_pass_are_in_the_provenance(exported: Any) -> None:
    manifest = exported[1].bundle.manifest
    assert manifest.preprocessing.size == SIZE
    assert manifest.provenance["resolution"] == {
        "trained_at": [32, 32], "exported_at": list(SIZE), "positions": "bicubic, antialiased",
    }  # fmt: skip
    passes = {one["name"]: one for one in manifest.provenance["passes"]["image-fp32-decomposed-uint8"]}
    assert (passes["take_uint8"]["changed"], passes["take_uint8"]["near_misses"]) == (1, [])


def test_a_device_gets_the_same_from_floats_and_from_bytes(exported: Any) -> None:
    source, report = exported
    wide = at_resolution(source, SIZE)
    pictures = [*made_up_pictures(3), np.kron(made_up_pictures(1)[0], np.ones((8, 8, 1), np.uint8))]
    pixels = pixels_of(pictures, wide.preprocessing)
    with torch.no_grad():
        want = F.normalize(wide.model.encode_image(torch.from_numpy(pixels)), dim=-1).numpy()
    names = ["image-fp32-decomposed", "image-fp32-decomposed-uint8"]
    rows = {}
    for name in names:
        with edgeclip.load(report.bundle.root, variants=[name], threads=2, decode="exact") as model:
            np.testing.assert_allclose(model.embed_images(pictures), want, rtol=0, atol=1e-6, err_msg=name)
        with edgeclip.load(report.bundle.root, variants=[name], threads=2) as model:
            # alone, the large one is resized by two threads, a share of the rows each
            rows[name] = np.stack([model.embed_images(pictures[3]), *model.embed_images(pictures[3:] * 2)])
            np.testing.assert_allclose(rows[name][1:], rows[name][:1].repeat(2, 0), atol=1e-6)
            given = pixels if name == names[0] else bytes_of(pixels, wide.preprocessing)
            np.testing.assert_allclose(model.embed_pixels(given), want, rtol=0, atol=1e-6)
            with pytest.raises(
                InputError,
                match=r"expected uint8 \(N, 48, 64, 3\), got float32" if given is not pixels else "got uint8",
            ):
                model.embed_pixels(bytes_of(pixels, wide.preprocessing) if given is pixels else pixels)
    np.testing.assert_allclose(rows[names[0]], rows[names[1]], rtol=0, atol=1e-6)


def test_verify_replays_golden_pictures_through_each(exported: Any) -> None:
    report = exported[1]
    details = {check.name: check.detail for check in verify(report.bundle, threads=1).checks}
    for variant in report.bundle.manifest.variants:
        assert details[variant.id].startswith("2 golden rows"), details[variant.id]
    golden = load_file(report.bundle.root / "golden.safetensors")
    assert np.abs(golden["image_embeddings"] - golden["image_embeddings/merge3"]).max() > 1e-5
    distance = float(details["image-fp32-decomposed-merge3-uint8"].rpartition(" ")[2])
    assert distance < 1e-3, "the golden rows are not those of merged tokens"


@pytest.mark.parametrize(
    ("source", "settings", "message"),
    [
        (clip_source, {"token_merging": (8, 8)}, "--token-merging: expected different numbers of 1 or more, got 8, 8"),
        (clip_source, {"token_merging": (0,)}, "expected different numbers of 1 or more, got 0"),
        (nano_source, {"token_merging": (8,)}, "made-up: --token-merging needs a plain vision transformer"),
        (lambda: replace(clip_source(), preprocessing=None), {"uint8": True}, "--uint8: made-up has no image tower"),
        (lambda: replace(clip_source(), preprocessing=None), {"token_merging": (4,)}, "--token-merging: made-up has no"),
    ],
)  # fmt: skip
def test_wishes_that_cannot_be_had_are_refused_first(
    source: Any, settings: Any, message: str, tmp_path: Path
) -> None:
    steps: list[str] = []
    with pytest.raises(InputError, match=re.escape(message)):
        export_bundle(
            source(), tmp_path / "out", settings=ExportSettings(**settings), tell=lambda name, _: steps.append(name)
        )  # fmt: skip
    assert (steps, list(tmp_path.iterdir())) == ([], [])


def test_flags_reach_the_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = clip_source()
    parts = {
        name: getattr(source, name)
        for name in ("model", "preprocessing", "text", "tokenizer_json", "licence")
    }
    save_source(tmp_path / "model", **parts)
    argv = ["export", str(tmp_path / "model"), "-o", str(tmp_path / "out")]
    for more, message in (
        (["--resolution", "33"], "--resolution 33x33: expected multiples of 8 pixels"),
        (["--resolution", "wide"], "--resolution: expected 256, or 256x320 (height first), got 'wide'"),
        (
            ["--token-merging", "4", "--token-merging", "4"],
            "expected different numbers of 1 or more, got 4, 4",
        ),
    ):
        assert run([*argv, *more]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parity
def test_merging_with_halved_weights_passes_its_gate(tmp_path: Path) -> None:
    settings = ExportSettings(("portable",), store="fp16", token_merging=(3,), threads=1)
    source = one_tower(clip_source(), "image")
    source.model.image = ImageTower(
        replace(IMAGE, blocks=replace(IMAGE.blocks, layers=1), pool="avg"), 24
    ).eval()
    manifest = export_bundle(source, tmp_path / "out", settings=settings).bundle.manifest
    assert [v.id for v in manifest.variants] == ["image-fp16-decomposed", "image-fp16-decomposed-merge3"]
