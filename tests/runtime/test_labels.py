"""Label packs: what they hold, what they are bound to, and that a device needs nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from edgeclip.bundle import Bundle
from edgeclip.errors import InputError
from edgeclip.runtime.labels import LabelPack
from edgeclip.runtime.model import load
from tests.runtime.toy import make_bundle, picture

LABELS = ["cat", "dog", "bicycle"]


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "toy")


@pytest.fixture
def pack(bundle: Bundle) -> LabelPack:
    with load(bundle) as model:
        return model.make_labels(LABELS, ["a {}", "a photo of a {}"])


def test_round_trip(pack: LabelPack, tmp_path: Path) -> None:
    pack.with_thresholds([0.1, 0.2, 0.3]).save(tmp_path / "p")
    again = LabelPack.open(tmp_path / "p")
    assert (again.labels, again.templates) == (tuple(LABELS), ("a {}", "a photo of a {}"))
    assert (again.model_id, again.variant) == ("1" * 64, "text-fp32")
    assert again.thresholds == pytest.approx((0.1, 0.2, 0.3))
    np.testing.assert_allclose(again.vectors, pack.vectors, rtol=0, atol=1e-7)
    pack.save(tmp_path / "half", half=True)
    half = LabelPack.open(tmp_path / "half")
    assert half.thresholds is None
    np.testing.assert_allclose((half.vectors * pack.vectors).sum(axis=1), 1, rtol=0, atol=1e-6)
    pack.save(tmp_path / "whole")
    assert (tmp_path / "whole").stat().st_size - (tmp_path / "half").stat().st_size == 2 * pack.vectors.size


def test_a_device_needs_neither_text_tower_nor_tokenizer(
    bundle: Bundle, pack: LabelPack, tmp_path: Path
) -> None:
    pictures = [picture(seed) for seed in range(4)]
    with load(bundle) as model:
        want = model.classify(pictures, LABELS, ["a {}", "a photo of a {}"])
    lean = make_bundle(tmp_path / "lean", text=False)
    assert not (lean.root / "tokenizer.json").exists()
    with load(lean) as model:
        found = model.classify(pictures, pack)
        assert set(model.info().towers) == {"image"}
    assert [result.labels for result in found] == [result.labels for result in want]
    np.testing.assert_allclose([r.scores for r in found], [r.scores for r in want], rtol=0, atol=1e-6)


def test_the_packs_thresholds_decide(bundle: Bundle, pack: LabelPack) -> None:
    with load(bundle) as model:
        best = model.classify(picture(1), pack)
        assert best.label is not None
        none = model.classify(picture(1), pack.with_thresholds([1.0] * 3))
        assert (none.label, none.label_index) == (None, -1)
        other = [1.0 if label == best.label else 0.0 for label in LABELS]
        assert model.classify(picture(1), pack.with_thresholds(other)).label == best.labels[1]
        assert model.classify(picture(1), pack.with_thresholds([1.0] * 3), threshold=0.0).label == best.label
        with pytest.raises(InputError, match="a label pack brings its own"):
            model.classify(picture(1), pack, ["a {}"])
    with pytest.raises(InputError, match="expected 3, one for each label, got 1"):
        pack.with_thresholds([0.5])


def test_another_models_pack_is_refused(pack: LabelPack, tmp_path: Path) -> None:
    other = make_bundle(tmp_path / "other", model_id="2" * 64)
    message = r"made by model 1{12}\.\.\., the bundle is 2{12}"
    with load(other) as model, pytest.raises(InputError, match=message):
        model.classify(picture(1), pack)


def save_as(path: Path, facts: object, **tensors: np.ndarray) -> None:
    save_file(tensors, path, {"edgeclip": json.dumps(facts)})


def test_damaged_and_foreign_files(pack: LabelPack, tmp_path: Path) -> None:
    path = tmp_path / "p"
    facts = {**pack.to_dict(), "format": "edgeclip.labels", "version": 1}
    with pytest.raises(InputError, match="not a label pack that can be read"):
        LabelPack.open(path)
    pack.save(path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(InputError, match="not a label pack that can be read"):
        LabelPack.open(path)
    save_file({"x": np.zeros(1, np.float32)}, path)
    with pytest.raises(InputError, match="not a label pack"):
        LabelPack.open(path)
    save_as(path, {**facts, "version": 2}, vectors=pack.vectors)
    with pytest.raises(InputError, match="version 2, this edgeclip reads 1"):
        LabelPack.open(path)
    for wrong in (
        {"labels": ["a"]},
        {"labels": "abc"},
        {"templates": [1]},
        {"labels": []},
        {"model_id": None},
    ):
        save_as(path, {**facts, **wrong}, vectors=pack.vectors)
        if wrong != {"templates": [1]}:
            with pytest.raises(InputError, match="do not match"):
                LabelPack.open(path)
    for bad in (pack.vectors * np.nan, pack.vectors * 2, np.zeros_like(pack.vectors)):
        save_as(path, facts, vectors=bad)
        with pytest.raises(InputError, match="not of unit length"):
            LabelPack.open(path)
    save_as(path, facts, vectors=pack.vectors, thresholds=np.zeros(2, np.float32))
    with pytest.raises(InputError, match="do not match"):
        LabelPack.open(path)
