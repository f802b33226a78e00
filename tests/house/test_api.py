"""The public API: what it names, and that a user's program runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import edgeclip
from tests.house import uses_the_api
from tests.runtime.toy import make_bundle, picture


def test_every_public_name_is_there() -> None:
    assert dir(edgeclip) == sorted(edgeclip.__all__)
    for name in edgeclip.__all__:
        assert getattr(edgeclip, name) is not None
    with pytest.raises(AttributeError, match="module 'edgeclip' has no attribute 'nothing'"):
        edgeclip.nothing  # noqa: B018


def test_every_error_is_in_the_family_and_public() -> None:
    from edgeclip import errors

    family = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert family <= set(edgeclip.__all__)
    assert all(issubclass(getattr(errors, name), errors.EdgeClipError) for name in family)


def test_a_users_program(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "toy")
    good, bad = tmp_path / "a.png", tmp_path / "b.png"
    Image.fromarray(picture(1)).save(good)
    bad.write_bytes(b"")
    with edgeclip.load(bundle) as model:
        one, several = uses_the_api.one_and_several(model, good)
        assert uses_the_api.by_baked_labels(model, good) is None
        frame = picture(1)[:, :, ::-1]
        cosine = float(model.embed_images(good) @ model.embed_texts("a cat"))
        assert uses_the_api.similarity(model, frame, "a cat") == pytest.approx(cosine, abs=1e-6)
    assert [result.label for result in several] == [one.label, one.label]
    names = uses_the_api.name_pictures(bundle.root, [good, bad], ["a cat", "a dog"])
    assert names == {"a.png": one.label, "b.png": f"{bad}: the file is empty. Copy it again."}
    pack = uses_the_api.pack_labels(bundle, tmp_path / "pets.labels")
    np.testing.assert_allclose(np.linalg.norm(pack.vectors, axis=1), 1, atol=1e-6)


def test_a_users_engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx-cu13")
    monkeypatch.setenv("EDGECLIP_CACHE", str(tmp_path / "cache"))
    sizes = uses_the_api.build_ahead(make_bundle(tmp_path / "toy"), tmp_path / "engines")
    assert set(sizes) == {"image-fp32", "text-fp32"}
    assert sum(sizes.values()) == sum(path.stat().st_size for path in (tmp_path / "engines").glob("*.engine"))


def test_the_detecting_part_runs(tmp_path: Path) -> None:
    from tests.runtime.detectors import make_detector, scene

    place = tmp_path / "a.png"
    Image.fromarray(scene({(2, 3): (255, 0, 0)})).save(place)
    with edgeclip.load(make_detector(tmp_path / "planted"), threads=1) as model:
        found = uses_the_api.find_things(model, place, place)
        (drawn,) = uses_the_api.watch(model, str(place))
    assert drawn.shape == (64, 64, 3)
    assert [one.labels for one in found] == [
        ("a face",),
        *[("a face", "an eye", "this cup")] * 2,
        ("a cup",),
        ("this cup",),
    ]


def test_the_part_that_tells_of_experts_runs(tmp_path: Path) -> None:
    from tests.runtime.mixtures import make_mixtures

    place = tmp_path / "a.png"
    Image.fromarray(picture(1)).save(place)
    with edgeclip.load(make_mixtures(tmp_path / "toy", text=True), threads=1) as model:
        balance, patches, texts = uses_the_api.who_takes_what(model, place)
    assert (len(balance), [len(row) for row in patches], texts.samples) == (3, [4] * 4, 1)


def test_the_part_that_asks_regions_runs(tmp_path: Path) -> None:
    from tests.runtime.detectors import scene
    from tests.runtime.regions import make_regions

    place = tmp_path / "a.png"
    Image.fromarray(scene({(2, 3): (255, 0, 0)})).save(place)
    with edgeclip.load(make_regions(tmp_path / "planted"), threads=1) as model:
        vectors, named, again, point = uses_the_api.ask_regions(model, place)
    np.testing.assert_allclose(again.embeddings, vectors, atol=1e-6)
    assert (len(named), len(point.embeddings), again.boxes) == (2, 1, None)
