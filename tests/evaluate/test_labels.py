"""Thresholds of a pack: which pictures they are fitted on, which measured on, and what the figures are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeclip.errors import InputError
from edgeclip.evaluate import labels as fitting
from edgeclip.evaluate.calibration import fit_thresholds
from edgeclip.evaluate.labels import full_scores, label_folders
from edgeclip.runtime.labels import LabelPack
from edgeclip.runtime.model import load
from tests.mutants import broken
from tests.runtime.toy import make_bundle, picture

PACK = LabelPack(("a cat", "a dog", "snow"), ("{}",), np.eye(3, 8, dtype=np.float32), "1" * 64)


def scores(count: int = 60) -> tuple[Any, Any]:
    """Scores of pictures of two of the three labels: most right, a quarter too low to tell, some wrong."""
    random = np.random.default_rng(0)
    labels = np.arange(count) % 2
    found = random.uniform(0, 0.3, (count, 3))
    sure = random.random(count) < 0.75
    found[np.arange(count), labels] = np.where(sure, random.uniform(0.5, 0.9, count), 0.1)
    found[::6, 2] = 0.62
    return found, labels


def test_half_is_fitted_on_and_the_other_half_measured() -> None:
    values, labels = scores()
    found = fitting.fit_pack(PACK, values, labels, "sigmoid")
    # every second picture of each label: of 0, 1, 0, 1, 0, 1, ... the first pair, the third, ...
    ours = np.arange(60) % 4 < 2
    want = fit_thresholds(values[ours], labels[ours])
    np.testing.assert_allclose(found.pack.thresholds, want, rtol=0, atol=0)
    assert found.pack.labels == PACK.labels
    held, right = values[~ours], labels[~ours]
    for i, one in enumerate(found.figures):
        reached = np.where(held >= want, held, -1)
        answer = np.where(reached.max(axis=1) >= 0, reached.argmax(axis=1), -1)
        assert (one.label, one.threshold) == (PACK.labels[i], want[i])
        assert (one.fitted_on, one.pictures) == ((15, 15) if i < 2 else (0, 0))
        assert one.answered == (answer == i).sum()
        assert one.precision == (pytest.approx((right[answer == i] == i).mean()) if one.answered else None)
        assert one.recall == (pytest.approx((answer[right == i] == i).mean()) if i < 2 else None)
    assert found.right == pytest.approx((answer == right).mean())
    assert found.answered == pytest.approx((answer >= 0).mean())
    assert found.right_before == pytest.approx((held.argmax(axis=1) == right).mean())
    assert found.right < found.answered < 1
    sure = fitting.fit_pack(PACK, values, labels, "sigmoid", precision=0.99)
    assert sure.answered < found.answered
    assert sure.right / sure.answered > found.right / found.answered
    assert set(found.to_dict()) == {"labels", "answered", "right", "right_before", "calibration_error"}


def test_too_few_pictures_are_refused() -> None:
    values, labels = scores(18)
    with pytest.raises(InputError, match="at least 10 pictures to fit on and 10 to check, got 10 and 8"):
        fitting.fit_pack(PACK, values, labels, "sigmoid")


def test_scores_come_in_the_packs_order(tmp_path: Path) -> None:
    with load(make_bundle(tmp_path / "toy"), threads=1) as model:
        pack = model.make_labels(["dog", "cat", "bicycle"]).with_thresholds([1, 1, 1])
        found = list(full_scores(model, pack, [picture(1), b"", picture(2)]))  # type: ignore[list-item]
        want = model.classify(picture(2), pack)
    assert isinstance(found[1], InputError)
    assert not isinstance(found[2], InputError)
    assert {pack.labels[i]: score for i, score in enumerate(found[2])} == dict(want.ranked())


def test_folders_are_found_by_their_labels_names(tmp_path: Path) -> None:
    labels = ["a cat", "A/C unit", "dog-house", "dog house", "snow"]
    for name in ("A_cat", "a_c_unit", "dog house", ".hidden"):
        (tmp_path / "good" / name).mkdir(parents=True)
    (tmp_path / "good/notes.txt").write_text("")
    found = label_folders(labels, tmp_path / "good")
    assert {i: path.name for i, path in found.items()} == {0: "A_cat", 1: "a_c_unit", 3: "dog house"}
    for names, message in (
        (["a_cta"], "a_cta: the pack has no label 'a_cta'. Did you mean 'a cat'?"),
        (["zebra"], "zebra: the pack has no label 'zebra'. Rename or move it."),
        (["dog_house"], "dog_house: the pack has no label 'dog_house'. Did you mean 'dog"),
        (["a cat", "a_cat"], "a_cat: 'a cat' has another folder, a cat. Join the two."),
        ([], "holds no folders. Expected a folder of pictures for each label"),
    ):
        folder = tmp_path / f"bad {len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        for name in names:
            (folder / name).mkdir()
        with pytest.raises(InputError) as error:
            label_folders(labels, folder)
        assert message in str(error.value)
    with pytest.raises(InputError, match="absent: no such folder"):
        label_folders(labels, tmp_path / "absent")


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("fit_pack", "order % 2 == 0, order % 2 == 1", "order % 2 == 1, order % 2 == 0"),
        ("fit_pack", "fitted.thresholds", "None"),
        ("_figures", "hits / answered", "hits / (answered + 1)"),
        ("_figures", "(right == i).sum()", "(right == i).mean()"),
    ],
)
def test_planted_faults_are_found(name: str, old: str, new: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, name, broken(getattr(fitting, name), old, new))
    with pytest.raises(AssertionError):
        test_half_is_fitted_on_and_the_other_half_measured()
