"""Which of a tower's variants is opened: the caller's wish, then the manifest's order, then where it was proven."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import edgeclip
from edgeclip.bundle import Axes, Bundle, Scores, open_bundle, seal
from edgeclip.cli import run
from edgeclip.runtime.results import to_scores
from tests.runtime.toy import make_bundle, picture


def opened(bundle: Bundle, **wishes: object) -> str:
    with edgeclip.load(bundle, **wishes) as model:  # type: ignore[arg-type]
        model.embed_images(picture(1))
        return model.info().towers["image"]["variant"]


@pytest.fixture
def twice(tmp_path: Path) -> Bundle:
    """The toy with its image tower once more, first in the manifest and said to be int8."""
    made = make_bundle(tmp_path / "toy")
    (image, text), graphs = made.manifest.variants, made.root / "graphs"
    (graphs / "image-int8.onnx").write_bytes((made.root / image.files[0]).read_bytes())
    small = replace(image, id="image-int8", axes=Axes("int8"), files=("graphs/image-int8.onnx",))
    seal(made.root, replace(made.manifest, variants=(small, image, text)))
    return open_bundle(made.root)


def with_image(bundle: Bundle, **changes: object) -> Bundle:
    """The same with the first image variant changed."""
    first, *others = bundle.manifest.variants
    variants = (replace(first, **changes), *others)  # type: ignore[arg-type]
    return replace(bundle, manifest=replace(bundle.manifest, variants=variants))


def test_the_first_that_opens_unless_one_is_named(twice: Bundle) -> None:
    plain = twice.manifest.variants[1].id
    assert opened(twice) == "image-int8"
    assert opened(twice, variants=[plain]) == plain
    assert opened(twice, variants=["image-int8"], precision="fp32") == "image-int8"  # named, so it is meant
    with pytest.raises(edgeclip.EngineError, match=rf"no variant 'image-int4'; it has image-int8, {plain}, "):
        edgeclip.load(twice, variants=["image-int4"])


@pytest.mark.parametrize(
    ("proven", "first"), [((), True), (("onnxruntime-cpu",), True), (("onnxruntime-cuda",), False)]
)
def test_what_was_proven_elsewhere_comes_last(proven: Sequence[str], first: bool, twice: Bundle) -> None:
    assert (opened(with_image(twice, proven=tuple(proven))) == "image-int8") is first


@pytest.mark.parametrize("flags", [("avx2",), ("avx2", "avx_vnni"), ("avx512f",), ("asimd",)])
def test_bytes_that_would_saturate_are_not_opened(
    flags: tuple[str, ...], twice: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bundle that was compressed where sums are wide, on another processor: the next variant runs instead."""
    monkeypatch.setattr("edgeclip.runtime.cpu.cpu_flags", lambda: flags)
    wide = with_image(twice, requires={"byte_sums": "wide"})
    safe = set(flags) & {"avx_vnni", "asimd"}
    assert (opened(wide) == "image-int8") == bool(safe)
    if not safe:
        with pytest.raises(edgeclip.EngineError, match=r"image-int8: its bytes .* would saturate\. Compress"):
            opened(wide, variants=["image-int8"])


def test_scores_follow_from_the_variant_that_runs(twice: Bundle) -> None:
    fitted = with_image(twice, scores=Scores(3.0, 0.5))
    labels = ["a cat", "a dog", "a house"]
    for bundle, scale, bias in ((fitted, 3.0, 0.5), (twice, 10.0, 0.0)):
        with edgeclip.load(bundle) as model:
            cosines = model.embed_images(picture(1))[None] @ model.make_labels(labels).vectors.T
            found = dict(model.classify(picture(1), labels).ranked())
        want = to_scores(cosines, scale, bias, "softmax")[0]
        np.testing.assert_allclose([found[label] for label in labels], want, atol=1e-6)


def test_the_command_line_names_one(
    twice: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = twice.manifest.variants[1].id
    Image.fromarray(picture(1)).save(tmp_path / "a.png")
    line = ["classify", str(tmp_path / "a.png"), "--labels", "a cat,a dog", "-b", str(twice.root)]
    for wanted, said in (([], "image-int8 on"), (["--variant", plain], f"{plain} on")):
        assert run([*line, *wanted]) == 0
        assert said in capsys.readouterr().out
    assert run([*line, "--variant", "image-int4"]) == 2
    assert "no variant 'image-int4'; it has image-int8" in capsys.readouterr().err
