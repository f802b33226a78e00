"""`bake`, what `classify` then does without labels, and `labels fit`; every wrong wish in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import edgeclip as library
from edgeclip.evaluate.calibration import fit_thresholds
from tests.cli.conftest import Edgeclip, save_picture
from tests.runtime.toy import make_bundle, picture

LABELS = ["a cat", "a dog", "a bicycle"]
BAKE = ["--labels", ",".join(LABELS)]


def test_bake_then_classify_without_labels(
    photos: Path, toy: Path, tmp_path: Path, edgeclip: Edgeclip
) -> None:
    out = tmp_path / "shop"
    made = edgeclip("bake", toy, "-o", out, *BAKE, "--drop-text", "--only-heads", "--json").record
    size = sum(
        path.stat().st_size for path in out.rglob("*") if path.is_file() and path.name != "bundle.json"
    )
    assert made.pop("max_cosine_difference") < 2e-6
    variants = ["image-fp32-labels", "image-fp32-prompts"]
    assert made == {"path": str(out), "variants": variants, "labels": 3, "bytes": size}
    baked = edgeclip("classify", photos, "-b", out, "--json")
    plain = edgeclip("classify", photos, "-b", toy, *BAKE, "--json")
    assert [r["labels"] for r in baked.records] == [r["labels"] for r in plain.records]
    for found, want in zip(baked.records, plain.records, strict=True):
        assert found["scores"] == pytest.approx(want["scores"], abs=1e-6)
    assert "image-fp32-labels on onnxruntime-cpu" in edgeclip("classify", photos / "a.png", "-b", out).out
    assert "3 labels baked in" in edgeclip("inspect", out).out
    assert edgeclip("verify", out).code == 0
    said = edgeclip("classify", photos / "a.png", "-b", out, *BAKE)
    assert said.code == 2
    assert "this bundle has no text tower. Use a label pack" in said.line


def test_open_bundles_take_packs_and_labels(
    photos: Path, toy: Path, tmp_path: Path, edgeclip: Edgeclip
) -> None:
    out, pack = tmp_path / "any", tmp_path / "pets.labels"
    edgeclip("labels", "make", *BAKE, "-b", toy, "-o", pack)
    said = edgeclip("bake", toy, "-o", out, "--open", 3, "--only-heads")
    assert said.code == 0
    assert said.err.startswith(f"edgeclip: {out}: ") or said.err.startswith(
        f"{out}: 0 labels, image-fp32-prompts, "
    )
    want = edgeclip("classify", photos, "-b", toy, *BAKE, "--json").records
    for given in (BAKE, ["--pack", pack]):
        found = edgeclip("classify", photos, "-b", out, *given, "--json").records
        assert [r["labels"] for r in found] == [r["labels"] for r in want]
    said = edgeclip("classify", photos / "a.png", "-b", out, "--labels", "a,b,c,d")
    assert "labels: expected at most 3, got 4" in said.line
    assert "no labels. Pass --labels" in edgeclip("classify", photos / "a.png", "-b", out).line


def test_refused_bakes_are_one_line(toy: Path, tmp_path: Path, edgeclip: Edgeclip) -> None:
    pack, lean = tmp_path / "pets.labels", make_bundle(tmp_path / "lean", text=False).root
    other = make_bundle(tmp_path / "other", model_id="2" * 64).root
    texts = make_bundle(tmp_path / "texts", image=False).root
    edgeclip("labels", "make", "--label", "a cat", "-b", other, "-o", pack)
    before = sorted(tmp_path.rglob("*"))
    for bundle, options, message in (
        (toy, [], "no labels. Pass --labels 'a cat,a dog'"),
        (toy, ["--labels", "a,a"], "labels[1]: 'a' is also labels[0]"),
        (toy, ["--label", "a", "--template", "photo"], "templates: 'photo' has no {}"),
        (toy, ["--open", 4, "--template", "a {}"], "no labels. Pass --labels"),
        (toy, ["--label", "a", "--pack", pack], "--pack brings its own labels and templates; drop"),
        (
            toy,
            ["--label", "a", "--open", 4, "--closed"],
            "--open asks for what --closed leaves out; drop one of them.",
        ),
        (toy, ["--open", 0], "Invalid value for '--open': 0 is not in the range"),
        (
            toy,
            ["--pack", pack],
            "this label pack was made by model 222222222222..., the bundle is 111111111111",
        ),
        (
            toy,
            ["--label", "a", "--variant", "x"],
            f"{toy}: no variant 'x' to bake on; it has image-fp32.",
        ),
        (
            toy,
            ["--label", "a", "-o", toy],
            f"{toy}: already exists. Choose another place, or pass --overwrite",
        ),
        (
            toy,
            ["--label", "a", "-o", toy, "--overwrite"],
            f"{toy}: is the bundle itself, and a bundle never changes.",
        ),
        (lean, ["--label", "a"], f"{lean}: this bundle has no text tower. Use a label pack"),
        (texts, ["--label", "a"], f"{texts}: has no image tower or detector that gives embeddings."),
    ):
        said = edgeclip("bake", bundle, "-o", tmp_path / "out", *options)
        assert said.code == 2
        assert said.line.startswith(f"edgeclip: {message}"), said.line
    assert sorted(tmp_path.rglob("*")) == before, "nothing is left behind"


@pytest.fixture
def sorted_pictures(toy: Path, tmp_path: Path) -> Path:
    """A folder for each label, with pictures for which the toy model gives it; every fifth is put elsewhere."""
    folder = tmp_path / "pictures"
    with library.load(toy) as model:
        for i, result in enumerate(model.classify([picture(seed) for seed in range(60)], LABELS)):
            number = (result.label_index + (i % 5 == 0)) % 3
            save_picture(folder / LABELS[number].replace(" ", "_") / f"{i:02}.png", i)
    return folder


def test_fit(toy: Path, tmp_path: Path, sorted_pictures: Path, edgeclip: Edgeclip) -> None:
    pack, out = tmp_path / "pets.labels", tmp_path / "sure.labels"
    edgeclip("labels", "make", *BAKE, "-b", toy, "-o", pack)
    broken = sorted_pictures / "a_cat" / "zz.png"
    broken.write_bytes(b"no picture")
    said = edgeclip("labels", "fit", pack, "--images", sorted_pictures, "-b", toy, "-o", out, "--json")
    assert said.code == 0
    assert f"skipped: {broken}" in said.err
    made = library.LabelPack.open(out)
    rows, right = [], []
    with library.load(toy) as model:
        for i, label in enumerate(LABELS):
            for path in sorted((sorted_pictures / label.replace(" ", "_")).glob("[0-9]*.png"))[::2]:
                scores = dict(model.classify(path, LABELS).ranked())
                rows.append([scores[name] for name in LABELS])
                right.append(i)
    want = fit_thresholds(np.array(rows), np.array(right))
    np.testing.assert_allclose(made.thresholds or (), want, rtol=1e-5)
    record = said.record
    assert [one["threshold"] for one in record["labels"]] == pytest.approx(list(want), rel=1e-5)
    assert sum(one["fitted_on"] + one["pictures"] for one in record["labels"]) == 60
    assert 0.5 < record["right_before"] < 1
    table = edgeclip("labels", "fit", pack, "--images", sorted_pictures, "-b", toy, "-o", out).out
    assert "a bicycle" in table
    assert "Calibration error of the scores" in table
    strict = edgeclip("labels", "fit", pack, "--images", sorted_pictures, "-b", toy, "-o", out, "--strict")
    assert strict.code == 1


def test_refused_fits_are_one_line(toy: Path, tmp_path: Path, edgeclip: Edgeclip) -> None:
    pack, folder = tmp_path / "pets.labels", tmp_path / "pictures"
    edgeclip("labels", "make", *BAKE, "-b", toy, "-o", pack)
    asked = ["labels", "fit", pack, "-b", toy, "-o", tmp_path / "out.labels", "--images", folder]
    assert edgeclip(*asked).line.startswith(f"edgeclip: {folder}: no such folder.")
    save_picture(folder / "a_cat" / "1.png")
    assert "expected at least 10 pictures to fit on and 10 to check, got 1 and 0" in edgeclip(*asked).line
    save_picture(folder / "a_cta" / "1.png")
    assert edgeclip(*asked).line.endswith("the pack has no label 'a_cta'. Did you mean 'a cat'?")
    (folder / "a_cta" / "1.png").unlink()
    (folder / "a_cta").rmdir()
    (folder / "a_cat" / "1.png").write_bytes(b"")
    said = edgeclip(*asked)
    assert said.code == 2
    assert said.line.startswith(f"edgeclip: {folder}: no picture in it can be used; the first: ")
    assert not (tmp_path / "out.labels").exists()
