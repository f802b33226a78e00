"""What is stored is what the teacher makes of the view that a student will draw; a killed run ends in the same bytes."""

from __future__ import annotations

import io
import json
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from edgeclip.bundle.manifest import Preprocessing
from edgeclip.errors import TrainingError
from edgeclip.export.distill.probe import probe
from edgeclip.export.distill.reinforce import reinforce
from edgeclip.export.distill.reinforce_settings import ReinforceSettings
from edgeclip.export.distill.teachers import SourceTeacher
from edgeclip.models.training.data import open_pairs
from edgeclip.models.training.data.stored import Stored
from edgeclip.models.training.data.views import view
from edgeclip.models.training.recipe import Augmentation
from edgeclip.models.training.reinforced import open_reinforced, read_manifest
from edgeclip.runtime.images import Picture
from tests.export.distill.tiny_teachers import CPU, faulty, large, small, teachers
from tests.training.tiny import start_process

CROPS = Augmentation(crop_scale=(0.3, 0.9), flip=0.5, brightness=0.2)
DATA = "shapes:28"  # 20 of them to train on
SETTINGS = ReinforceSettings(views=2, augmentation=CROPS, validation_share=0.2, pairs_per_shard=8, workers=0)


def run(output: Path, data: str = DATA, who: Any = None, **changes: Any) -> Any:
    return reinforce(who or teachers(), data, output, replace(SETTINGS, **changes), progress=False)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def stored(folder: Path) -> Stored:
    where, manifest = open_reinforced(folder)
    return Stored(where, manifest.shards, manifest.plan.pairs)


def ramp(width: int, height: int) -> Image.Image:
    """Red grows to the right, green downwards: a view shows which part it is of."""
    x, y = np.meshgrid(np.arange(width) / width, np.arange(height) / height)
    return Image.fromarray((np.stack([x, y, 0 * x], axis=-1) * 250).astype(np.uint8))


def corners(seen: NDArray[np.float32], spec: Preprocessing) -> list[float]:
    """Centre and extent of the crop in both directions, 0-1 of the picture, from a view of `ramp`."""
    pixels = seen * np.array(spec.std)[:, None, None] + np.array(spec.mean)[:, None, None]
    across, down = pixels[0].mean(axis=0), pixels[1].mean(axis=1)
    inner = (len(across) // 4, 3 * len(across) // 4)  # without what a filter does at the border
    slopes = [
        (line[inner[1]] - line[inner[0]]) / (inner[1] - inner[0]) * len(line) for line in (across, down)
    ]
    return [float(v) for v in (across.mean(), down.mean(), *slopes)]


def as_jpeg(image: Image.Image) -> bytes:
    """Large ones are decoded at a reduced scale, and the smaller the view, the smaller."""
    stream = io.BytesIO()
    image.save(stream, "jpeg", quality=95)
    return stream.getvalue()


@pytest.mark.parametrize("picture", [ramp(120, 90), as_jpeg(ramp(1203, 907))], ids=["drawn", "jpeg"])
def test_specs_of_different_size_see_the_same_crop(picture: Picture) -> None:
    how = replace(CROPS, brightness=0.0, crop_scale=(0.1, 0.6))
    specs = (
        Preprocessing((48, 48), "squash", "bilinear", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        Preprocessing((128, 128), "shortest_crop", "bicubic", (0.1, 0.2, 0.3), (0.9, 0.8, 0.7)),
    )
    shown = [[corners(view(picture, spec, how, 7, "key", n), spec) for spec in specs] for n in range(6)]
    for one, other in shown:
        np.testing.assert_allclose(one, other, atol=0.01)
    spread = np.ptp([one for one, _ in shown], axis=0)
    assert (spread > 0.05).all()  # the views are not all the same crop
    assert corners(view(picture, specs[0], how, 7, "other", 0), specs[0]) != pytest.approx(
        shown[0][0], abs=0.01
    )
    assert corners(view(picture, specs[0], how, 8, "key", 0), specs[0]) != pytest.approx(
        shown[0][0], abs=0.01
    )


def test_rows_are_what_the_ensemble_makes_of_the_views_and_texts(tmp_path: Path) -> None:
    both = teachers(small(), large())
    done = run(tmp_path, who=both)
    assert (done.pairs + done.held_out, done.unreadable, done.made) == (28, 0, 3)
    rows, pairs = stored(tmp_path), open_pairs(DATA)
    for index in np.flatnonzero(rows.there)[[0, 5, -1]].tolist():
        key, picture = pairs.keys[index], pairs.read(index)[0]
        for number in range(2):
            seen = [view(picture, spec, CROPS, 0, key, number)[None] for spec in both.specs]
            np.testing.assert_allclose(rows.image(index, number), both.images(seen)[0], atol=1e-3)
        text, _, row = rows.text(index, np.random.default_rng(0))
        assert text == key
        np.testing.assert_allclose(row, both.texts([key])[0], atol=1e-3)
    first, second = (rows.image(index, number).astype(np.float32) for number in range(2))
    assert np.abs(first - second).max() > 3e-3  # the views differ by more than rounding


def test_bytes_a_pair_are_told(tmp_path: Path) -> None:
    done = run(tmp_path)
    shards = list(tmp_path.glob("shard-*"))
    assert done.bytes_a_pair == pytest.approx(sum(path.stat().st_size for path in shards) / done.pairs)
    assert done.bytes_a_pair > 2 * 16 * 2 + 16 * 2  # two views and a text, 16 wide, two bytes each
    told = json.loads((tmp_path / "reinforced.json").read_text())["told"]
    assert told["bytes_a_pair"] == pytest.approx(done.bytes_a_pair, abs=0.1)


class _KilledError(Exception):
    pass


def test_a_killed_run_goes_on_and_ends_in_the_same_bytes(tmp_path: Path) -> None:
    run(tmp_path / "whole")
    calls: list[int] = []

    def dying(rows: Any) -> Any:
        calls.append(1)
        if len(calls) > 3:  # of the probe, of the first shard, and of the second
            raise _KilledError
        return rows

    with pytest.MonkeyPatch.context() as patch, pytest.raises(_KilledError):
        run(tmp_path / "killed", who=faulty(patch, "images", dying))
    assert sorted(content(tmp_path / "killed")) == [
        "reinforced.json",
        "shard-00000.safetensors",
        "shard-00001.safetensors",
    ]
    with pytest.raises(TrainingError, match=r"is not finished \(16 pairs so far\)\. Run what wrote it again"):
        open_reinforced(tmp_path / "killed")
    (tmp_path / "killed" / ".shard-00002.safetensors.half").write_bytes(b"what a kill leaves")
    second = tmp_path / "killed/shard-00001.safetensors"
    second.write_bytes(second.read_bytes()[:-4] + b"\0\0\0\0")  # as long as before
    assert run(tmp_path / "killed").made == 2  # the damaged one, and the one that was missing
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    assert run(tmp_path / "killed").made == 0
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


RUN = """
import sys
from pathlib import Path
import torch
from tests.export.distill.test_reinforce import run
torch.set_num_threads(1)
run(Path(sys.argv[1]), data="shapes:400", workers=2)
"""


@pytest.mark.parity
def test_kill_9_in_a_process_of_its_own(tmp_path: Path) -> None:
    killed = start_process(RUN, str(tmp_path / "killed"))
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "killed").glob("shard-*"))) < 3:
        assert killed.poll() is None, "ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not read_manifest(tmp_path / "killed").complete
    for name in ("killed", "whole"):
        again = start_process(RUN, str(tmp_path / name))
        assert again.wait(120) == 0, again.stderr and again.stderr.read()
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


def test_workers_change_nothing(tmp_path: Path) -> None:
    run(tmp_path / "none")
    run(tmp_path / "three", workers=3)
    assert content(tmp_path / "none") == content(tmp_path / "three")


def folder_of_pairs(root: Path, count: int) -> None:
    root.mkdir()
    for i in range(count):
        Image.new("RGB", (20, 16), (10 * i, 255 - 10 * i, 7 * i)).save(root / f"{i}.png")
        (root / f"{i}.txt").write_text("one of a kind" if i % 2 else "another")


def test_unreadable_pairs_are_counted_and_left_out(tmp_path: Path) -> None:
    folder_of_pairs(tmp_path / "data", 12)
    (tmp_path / "data/3.png").write_bytes(b"no picture")
    (tmp_path / "data/5.txt").write_text("")
    done = run(tmp_path / "out", str(tmp_path / "data"), validation_share=0.0)
    assert (done.pairs, done.unreadable, done.held_out) == (10, 2, 0)
    keys = open_pairs(str(tmp_path / "data")).keys
    assert {keys[i] for i in np.flatnonzero(~stored(tmp_path / "out").there).tolist()} == {"3.png", "5.png"}


def test_extra_captions_and_templates(tmp_path: Path) -> None:
    folder_of_pairs(tmp_path / "data", 4)
    extra = tmp_path / "extra.jsonl"
    extra.write_text(
        '{"key": "1.png", "caption": ["a stripe", "one of a kind"]}\n{"key": "gone.png", "caption": "x"}\n'
    )
    changes = {"captions": str(extra), "templates": ("{}", "a photo: {}"), "validation_share": 0.0}
    run(tmp_path / "out", str(tmp_path / "data"), **changes)
    rows, random = stored(tmp_path / "out"), np.random.default_rng(0)
    index = list(open_pairs(str(tmp_path / "data")).keys).index("1.png")
    drawn = {rows.text(index, random)[:2] for _ in range(60)}
    assert {text for text, _ in drawn} == {
        "a stripe", "a photo: a stripe", "one of a kind", "a photo: one of a kind",
    }  # fmt: skip
    assert len({group for _, group in drawn}) == 2  # what stands in a template is still the same caption
    where, manifest = open_reinforced(tmp_path / "out")
    kept = manifest.shards[0].open(where).get_tensor("text")
    assert len(kept) == 6  # texts that pairs share are kept once
    with pytest.raises(TrainingError, match="was made with captions = "):
        run(tmp_path / "out", str(tmp_path / "data"), **{**changes, "captions": ""})
    extra.write_text('{"key": "gone.png", "caption": "x"}\n')
    with pytest.raises(
        TrainingError, match=r"has 1 lines, none of a picture of the data\. Its keys are like '.\.png'"
    ):
        run(tmp_path / "none", str(tmp_path / "data"), **changes)


def test_an_unsound_teacher_is_noticed_before_anything_is_written(tmp_path: Path) -> None:
    nan = lambda rows: np.where(np.arange(len(rows))[:, None] == 1, np.nan, rows)  # noqa: E731
    same = lambda rows: np.repeat(rows[:1], len(rows), axis=0)  # noqa: E731
    for name, change, message in (
        ("images", nan, "embeddings of pictures are not finite"),
        ("texts", nan, "embeddings of texts are not finite"),
        ("images", same, r"embeddings of 16 pictures are all alike\. Nothing can be learnt from it"),
        ("texts", same, "embeddings of 16 texts are all alike"),
    ):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(TrainingError, match=message):
            run(tmp_path / "out", who=faulty(patch, name, change))
    assert not (tmp_path / "out").exists()


def test_a_row_that_is_not_finite_is_named(tmp_path: Path) -> None:
    calls: list[int] = []

    def later(rows: Any) -> Any:
        calls.append(1)
        return rows if len(calls) == 1 else rows * np.nan

    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(
            TrainingError, match=r"^'a .* on .*': the teacher makes an embedding of it that is not finite"
        ),
    ):
        run(tmp_path, who=faulty(patch, "images", later))


def test_what_was_made_otherwise_is_refused(tmp_path: Path) -> None:
    run(tmp_path / "out")
    for changes, message in (
        ({"seed": 1}, r"was made with seed = 0, now it is 1\. Set it back"),
        ({"data": "shapes:32"}, "was made with fingerprint = "),
        ({"who": teachers(large())}, "was made with teachers = "),
        ({"augmentation": Augmentation()}, "was made with augmentation = "),
    ):
        with pytest.raises(TrainingError, match=message):
            run(tmp_path / "out", **changes)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    with pytest.raises(TrainingError, match="full: holds something else"):
        run(tmp_path / "full")
    manifest = tmp_path / "out/reinforced.json"
    manifest.write_text(manifest.read_text().replace('"seed": 0', '"seed": 5'))
    with pytest.raises(TrainingError, match="does not match its own digest: it was edited or damaged"):
        open_reinforced(tmp_path / "out")


def test_teachers_may_move(tmp_path: Path) -> None:
    run(tmp_path / "out")
    elsewhere = SourceTeacher(replace(small(), spec="elsewhere"), CPU)
    assert run(tmp_path / "out", who=replace(teachers(), members=(elsewhere,))).made == 0


def test_settings_out_of_range() -> None:
    for changes, message in (
        ({"views": 0}, "views: expected 1 or more, got 0"),
        ({"validation_share": 0.6}, "validation_share: expected 0 to 0.5"),
        ({"templates": ("a photo",)}, "templates: expected texts that hold {}"),
        ({"text_bank": "bank.txt", "templates": ("a {}",)}, "text_bank: its texts are whole"),
    ):
        with pytest.raises(TrainingError, match=message):
            replace(SETTINGS, **changes)


def test_probe_finds_data_that_is_gone(tmp_path: Path) -> None:
    folder_of_pairs(tmp_path / "data", 3)
    pairs = open_pairs(str(tmp_path / "data"))
    assert probe(teachers(), pairs, SETTINGS) == 3
    for path in (tmp_path / "data").glob("*.png"):
        path.unlink()
    with pytest.raises(TrainingError, match="unreadable, and so are the pairs behind it"):
        probe(teachers(), pairs, SETTINGS)
