"""Values worked by hand, and what every contrastive loss must do."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from edgeclip.errors import TrainingError
from edgeclip.models.training.objectives import OBJECTIVES, Objectives, objective

B, D = 8, 16
APART = torch.arange(B)  # every pair a group of its own
info_nce, sigmoid, multi_positive, image_contrast = map(
    objective, ("info_nce", "sigmoid", "multi_positive", "image_contrast")
)


def alone(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    return multi_positive(image, text, APART[: len(image)], scale)


SOFTMAX = pytest.mark.parametrize("loss", [info_nce, image_contrast, alone])
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def random_pair() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    image, text = torch.randn(2, B, D, generator=generator, dtype=torch.float64)
    return F.normalize(image, dim=-1), F.normalize(text, dim=-1)


@SOFTMAX
def test_equal_embeddings_cost_ln_b(loss: Loss) -> None:
    same = F.normalize(torch.ones(B, D, dtype=torch.float64), dim=-1)
    assert loss(same, same, torch.tensor(10.0)).item() == pytest.approx(math.log(8), abs=1e-12)


@SOFTMAX
def test_orthonormal_pairs(loss: Loss) -> None:
    image = torch.eye(B, D, dtype=torch.float64)
    want = math.log(1 + 7 * math.exp(-10))  # 3.177e-4
    assert loss(image, image, torch.tensor(10.0)).item() == pytest.approx(want, rel=1e-9)


def test_one_by_hand() -> None:
    # cosines [[1, 0.6], [0, 0.8]], scale 5. Rows: ln(1+e^-2), ln(1+e^-4); columns: ln(1+e^-5), ln(1+e^-1).
    image, text = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    want = sum(math.log(1 + math.exp(-x)) for x in (2, 4, 5, 1)) / 4
    assert info_nce(image, text, torch.tensor(5.0)).item() == pytest.approx(want, rel=1e-6)
    # Sigmoid with bias -2: positives softplus(-(5-2)), softplus(-(4-2)); negatives softplus(3-2), softplus(0-2); over B = 2.
    want = sum(math.log(1 + math.exp(x)) for x in (-3, -2, 1, -2)) / 2
    assert sigmoid(image, text, torch.tensor(5.0), torch.tensor(-2.0)).item() == pytest.approx(want, rel=1e-6)


def test_sigmoid_at_its_start() -> None:
    # Equal embeddings, scale 10, bias -10: every logit is 0, so B*B*ln 2 / B.
    same = F.normalize(torch.ones(B, D), dim=-1)
    assert sigmoid(same, same, torch.tensor(10.0), torch.tensor(-10.0)).item() == pytest.approx(
        8 * math.log(2), rel=1e-6
    )


def test_multi_positive_by_hand() -> None:
    # Pairs 0 and 1 say the same: identical embeddings, orthogonal to pair 2; scale 4.
    image = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    groups, scale = torch.tensor([7, 7, -2]), torch.tensor(4.0, dtype=torch.float64)
    pair, single = math.log(2 + math.exp(-4)), math.log(1 + 2 * math.exp(-4))
    assert multi_positive(image, image, groups, scale).item() == pytest.approx(
        (2 * pair + single) / 3, rel=1e-9
    )
    # Its least value is the entropy of the targets: (2 ln 2 + 0) / 3.
    assert multi_positive(image, image, groups, scale * 100).item() == pytest.approx(
        2 * math.log(2) / 3, rel=1e-9
    )


def test_multi_positive_alone_is_info_nce() -> None:
    image, text = random_pair()
    scale = torch.tensor(7.0, dtype=torch.float64)
    assert alone(image, text, scale).item() == pytest.approx(info_nce(image, text, scale).item(), rel=1e-12)


@pytest.mark.parametrize("loss", [info_nce, alone, partial(sigmoid, bias=torch.tensor(-10.0))])
def test_swapping_and_permuting_change_nothing(loss: Callable[..., Tensor]) -> None:
    image, text = random_pair()
    scale, order = torch.tensor(20.0), torch.randperm(B, generator=torch.Generator().manual_seed(1))
    value = loss(image, text, scale=scale).item()
    assert loss(text, image, scale=scale).item() == pytest.approx(value, rel=1e-12)
    assert loss(image[order], text[order], scale=scale).item() == pytest.approx(value, rel=1e-12)
    assert loss(image, text[order], scale=scale).item() != pytest.approx(value, rel=1e-3)


def test_wrong_shapes_are_refused() -> None:
    image, text = random_pair()
    scale = torch.tensor(1.0)
    for call in (
        lambda: info_nce(image, text[:4], scale),
        lambda: sigmoid(image, text[:4], scale, scale),
        lambda: alone(image, text[:4], scale),
    ):
        with pytest.raises(ValueError, match=r"\(8, 16\).*\(4, 16\)"):
            call()


def test_table_and_weights() -> None:
    assert all(callable(objective(name)) for name in OBJECTIVES)
    with pytest.raises(TrainingError, match=r"no 'infonce'; did you mean info_nce\?"):
        objective("infonce")
    image, text = random_pair()
    features = {"image": image, "text": text, "groups": APART, "scale": torch.tensor(5.0)}

    def mine(text: Tensor) -> Tensor:
        return text.sum()

    total, terms = Objectives((("info_nce", 0.25), (mine, 2.0)))(features)
    assert total.item() == pytest.approx(
        0.25 * info_nce(image, text, features["scale"]).item() + 2 * text.sum().item(), rel=1e-9
    )
    assert terms["mine"].item() == pytest.approx(text.sum().item())
    with pytest.raises(TrainingError, match=r"sigmoid asks for bias.*logit_bias=true"):
        Objectives((("sigmoid", 1.0),))(features)
    with pytest.raises(TrainingError, match="stands there twice"):
        Objectives((("sigmoid", 1.0), ("sigmoid", 2.0)))
