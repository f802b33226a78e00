"""A whole distillation on drawn shapes; killed between its phases it goes on; what would waste hours is refused in one line."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import edgeclip
from edgeclip.bundle import open_bundle, seal
from edgeclip.bundle.manifest import Licence
from edgeclip.errors import EdgeClipError, InputError
from edgeclip.export.api import ExportReport, ExportSettings
from edgeclip.export.distill import api, checks
from edgeclip.export.distill.api import distill, rehearse_distill
from edgeclip.export.distill.held_out import HeldOut, Seen
from edgeclip.export.distill.settings import DistillSettings, Folder, LatencyBudget
from edgeclip.export.distill.timing import BUSY
from edgeclip.files import sha256_file
from edgeclip.models.config import TransformerConfig
from edgeclip.models.source import Source
from edgeclip.models.sources import load_source
from edgeclip.models.training import Recipe, load_recipe, train
from edgeclip.models.training.checkpoint import write_source
from edgeclip.models.training.reinforced import TeacherRecord
from edgeclip.runtime.verify import verify
from tests.training.tiny import TINY, tiny

CLIP = TINY.clip
assert CLIP is not None


def recipe(**changes: Any) -> Recipe:
    base = replace(
        load_recipe("distill"), data="shapes:160", validation_share=0.2, steps=12, batch_size=16, learning_rate=1e-2,
        warmup_steps=2, checkpoint_every=6, log_every=1, device="cpu", workers=0,
    )  # fmt: skip
    return replace(base, **changes)


def settings(recipe_: Recipe | None = None, **changes: Any) -> DistillSettings:
    export = ExportSettings(targets=("portable",))
    return DistillSettings(recipe=recipe_ or recipe(), views=2, timing_s=0.01, export=export, **changes)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a teacher of two blocks that has learned a little."""
    root = tmp_path_factory.mktemp("teacher")
    image = replace(CLIP.image, blocks=TransformerConfig(32, 2, 4, 64))
    clip = replace(CLIP, image=image, embed_dim=24)
    licence = Licence("MIT", "Apache-2.0", "CC-BY-4.0", "drawn by hand")
    made = tiny(
        clip=clip, objectives=(("multi_positive", 1.0),), steps=40, data="shapes:160", licence=licence
    )
    return str(train(made, root, progress=False).model)


def lends(source: Source, output: Path, *, settings: ExportSettings) -> ExportReport:
    """In place of an export, which takes seconds: another model's graphs, said to be this source's."""
    shutil.copytree(open_bundle("nano").root, output, dirs_exist_ok=True)
    facts = replace(
        open_bundle("nano").manifest,
        source_digest=source.digest,
        licence=source.licence,
        provenance={"targets": list(settings.targets)},
    )
    return ExportReport(seal(output, facts), (), {}, {}, ())


@pytest.fixture(autouse=True)
def lent(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not request.node.get_closest_marker("parity"):
        monkeypatch.setattr(api, "export_bundle", lends)


@pytest.fixture(scope="module")
def finished(teacher: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("out") / "student"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "export_bundle", lends)
        assert distill([teacher], "half-width", output, settings(), progress=False)
    return output


def weights(output: Path) -> str:
    return sha256_file(output / "run/model/model.safetensors")


@pytest.mark.parity
@pytest.mark.parametrize("finish_steps", [0, 8])
def test_ends_in_a_verified_bundle_that_opens(teacher: str, tmp_path: Path, finish_steps: int) -> None:
    asked = settings(finish_steps=finish_steps)
    report = distill([teacher], "half-width", tmp_path / "student", asked, progress=False)
    assert report is not None
    bundle = open_bundle(report.bundle)
    verify(bundle).require()
    where = "finished/model" if finish_steps else "run/model"
    assert bundle.manifest.source_digest == load_source(str(tmp_path / "student" / where)).digest
    precisions = {variant.axes.precision for variant in bundle.manifest.variants}
    assert ("int8" in precisions) == bool(finish_steps)
    with edgeclip.load(report.bundle) as model:
        rows = model.embed_images([np.zeros((40, 40, 3), np.uint8)])
    assert rows.shape == (1, 24)
    source, shipped = report.sides[1:]
    assert shipped.scores["score"] == pytest.approx(source.scores["score"], abs=0.1 if finish_steps else 1e-6)


def test_the_bundle_is_the_students_and_carries_its_teachers_licence(finished: Path, teacher: str) -> None:
    facts = open_bundle(str(finished / "bundle")).manifest
    assert facts.source_digest == load_source(str(finished / "run/model")).digest
    assert (facts.licence.weights, facts.licence.credit) == ("MIT", "drawn by hand")
    assert f"derived from the weights of {teacher}, licence MIT" in facts.licence.warnings
    told = json.loads((finished / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert told["teacher_score"] > 0


def test_the_report_says_what_the_files_say(finished: Path, teacher: str) -> None:
    report = json.loads((finished / "report.json").read_text())
    whole, source, bundle = report["sides"]
    assert whole["parameters"] > 2 * source["parameters"] == 2 * bundle["parameters"]
    assert source["activations"] < whole["activations"]
    # the same pairs and the same figures as training had, from another code path
    lines = [json.loads(line) for line in (finished / "run/metrics.jsonl").read_text().splitlines()]
    scored = {line["step"]: line["score"] for line in lines if "score" in line}
    assert source["scores"]["score"] == pytest.approx(scored[report["best_step"]], abs=1e-6)
    assert whole["scores"]["score"] == pytest.approx(lines[-1]["teacher_score"], abs=0.02)  # stored in halves
    assert report["curve"]["score"] == [[step, score] for step, score in scored.items()]
    assert report["held_out"] == source_pairs(lines)
    assert set(report["curve"]["terms"]) == {"feature_mse", "interactive_contrast", "contrastive_relation"}
    assert bundle["size_bytes"] == sum(
        path.stat().st_size
        for path in (finished / "bundle").rglob("*")
        if path.name != "bundle.json" and path.is_file()
    )
    for example in report["examples"]:
        right, wrong = (
            example[kind]
            for kind in (("teacher", "student") if example["kind"] == "teacher" else ("student", "teacher"))
        )
        assert right == example["truth"] != wrong
    kinds = [example["kind"] for example in report["examples"]]
    assert kinds.count("teacher") == min(8, report["teacher_only"]) > 0
    assert kinds.count("student") == min(8, report["student_only"])
    page = (finished / "report.html").read_text()
    assert 0 <= report["others"] <= 1
    assert ("Other programs took" in page) == (report["others"] >= BUSY)
    assert "http:" not in page.replace("http://www.w3.org", "")
    assert "<script" not in page
    assert page.count("data:image/jpeg") == len(report["examples"])


def source_pairs(lines: list[dict[str, Any]]) -> int:
    return int(next(line["pairs"] for line in lines if "pairs" in line))


class Killed(Exception):
    pass


def test_killed_between_phases_it_ends_as_if_never_killed(
    finished: Path,
    teacher: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def kill(*arguments: Any, **named: Any) -> Any:
        raise Killed

    def again() -> object:
        return distill([teacher], "half-width", tmp_path / "student", settings(), progress=False)

    for phase in ("reinforce", "train", "export_bundle", "_reported"):
        with monkeypatch.context() as patch:
            patch.setattr(api, phase, kill)
            if phase not in ("reinforce", "train"):  # what is made already is not made again
                patch.setattr(api, "probe", kill)
                patch.setattr(api, "_write_start", kill)
            with pytest.raises(Killed):
                again()
        assert (tmp_path / "student/distill.json").is_file()
        assert not (tmp_path / "student/report.json").exists()
    for done in ("probe", "_write_start", "export_bundle"):
        monkeypatch.setattr(api, done, kill)
    half = [tmp_path / "student" / name for name in (".start.1648cx4n", "..start.1648cx4n.fztqv4_l", ".bundle.old.abcdefgh")]  # fmt: skip
    notes = tmp_path / "student/.start.of-mine"
    for one in (*half, notes):
        one.mkdir()
    caplog.clear()
    assert again()
    assert caplog.text.count("texts are longer than") == 1, "one call tells it once"
    assert notes.is_dir()
    assert not any(one.exists() for one in half)
    assert weights(tmp_path / "student") == weights(finished)
    assert (
        open_bundle(str(tmp_path / "student/bundle")).digest == open_bundle(str(finished / "bundle")).digest
    )


def test_other_targets_are_exported_again(
    finished: Path, teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished, tmp_path / "student")

    def kill(*arguments: Any, **named: Any) -> Any:
        raise Killed

    monkeypatch.setattr(api, "export_bundle", kill)
    assert distill([teacher], "half-width", tmp_path / "student", settings(), progress=False)
    other = replace(settings(), export=ExportSettings(targets=("onnxruntime",)))
    with pytest.raises(Killed):
        distill([teacher], "half-width", tmp_path / "student", other, progress=False)


def test_a_folder_is_of_one_student(finished: Path, teacher: str, tmp_path: Path) -> None:
    def again(name: str, folder: Path, **changes: Any) -> None:
        distill([teacher], name, folder, settings(recipe(**changes)), progress=False)

    with pytest.raises(
        InputError, match=r"begun with student 'half-width', now it is 'half-depth'\. Name that"
    ):
        again("half-depth", finished)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("dear")
    with pytest.raises(InputError, match="mine: already exists and holds no distillation"):
        again("half-width", tmp_path / "mine")
    (tmp_path / "mine/letter.txt").rename(
        tmp_path / "mine/.distill.json.1a2b3c4d"
    )  # killed at its first file
    assert checks.read_state(Folder(tmp_path / "mine")) is None
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    (copy / "distill.json").write_text("{}")
    with pytest.raises(InputError, match=r"distill\.json: cannot be read"):
        again("half-width", copy)
    shutil.copytree(finished, copy, dirs_exist_ok=True)
    with pytest.raises(EdgeClipError, match="started with steps = 12, now it is 13"):
        again("half-width", copy, steps=13)


@pytest.mark.parametrize(
    ("student", "change", "message"),
    [
        ("half-width", {"batch_size": 200}, r"shapes:160: \d+ training pairs \(\d+ held out\), fewer than batch_size 200\. Bring more"),
        ("half-width", {"validation_share": 0.0}, r"patience: 5 checkpoints .* none of 160 pairs is held out"),
        ("half-width", {"data": "shapes:x"}, "expected shapes:N"),
        ("half-width", {"data": ""}, "data: not set"),
        ("half-width", {"objectives": (("feature_mze", 1.0),)}, "no 'feature_mze'; did you mean feature_mse"),
        ("half-widht", {}, "no such student; did you mean half-width"),
        ("39m-16", {}, "patches of 16 pixels"),
    ],
)  # fmt: skip
def test_refused_before_anything_is_written(
    teacher: str, tmp_path: Path, student: str, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(EdgeClipError, match=message):
        distill([teacher], student, tmp_path / "student", settings(recipe(**change)), progress=False)
    assert not (tmp_path / "student").exists()


def test_swapped_arguments_are_refused(teacher: str, finished: Path, tmp_path: Path) -> None:
    small = str(finished / "run/model")
    with pytest.raises(
        InputError,
        match=r"student .* has 32,017 parameters, its teacher .* are they swapped\? .* --allow-larger",
    ):
        distill([small], teacher, tmp_path / "x", settings(), progress=False)
    deaf = replace(load_source(teacher), model=load_source(teacher).model)
    with torch.no_grad():
        for parameter in deaf.model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    write_source(tmp_path / "deaf", deaf)
    with pytest.raises(
        EdgeClipError, match=r"teacher .* scores 0\.\d+ on \d+ held-out pairs, student .* --allow-weaker"
    ):
        distill([str(tmp_path / "deaf")], teacher, tmp_path / "x", settings(), progress=False)
    told = rehearse_distill([str(tmp_path / "deaf")], teacher, settings(allow_weaker=True))
    assert told["parameters"]["student"] == 32017
    assert (
        rehearse_distill([small], teacher, settings(allow_larger=True, allow_weaker=True))["step"]["loss"] > 0
    )


@pytest.mark.parametrize(("value", "message"), [(1e30, "not finite"), (0.0, "all alike")])
def test_unsound_teachers_are_refused(teacher: str, tmp_path: Path, value: float, message: str) -> None:
    source = load_source(teacher)
    with torch.no_grad():
        for name, parameter in source.model.named_parameters():
            if name.startswith("image") and "projection" not in name:
                parameter.fill_(value)
    write_source(tmp_path / "broken", source)
    with pytest.raises(EdgeClipError, match=f"teacher .*broken: embeddings of .*({message})"):
        distill([str(tmp_path / "broken")], "half-width", tmp_path / "x", settings(), progress=False)
    assert not (tmp_path / "x").exists()


def test_bundles_teach_but_nobody_inherits_from_graphs(finished: Path, teacher: str, tmp_path: Path) -> None:
    bundle = str(finished / "bundle")
    with pytest.raises(InputError, match=r"student half: inherits a teacher's weights, and .* is a bundle"):
        rehearse_distill([bundle], "half", settings())
    with pytest.raises(InputError, match="student --latency: inherits"):
        rehearse_distill([bundle], LatencyBudget(8.0, ()), settings())
    told = rehearse_distill([bundle, teacher], str(finished / "start"), settings(allow_weaker=True))
    nano = open_bundle(bundle).manifest.embedding_dim
    assert told["width"] == {"teacher": nano + 24, "student": 24}
    assert told["teachers"] == [bundle, teacher]


def test_a_rehearsal_tells_what_a_run_would_take(teacher: str, finished: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    told = rehearse_distill([teacher], "half-width", settings())
    manifest = json.loads((finished / "reinforced/reinforced.json").read_text())
    shards = sum(shard["size"] for shard in manifest["shards"])
    assert told["reinforced"]["bytes"] == pytest.approx(
        shards, rel=0.35
    )  # a file's head weighs more in a small sample
    assert told["reinforced"]["pairs"] + told["reinforced"]["held_out"] == 160
    assert told["step"]["feature_mse"] > 0
    assert sorted(tmp_path.rglob("*")) == before


def test_the_recipes_own_start_and_settings_nobody_reads(teacher: str, tmp_path: Path) -> None:
    own = replace(recipe(steps=2, checkpoint_every=2), model="scratch", clip=CLIP)
    report = distill([teacher], "recipe", tmp_path / "student", settings(own, examples=0), progress=False)
    assert report is not None
    assert report.sides[1].parameters == sum(
        p.numel() for p in load_source(str(tmp_path / "student/start")).model.parameters()
    )
    with pytest.raises(EdgeClipError, match=r"clip: set to .* but nothing in this run reads it"):
        rehearse_distill([teacher], "half-width", settings(recipe(clip=CLIP)))


def test_pictures_without_texts(teacher: str, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    rng = np.random.default_rng(0)
    for number in range(60):
        Image.fromarray(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(pictures / f"{number}.png")
    (tmp_path / "bank.txt").write_text("a red circle\na blue square\na green star\n<b>bold</b>\n")
    own = recipe(
        data=str(pictures), text_bank=str(tmp_path / "bank.txt"), steps=2, checkpoint_every=2, batch_size=8
    )
    report = distill([teacher], "half-depth", tmp_path / "student", settings(own), progress=False)
    assert report is not None
    assert report.settings["objectives"] == [["feature_mse", 4.0], ["contrastive_relation", 1.0]]
    assert report.sides[0].scores == {"agreement": 1.0}
    assert "<b>bold" not in (tmp_path / "student/report.html").read_text()
    with pytest.raises(
        EdgeClipError, match="none of interactive_contrast can be asked of pictures without texts"
    ):
        rehearse_distill(
            [teacher], "half", settings(replace(own, objectives=(("interactive_contrast", 1.0),)))
        )


def test_scores_and_right_answers_by_hand() -> None:
    eye = np.eye(3, dtype=np.float32)
    held = HeldOut(
        (0, 1, 2), ("a", "a", "b"), np.array([7, 7, 8]), (Seen(eye, eye), Seen(eye[[1, 0, 0]], eye))
    )
    assert held.scores(0)["score"] == 1.0
    assert held.right(1).tolist() == [True, True, False]  # an equal caption is as right
    assert held.scores(1)["image_to_text_r1"] == pytest.approx(2 / 3)
    checks.check_scores(held, ("t", "s"))
    swapped = replace(held, seen=held.seen[::-1])
    with pytest.raises(EdgeClipError, match=r"teacher t scores 0\.\d+ on 3 held-out pairs, student s 1\.000"):
        checks.check_scores(swapped, ("t", "s"))


def record(weights: str, spec: str = "t", **more: Any) -> TeacherRecord:
    return TeacherRecord(spec, "d", 1, 1.0, 1, Licence(weights, **more))


def test_passports_by_hand() -> None:
    own = Licence("Apache-2.0", code="MIT", data="own", credit="me", warnings=("w",))
    found = checks.passport(own, [record("CC-BY-NC-4.0", credit="they", data="own", warnings=("no money",))])
    assert found.weights == "Apache-2.0 AND CC-BY-NC-4.0"
    assert (found.code, found.data, found.credit) == ("MIT", "own", "me; they")
    assert found.warnings == ("w", "no money", "derived from the weights of t, licence CC-BY-NC-4.0")
    assert checks.passport(own, [record("unknown")]).weights == "unknown"
    assert checks.passport(own, [record("Apache-2.0")]).weights == "Apache-2.0"
    assert re.fullmatch(r"Apache-2\.0 AND \(A OR B\)", checks.passport(own, [record("A OR B")]).weights)
