"""Teachers give what their model gives; an ensemble's cosines are the mean of its members'."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import edgeclip
from edgeclip.bundle import open_bundle
from edgeclip.errors import InputError, SourceError
from edgeclip.export.distill.teachers import SourceTeacher, is_bundle, open_teachers
from edgeclip.export.samples import made_up_pictures, pixels_of
from edgeclip.models.training.checkpoint import write_source
from tests.export.distill.tiny_teachers import CPU, large, small, teachers
from tests.export.sources import clip_source, one_tower

TEXTS = ["a cat", "a small red star on blue", "rain"]


def test_a_source_gives_its_models_unit_rows() -> None:
    source, pictures = large(), made_up_pictures(3)
    assert source.preprocessing is not None
    views = pixels_of(pictures, source.preprocessing)
    teacher = SourceTeacher(source, CPU)
    with torch.no_grad():
        wanted = F.normalize(source.model.encode_image(torch.from_numpy(views)), dim=-1).numpy()
    np.testing.assert_allclose(teacher.images(views), wanted, rtol=0, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(teacher.texts(TEXTS), axis=1), 1, atol=1e-6)
    assert teacher.texts([]).shape == (0, 24)
    record = teacher.record
    assert record.scale == pytest.approx(float(source.model.logit_scale.detach().exp()))
    assert record.parameters == sum(p.numel() for p in source.model.parameters())


def test_a_bundle_gives_what_it_serves() -> None:
    pictures = made_up_pictures(3)
    with open_teachers(["bundle:nano"]) as found, edgeclip.load("nano", "onnxruntime-cpu") as model:
        views = pixels_of(pictures, found.specs[0])
        np.testing.assert_allclose(found.images([views]), model.embed_images(pictures), rtol=0, atol=1e-5)
        np.testing.assert_allclose(found.texts(TEXTS), model.embed_texts(TEXTS), rtol=0, atol=1e-6)
        facts = open_bundle("nano").manifest
        assert found.dim == facts.embedding_dim
        assert found.scale == pytest.approx(facts.logit_scale)
        assert found.parameters > 1_000_000


def test_an_ensembles_cosines_are_the_mean_of_its_members() -> None:
    pictures = made_up_pictures(4)
    both = teachers(small(), large())
    assert [spec.size for spec in both.specs] == [(16, 16), (32, 32)]
    views = [pixels_of(pictures, spec) for spec in both.specs]
    images, texts = both.images(views), both.texts(TEXTS)
    assert images.shape == (4, 40)
    alone = [
        member.images(view) @ member.texts(TEXTS).T for member, view in zip(both.members, views, strict=True)
    ]
    assert np.abs(alone[0] - alone[1]).max() > 0.1
    np.testing.assert_allclose(images @ texts.T, (alone[0] + alone[1]) / 2, rtol=0, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(images, axis=1), 1, atol=1e-6)
    scales = [record.scale for record in both.records]
    assert scales[0] != scales[1]
    assert both.scale == pytest.approx(sum(scales) / 2)
    assert both.parameters == sum(record.parameters for record in both.records)
    assert both.digest != teachers(large(), small()).digest


def test_members_of_one_preprocessing_share_a_view() -> None:
    other = clip_source(layers=1, digest="other")
    assert len(teachers(large(), other).specs) == 1


def test_weights_without_a_file_have_a_digest_of_their_own() -> None:
    assert small().digest == ""
    first = SourceTeacher(small(), CPU).record.digest
    assert first == SourceTeacher(small(), CPU).record.digest
    changed = replace(small(), model=clip_source(layers=1).model)
    assert first != SourceTeacher(changed, CPU).record.digest


def test_refusals(tmp_path: Path) -> None:
    write_source(tmp_path / "one", large())
    with pytest.raises(InputError, match=r"teacher: none is named\. Name a source or a bundle"):
        open_teachers([])
    with pytest.raises(InputError, match=r"one has the weights of .*one\. Name each once"):
        open_teachers([str(tmp_path / "one")] * 2, device="cpu")
    with pytest.raises(SourceError, match="nowhere: no such source"):
        open_teachers(["nowhere"], device="cpu")
    half = one_tower(clip_source(layers=1), "image")
    with pytest.raises(InputError, match="a teacher needs an image tower and a text tower"):
        SourceTeacher(half, CPU)


def test_what_is_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "bundle.json").write_text("{}")
    assert is_bundle(str(tmp_path))
    assert is_bundle("bundle:nano")
    assert not is_bundle("nano")
    assert not is_bundle("hf:org/name")
