"""A student learns from stored embeddings: what it is shown is what its teacher saw, and a run stays exact."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from torch import Tensor

from edgeclip.errors import TrainingError
from edgeclip.export.distill.reinforce import reinforce
from edgeclip.export.distill.reinforce_settings import ReinforceSettings
from edgeclip.models.config import ImageConfig, MoeConfig
from edgeclip.models.training import Recipe, train
from edgeclip.models.training.data import batches as find_batches
from edgeclip.models.training.data.augment import augmented
from edgeclip.models.training.data.reinforced import ReinforcedPairs
from edgeclip.models.training.data.shapes import COLORS, SHAPES
from edgeclip.models.training.data.views import dice
from edgeclip.models.training.distributed import Shard
from edgeclip.models.training.objectives import Objectives
from edgeclip.models.training.recipe import Augmentation
from edgeclip.models.training.reinforced import (
    open_reinforced,
    projected,
    projection,
    teacher_score,
)
from edgeclip.models.training.starts import start
from edgeclip.models.training.step import backward, encoder
from tests.export.distill.tiny_teachers import large, small, teachers
from tests.training.tiny import curve, tiny

CROPS = Augmentation(crop_scale=(0.5, 1.0), flip=0.5)
LEARNT = (("feature_mse", 1.0), ("affinity", 0.2))
SETTINGS = ReinforceSettings(views=3, augmentation=CROPS, validation_share=0.2, pairs_per_shard=32, workers=0)


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of a teacher as wide as the student, of shapes:120."""
    folder = tmp_path_factory.mktemp("taught") / "rows"
    reinforce(teachers(), "shapes:120", folder, SETTINGS, progress=False)
    return folder


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A folder of pictures, a file of texts, and what an ensemble made of them."""
    root = tmp_path_factory.mktemp("unlabelled")
    (root / "pictures").mkdir()
    for i in range(40):
        Image.new("RGB", (24, 20), (6 * i, 255 - 6 * i, 90 + i)).save(root / f"pictures/{i:02d}.png")
    (root / "bank.txt").write_text("\n".join(f"{color} {shape}" for color in COLORS for shape in SHAPES))
    changed = replace(SETTINGS, text_bank=str(root / "bank.txt"))
    reinforce(teachers(small(), large()), str(root / "pictures"), root / "rows", changed, progress=False)
    return root / "pictures", root / "bank.txt", root / "rows"


def recipe(folder: Path, **changes: Any) -> Recipe:
    told = {
        "batches": "reinforced",
        "encode": "reinforced",
        "teacher_data": str(folder),
        "augmentation": CROPS,
        "objectives": LEARNT,
        "workers": 0,
    }
    return tiny(**{**told, **changes})


def opened(told: Recipe, shard: Shard | None = None) -> Any:
    assert isinstance(told.batches, str)
    return find_batches(told.batches)(told, start(told), shard or Shard())


def weights(output: Path) -> dict[str, Any]:
    return load_file(output / "model/model.safetensors")


def test_a_student_learns_towards_its_teacher(taught: Path, tmp_path: Path) -> None:
    done = train(recipe(taught, steps=40, checkpoint_every=20), tmp_path, progress=False)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    told = [line["feature_mse"] for line in lines if "feature_mse" in line]
    assert np.mean(told[-5:]) < told[0] / 2
    score = teacher_score(taught)
    assert [line["teacher_score"] for line in lines if "score" in line] == [score] * 3
    assert done.best_score is not None


def test_a_resumed_run_is_bit_for_bit_the_whole_run(taught: Path, tmp_path: Path) -> None:
    told = recipe(taught, steps=8)
    train(told, tmp_path / "whole", progress=False)

    make = ReinforcedPairs.batch

    def dying(self: ReinforcedPairs, step: int) -> Any:
        if step == 6:
            raise RuntimeError("killed")
        return make(self, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ReinforcedPairs, "batch", dying)
        with pytest.raises(RuntimeError, match="killed"):
            train(told, tmp_path / "killed", progress=False)
    train(told, tmp_path / "killed", progress=False)
    assert curve(tmp_path / "killed") == curve(tmp_path / "whole")
    one, two = weights(tmp_path / "killed"), weights(tmp_path / "whole")
    assert all(np.array_equal(one[name], two[name]) for name in two)


def gradients(told: Recipe, parts: int) -> tuple[float, list[Tensor]]:
    torch.manual_seed(0)
    source = start(told)
    model = source.model.train()
    batch = find_batches("reinforced")(told, source, Shard()).batch(0)
    objectives = Objectives.of(told)
    loss, _ = backward(
        model,
        batch,
        encoder(told.encode, objectives.wanted),
        objectives,
        nullcontext,
        seed=0,
        accumulate=parts,
    )
    return float(loss), [p.grad for p in model.parameters() if p.grad is not None]


def test_parts_of_a_batch_have_the_gradient_of_the_whole(taught: Path) -> None:
    told = recipe(taught, objectives=(*LEARNT, ("hybrid_contrast", 1.0), ("info_nce", 1.0)))
    (whole, wanted), (loss, found) = gradients(told, 1), gradients(told, 4)
    assert loss == pytest.approx(whole, rel=1e-5)
    assert len(wanted) == len(found) > 10
    for one, two in zip(wanted, found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=2e-6)


@pytest.mark.parametrize("parts", [1, 4])
def test_objectives_are_given_the_teachers_scale_as_it_is(taught: Path, parts: int) -> None:
    given: list[float] = []

    def asked(image: Tensor, scale: Tensor, teacher_scale: Tensor) -> Tensor:
        given.extend((scale.item(), teacher_scale.item()))
        return image.sum() * scale

    gradients(recipe(taught, objectives=((asked, 1.0),)), parts)
    assert given[1] == pytest.approx(float(small().model.logit_scale.detach().exp()))
    assert given[0] != pytest.approx(given[1])


def test_routers_of_a_student_with_experts_are_watched(taught: Path) -> None:
    clip = tiny().clip
    assert clip is not None
    assert isinstance(clip.image, ImageConfig)
    blocks = replace(clip.image.blocks, moe=MoeConfig((4,), 2))
    told = recipe(taught, clip=replace(clip, image=replace(clip.image, blocks=blocks)), objectives=LEARNT)
    balanced = replace(told, objectives=(*LEARNT, ("load_balance", 1.0)))
    (whole, _), (loss, found) = gradients(balanced, 1), gradients(balanced, 4)
    assert loss == pytest.approx(whole, rel=1e-4)
    alone, _ = gradients(told, 1)
    assert whole - alone > 1.5  # an even use of 2 experts of 4 costs 2, and texts have none
    assert found


def test_a_batch_pairs_each_crop_and_text_with_its_own_row(taught: Path) -> None:
    told = recipe(taught)
    student = start(told)
    # the teacher's own preprocessing: what it makes of the student's pixels is then the stored row itself
    pairs: ReinforcedPairs = find_batches("reinforced")(
        told, replace(student, preprocessing=small().preprocessing), Shard()
    )
    batch = pairs.batch(3)
    teacher = teachers().members[0]
    np.testing.assert_allclose(teacher.images(batch.pixels.numpy()), batch.teacher_image, rtol=0, atol=2e-3)
    scale = float(small().model.logit_scale.detach().exp())
    assert float(batch.teacher_scale) == pytest.approx(scale)
    rows = dict(zip(pairs.keys, teacher.texts(pairs.keys), strict=True))
    ids = {
        tuple(one): text for text, one in zip(pairs.keys, pairs._ids(list(pairs.keys)).tolist(), strict=True)
    }
    length = max(map(len, ids))
    for i, one in enumerate(batch.input_ids.tolist()):
        text = ids[tuple(one + [0] * (length - len(one)))]
        np.testing.assert_allclose(batch.teacher_text[i], rows[text], rtol=0, atol=2e-3)
    assert batch.groups is not None
    assert len(batch.groups.unique()) == len({tuple(one) for one in batch.input_ids.tolist()})


def test_the_view_is_the_stored_seeds_and_not_the_runs(taught: Path) -> None:
    told = recipe(taught, seed=5)
    pairs: ReinforcedPairs = opened(told)
    index = int(pairs.shuffled.train[0])
    picture, key = pairs._pairs.read(index)[0], pairs.keys[index]
    wanted = augmented(picture, pairs._spec, CROPS, dice(SETTINGS.seed, key, 2), key)
    assert np.array_equal(pairs._seen(index, 2), wanted)


def test_processes_share_a_batch(taught: Path) -> None:
    told = recipe(taught)
    whole = opened(told).batch(4)
    parts = [opened(told, Shard(rank, 2)).batch(4) for rank in range(2)]
    assert torch.equal(torch.cat([part.teacher_image for part in parts]), whole.teacher_image)
    assert torch.equal(torch.cat([part.pixels for part in parts]), whole.pixels)


def test_the_teachers_score_is_what_a_student_would_be_scored(taught: Path) -> None:
    told = recipe(taught)
    pairs = find_batches("reinforced")(told, small(), Shard())
    found = pairs.validate(small().model, torch.device("cpu"))
    assert found["pairs"] > 15
    assert found["teacher_score"] == pytest.approx(
        found["score"], abs=0.03
    )  # rows of half precision may tip a tie
    assert teacher_score(taught) == pytest.approx(found["score"], abs=0.03)


def test_widths(taught: Path, bank: tuple[Path, Path, Path]) -> None:
    folder, manifest = open_reinforced(taught)
    assert projection(folder, manifest, 16) is None
    rows = np.random.default_rng(0).standard_normal((5, 16)).astype(np.float32)
    wide = projected(rows, projection(folder, manifest, 24))
    assert not wide[:, 16:].any()
    np.testing.assert_allclose(wide @ wide.T, projected(rows, None) @ projected(rows, None).T, atol=1e-6)

    folder, manifest = open_reinforced(bank[2])  # 40 wide
    shard = manifest.shards[0].open(folder)
    rows = shard.get_tensor("image").reshape(-1, 40)
    full = projected(rows, None) @ projected(rows, None).T

    def lost(width: int) -> float:
        columns = projection(folder, manifest, width)
        assert columns is not None
        np.testing.assert_allclose(columns.T @ columns, np.eye(width), atol=1e-5)
        few = projected(rows, columns)
        np.testing.assert_allclose(np.linalg.norm(few, axis=1), 1, atol=1e-5)
        return float(np.abs(few @ few.T - full).max())

    first = projected(rows[:, :16], None)  # what cutting off would do
    assert lost(39) < lost(16) < np.abs(first @ first.T - full).max()


def test_refusals(taught: Path, bank: tuple[Path, Path, Path], tmp_path: Path) -> None:
    for changes, message in (
        ({"teacher_data": ""}, r"teacher_data: not set\. Name the folder of the teacher's embeddings"),
        ({"teacher_data": str(tmp_path)}, "holds no reinforced.json"),
        ({"data": "shapes:121"}, r"was made from other pairs \(120\) than data shapes:121 holds \(121\)"),
        (
            {"augmentation": Augmentation()},
            r"made with augmentation\.crop_scale = \(0\.5, 1\.0\), the recipe has \(0\.9, 1\.0\)",
        ),
        ({"templates": ("a {}",)}, "was made with templates = "),
        ({"validation_share": 0.1}, "was made with validation_share = 0.2, the recipe has 0.1"),
        ({"validation_pairs": 5000}, r"holds out 1000 pairs at most.*Set fewer"),
        (
            {"batches": "unlabelled", "objectives": (("feature_mse", 1.0),)},
            r"holds pairs\. Set batches=reinforced",
        ),
        ({"teacher_data": str(bank[2])}, r"holds pictures without texts\. Set batches=unlabelled"),
        ({"encode": "pairs"}, r"encode: pairs leaves the teacher's embeddings aside\. Set encode=reinforced"),
        ({"batch_size": 110, "validation_share": 0.2}, "fewer than batch_size 110"),
    ):
        with pytest.raises(TrainingError, match=message):
            opened(recipe(taught, **changes))
    with pytest.raises(
        TrainingError, match=r"affinity asks for teacher_image, teacher_text.*Set teacher_data to what"
    ):
        train(tiny(objectives=(("affinity", 1.0),)), tmp_path / "run", progress=False)
    with pytest.raises(TrainingError, match=r"teacher_data: set to .*, but nothing in this run reads it"):
        train(tiny(teacher_data="rows", workers=0), tmp_path / "other", progress=False)


def test_damage_is_noticed_when_it_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    reinforce(teachers(), "shapes:40", folder, SETTINGS, progress=False)
    told = recipe(folder, data="shapes:40", batch_size=4, validation_share=0.2)
    shard = folder / "shard-00000.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    pairs = opened(told)
    with pytest.raises(
        TrainingError, match=r"shard-00000\.safetensors does not match its SHA-256\. Reinforce the data again"
    ):
        pairs.batch(0)
    shard.write_bytes(whole[:-1])
    with pytest.raises(TrainingError, match=rf"is {len(whole) - 1} bytes long, expected {len(whole)} bytes"):
        opened(told)
    shard.unlink()
    with pytest.raises(TrainingError, match="is missing, expected"):
        opened(told)


def test_a_resumed_run_refuses_another_teachers_rows(taught: Path, tmp_path: Path) -> None:
    train(recipe(taught, steps=4), tmp_path / "run", progress=False)
    reinforce(teachers(large()), "shapes:120", tmp_path / "rows", SETTINGS, progress=False)
    with pytest.raises(TrainingError, match="holds other pairs than when"):
        train(recipe(tmp_path / "rows", steps=4), tmp_path / "run", progress=False)


def unlabelled(bank: tuple[Path, Path, Path], **changes: Any) -> Recipe:
    # a new model's tokenizer would be learned from captions, and there are none
    own = {"model": lambda told: start(tiny()), "clip": None}
    told = {"batches": "unlabelled", "data": str(bank[0]), "batch_size": 8, **own, **changes}
    return recipe(bank[2], **told)


def test_unlabelled_pictures_and_a_text_bank(bank: tuple[Path, Path, Path], tmp_path: Path) -> None:
    told = unlabelled(bank, steps=40, checkpoint_every=20)
    train(told, tmp_path, progress=False)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    mse = [line["feature_mse"] for line in lines if "feature_mse" in line]
    assert np.mean(mse[-5:]) < mse[0] / 2
    scores = [line for line in lines if "score" in line]
    assert all(0 <= line["score"] <= 1 and line["pictures"] > 3 for line in scores)
    assert teacher_score(bank[2]) is None
    batch = opened(told).batch(0)
    assert batch.groups is None
    again = opened(told).batch(0)
    assert torch.equal(batch.input_ids, again.input_ids)
    assert torch.equal(batch.teacher_text, again.teacher_text)


def test_a_teacher_agrees_with_itself_on_unlabelled_pictures(
    bank: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    told = replace(SETTINGS, text_bank=str(bank[1]))
    reinforce(teachers(), str(bank[0]), tmp_path / "rows", told, progress=False)
    pairs = find_batches("unlabelled")(unlabelled((bank[0], bank[1], tmp_path / "rows")), small(), Shard())
    assert pairs.validate(small().model, torch.device("cpu"))["score"] == 1.0


def test_texts_of_a_bank_come_with_their_rows_half_of_them_for_the_picture(
    bank: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    told = replace(SETTINGS, text_bank=str(bank[1]))
    reinforce(teachers(), str(bank[0]), tmp_path / "rows", told, progress=False)
    pairs = find_batches("unlabelled")(unlabelled((bank[0], bank[1], tmp_path / "rows")), small(), Shard())
    sure = replace(pairs._plan.teachers[0], scale=1e4)  # a teacher who names each picture without a doubt
    pairs._plan = replace(pairs._plan, teachers=(sure,))
    named = []
    for step in range(10):
        batch = pairs.batch(step)
        with torch.no_grad():
            texts = torch.nn.functional.normalize(small().model.encode_text(batch.input_ids), dim=-1)
        torch.testing.assert_close(batch.teacher_text, texts, rtol=0, atol=2e-3)
        images = teachers().members[0].images(batch.pixels.numpy())
        np.testing.assert_allclose(batch.teacher_image, images, rtol=0, atol=2e-3)
        nearest = (batch.teacher_image @ torch.from_numpy(pairs._bank_rows).T).amax(dim=1)
        named += ((batch.teacher_image * batch.teacher_text).sum(dim=1) > nearest - 1e-5).tolist()
    assert 0.35 < np.mean(named) < 0.65


def test_what_takes_rows_for_pairs_is_refused_without_texts(
    bank: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    for name in ("info_nce", "interactive_contrast", "hybrid_contrast", "multi_positive"):
        with pytest.raises(
            TrainingError, match=f"objectives: {name} takes row i of pictures and texts for a pair"
        ):
            opened(unlabelled(bank, objectives=((name, 1.0),)))
    (tmp_path / "other.txt").write_text("one\ntwo\n")
    with pytest.raises(TrainingError, match=r"other\.txt holds other texts than"):
        opened(unlabelled(bank, text_bank=str(tmp_path / "other.txt")))
    assert opened(unlabelled(bank, text_bank=str(bank[1]))).batch(0) is not None
    (tmp_path / "few.txt").write_text("one\n\none\n")
    with pytest.raises(TrainingError, match=r"few\.txt holds 1 texts, expected 2 or more"):
        opened(unlabelled(bank, text_bank=str(tmp_path / "few.txt")))
