"""What a student is asked of its teacher: values worked by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from edgeclip.models.training.objectives import distillation
from edgeclip.models.training.objectives.info_nce import info_nce

B, D = 6, 8
SCALE = torch.tensor(7.0, dtype=torch.float64)
LOUD = torch.tensor(20.0, dtype=torch.float64)
WITH_SCALES = {
    "affinity": (SCALE, LOUD),
    "contrastive_relation": (SCALE, LOUD),
    "hybrid_contrast": (SCALE, LOUD),
    "interactive_contrast": (SCALE,),
    "feature_mse": (),
    "feature_cosine": (),
    "relational": (),
}


def rows(seed: int, n: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        F.normalize(torch.randn(B, D, generator=generator, dtype=torch.float64), dim=-1) for _ in range(n)
    ]


def call(name: str, *tensors: Tensor) -> Tensor:
    value: Tensor = getattr(distillation, name)(*tensors, *WITH_SCALES[name])
    return value


def test_features_where_the_teacher_is_cost_nothing_and_orthogonal_ones_cost_four_and_one() -> None:
    image, text, *_ = rows(0)
    here = torch.eye(D, dtype=torch.float64)[:B]
    aside = here.roll(1, dims=0)
    assert call("feature_mse", image, text, image, text).item() == 0
    assert call("feature_cosine", image, text, image, text).item() == pytest.approx(0, abs=1e-12)
    assert call("feature_mse", here, here, aside, aside).item() == pytest.approx(4)
    assert call("feature_cosine", here, here, aside, aside).item() == pytest.approx(1)


def test_on_unit_vectors_the_cosine_is_a_quarter_of_the_squared_distance() -> None:
    four = rows(1)
    assert call("feature_mse", *four).item() == pytest.approx(4 * call("feature_cosine", *four).item())


def test_affinity_by_a_loop() -> None:
    image, text, teacher_image, teacher_text = rows(2)
    total = 0.0
    for own, other, wanted_own, wanted_other in (
        (image, text, teacher_image, teacher_text),
        (text, image, teacher_text, teacher_image),
    ):
        for i in range(B):
            wanted = [math.exp(20 * float(wanted_own[i] @ wanted_other[j])) for j in range(B)]
            got = [math.exp(7 * float(own[i] @ other[j])) for j in range(B)]
            total -= (
                sum(w / sum(wanted) * math.log(g / sum(got)) for w, g in zip(wanted, got, strict=True)) / B
            )
    assert call("affinity", image, text, teacher_image, teacher_text).item() == pytest.approx(total / 2)


def test_the_relation_to_an_equal_teacher_is_nothing_and_has_affinitys_gradient() -> None:
    image, text, teacher_image, teacher_text = rows(3)
    equal = distillation.contrastive_relation(image, text, image, text, SCALE, SCALE)
    assert equal.item() == pytest.approx(0, abs=1e-12)
    image.requires_grad_()
    grads = [
        torch.autograd.grad(call(name, image, text, teacher_image, teacher_text), image)[0]
        for name in ("affinity", "contrastive_relation")
    ]
    torch.testing.assert_close(grads[0], grads[1])


def test_interactive_contrast_with_an_equal_teacher_is_the_contrast() -> None:
    image, text, *_ = rows(4)
    torch.testing.assert_close(
        call("interactive_contrast", image, text, image, text), info_nce(image, text, SCALE)
    )


def test_interactive_contrast_asks_the_student_against_the_teacher() -> None:
    image, text, teacher_image, teacher_text = rows(5)
    target = torch.arange(B)
    want = F.cross_entropy(SCALE * image @ teacher_text.T, target) + F.cross_entropy(
        SCALE * text @ teacher_image.T, target
    )
    torch.testing.assert_close(
        call("interactive_contrast", image, text, teacher_image, teacher_text), want / 2
    )


def test_relations_survive_a_rotation_and_another_width() -> None:
    image, text, *_ = rows(6)
    turn = torch.linalg.qr(torch.randn(D, D, dtype=torch.float64))[0]
    wide = [F.pad(one @ turn, (0, 5)) for one in (image, text)]
    assert call("relational", image, text, *wide).item() == pytest.approx(0, abs=1e-12)
    assert call("relational", image, text, text, image).item() > 1e-3


def test_relations_leave_out_a_row_with_itself() -> None:
    apart = torch.eye(D, dtype=torch.float64)[:2]
    same = apart[:1].expand(2, D)
    # one pair of cosines, 0 for 1: the mean over both orders is 1, over all four entries it would be a half
    assert call("relational", same, same, apart, apart).item() == pytest.approx(1)


def test_hybrid_of_all_truth_is_the_contrast_and_of_none_starts_at_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image, text, *_ = rows(7)
    monkeypatch.setattr(distillation, "TRUTH", 1.0)
    torch.testing.assert_close(
        call("hybrid_contrast", image, text, image, text), info_nce(image, text, SCALE)
    )
    monkeypatch.setattr(distillation, "TRUTH", 0.0)
    start = distillation.hybrid_contrast(image, text, image, text, SCALE, SCALE)
    assert start.item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", WITH_SCALES)
def test_the_student_is_pulled_towards_the_teacher(name: str) -> None:
    image, text, teacher_image, teacher_text = rows(8)
    image.requires_grad_()
    text.requires_grad_()
    optimizer = torch.optim.Adam([image, text], lr=0.05)
    first = 0.0
    for step in range(60):
        four = (F.normalize(image, dim=-1), F.normalize(text, dim=-1), teacher_image, teacher_text)
        loss = call(name, *four)
        first = first if step else loss.item()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert loss.item() < 0.7 * first


@pytest.mark.parametrize("name", WITH_SCALES)
def test_other_shapes_are_refused(name: str) -> None:
    image, text, teacher_image, teacher_text = rows(9)
    with pytest.raises(ValueError, match="want"):
        call(name, image, text, teacher_image[:-1], teacher_text)
