"""From a teacher to a verified student: checks, reinforced data, training, bundle, report. Each part goes on where a killed call stopped.

report = distill(["hf:openai/clip-vit-base-patch16"], "half", Path("student"), settings)
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

from edgeclip.bundle import Bundle, open_bundle
from edgeclip.errors import BundleError, InputError
from edgeclip.export.api import export_bundle
from edgeclip.export.compress.api import CompressSettings
from edgeclip.export.compress.curve import Tower
from edgeclip.export.compress.together import export_compressed
from edgeclip.export.distill import checks, page
from edgeclip.export.distill.budget import choose
from edgeclip.export.distill.calibrated import check_finishable
from edgeclip.export.distill.checks import State
from edgeclip.export.distill.held_out import Data, HeldOut, look, open_data, pair_samples
from edgeclip.export.distill.probe import probe
from edgeclip.export.distill.qat import QatSettings, finish
from edgeclip.export.distill.rehearsal import keep_pictures, rehearse_distillation
from edgeclip.export.distill.reinforce import reinforce
from edgeclip.export.distill.report import (
    BUNDLE,
    SOURCE,
    TEACHER,
    DistillReport,
    Side,
    activations,
    examples,
    machine,
    read_curve,
    versions,
    weights_bytes,
)
from edgeclip.export.distill.settings import (
    RECIPE,
    DistillSettings,
    Folder,
    LatencyBudget,
    for_student,
    placed,
    started,
)
from edgeclip.export.distill.teachers import SourceTeacher, Teachers, is_bundle, open_teachers
from edgeclip.export.distill.timing import Times, doubt, threads, time_models
from edgeclip.export.precision.finished import load_ranges
from edgeclip.export.steps import Steps
from edgeclip.files import new_folder, write_file
from edgeclip.models.source import Source
from edgeclip.models.sources import load_source
from edgeclip.models.students import is_made
from edgeclip.models.students import student as student_of
from edgeclip.models.training import TrainResult, train
from edgeclip.models.training.checkpoint import write_source
from edgeclip.models.training.distributed import pick_device
from edgeclip.models.training.loop import told_once
from edgeclip.models.training.objectives import Objectives
from edgeclip.models.training.reinforced import open_reinforced
from edgeclip.models.training.starts import start

SCORED = 256  # held-out pairs at most that teachers and student are compared on before hours are spent
COMPRESSED_ON = 128  # training pictures at most, and their texts, on which int8 is compared with fp32
POLL_S = 0.5  # between looks of processes that wait for the first

log = logging.getLogger(__name__)

Tell = Callable[[str, float | None], None]


@dataclass(frozen=True)
class Student:
    """A student before it learns."""

    name: str
    chosen: str  # why it; "" where it was named
    source: Source


@dataclass(frozen=True)
class Prepared:
    """All that was opened and checked."""

    teachers: Teachers
    student: Student
    learner: SourceTeacher  # the student, as teachers are asked
    data: Data
    settings: DistillSettings  # its recipe resolved


@told_once()
def distill(
    teachers: Sequence[str],
    student: str | LatencyBudget,
    output: Path,
    settings: DistillSettings | None = None,
    *,
    tell: Tell = lambda name, seconds: None,
    progress: bool = True,
) -> DistillReport | None:
    """Teach a student, and leave it as a verified bundle with a report; or go on where an earlier call stopped.

    Args:
        teachers: sources and bundles, as `open_teachers` takes them; several are an ensemble.
        student: as `models.students.student` names them (it inherits from the first teacher), "recipe" for the model that the recipe
            describes, or a budget that is looked up in measured reports.
        output: the folder, see `Folder`.
        tell: called with each phase's name when it starts (None) and with its seconds when it ends.
        progress: show bars on stderr where that is a terminal.
    Returns:
        what report.json holds; None in processes of `torchrun` other than the first, which only train.
    Raises:
        InputError, TrainingError, SourceError, BundleError: a check at the start fails, or data cannot be used.
        CheckFailed: the bundle does not agree with the student.
        KeyboardInterrupt: stopped; the same call goes on.
    """
    settings, steps, folder = settings or DistillSettings(), Steps(tell), Folder(Path(output))
    if int(os.environ.get("RANK", "0")):
        _wait_for(folder)
        train(placed(_resolved(settings, student), folder), folder.run, progress=False)
        return None
    with contextlib.ExitStack() as stack:
        with steps("open and check teachers, student and data"):
            before = checks.read_state(folder)
            ready = stack.enter_context(
                prepared(teachers, student, settings, checked=before is not None and before.ready)
            )
        settings, recipe = ready.settings, placed(ready.settings.recipe, folder)
        digests = tuple(record.digest for record in ready.teachers.records)
        state = State(digests, ready.student.name, ready.learner.record.digest)
        checks.check_same(before, state, folder)
        folder.clear()
        if before is None:
            state.write(folder)
        if not (before and before.ready):
            _write_start(folder, ready)
        with steps("reinforce the data"):
            reinforce(
                ready.teachers, recipe.data, folder.reinforced, settings.reinforced_by(), progress=progress
            )
        replace(state, ready=True).write(folder)
    with steps("train"):
        trained = train(recipe, folder.run, progress=progress)
    source = replace(load_source(str(trained.model)), name=folder.root.resolve().name)
    ranges: Path | None = None
    if settings.finish_steps:
        with steps("finish for int8"):
            wanted = QatSettings(steps=settings.finish_steps)
            done = finish(source, recipe, folder.finished, wanted, progress=progress)
        source, ranges = replace(load_source(str(done.model)), name=source.name), done.ranges
    with steps("export and verify the bundle"):
        bundle = _exported(source, ready.data, ranges, folder, settings)
    with steps("compare with the teacher, write the report"):
        return _reported(teachers, ready, trained, source, bundle, folder, steps)


@told_once()
def rehearse_distill(
    teachers: Sequence[str], student: str | LatencyBudget, settings: DistillSettings | None = None
) -> dict[str, Any]:
    """Check everything, and send a sample of the data the whole way; nothing is kept.

    Returns:
        "student", "chosen", "teachers", "parameters", "width", "recipe", and as `rehearse_distillation`.
    Raises:
        As `distill`.
    """
    with prepared(teachers, student, settings or DistillSettings()) as ready:
        told = rehearse_distillation(ready.teachers, ready.student.source, ready.data, ready.settings)
        return {
            "student": ready.student.name,
            "chosen": ready.student.chosen,
            "teachers": [record.spec for record in ready.teachers.records],
            "parameters": {
                "teacher": ready.teachers.parameters,
                "student": ready.learner.record.parameters,
            },
            "width": {"teacher": ready.teachers.dim, "student": ready.student.source.embedding_dim},
            "recipe": ready.settings.recipe.to_json(),
            **told,
        }


@contextlib.contextmanager
def prepared(
    teachers: Sequence[str], student: str | LatencyBudget, settings: DistillSettings, *, checked: bool = False
) -> Iterator[Prepared]:
    """Open teachers, student and data, and check them.

    Args:
        checked: an earlier call has embedded samples already: only what costs nothing is checked again.
    Raises:
        As `distill`.
    """
    recipe = for_student(settings.recipe)
    Objectives(recipe.objectives)  # names, before anything is opened
    reinforced_by = settings.reinforced_by()
    device = pick_device(recipe.device)
    data = open_data(recipe)
    checks.check_data(data, recipe)
    with open_teachers(teachers, device=recipe.device, allow_pickle=settings.allow_pickle) as opened:
        if not checked:
            probe(opened, data.pairs, reinforced_by, data.bank)  # before anything is made of its weights
        learns = _student(teachers[0], student, settings, data)
        if learns.source.preprocessing is None or learns.source.text is None:
            raise InputError(
                f"student {learns.name}: expected an image tower and a text tower, one is missing."
            )
        if settings.finish_steps:
            check_finishable(learns.source)
            if int(os.environ.get("WORLD_SIZE", "1")) > 1:
                raise InputError(
                    "--finish: runs in one process. Leave it out under torchrun; behind it, the same command with --finish and without torchrun."
                )
        learner = SourceTeacher(learns.source, device)
        names = (" and ".join(teachers), learns.name)
        checks.check_sizes(
            opened.parameters, learner.record.parameters, names, allow_larger=settings.allow_larger
        )
        if not (checked or settings.allow_weaker or data.bank):
            checks.check_scores(look((opened, Teachers((learner,))), data, SCORED), names)
        learner.close()  # its weights are written, and a GPU is the teachers'
        if learns.name == RECIPE:
            recipe = started(recipe)
        yield Prepared(opened, learns, learner, data, replace(settings, recipe=recipe))


def _resolved(settings: DistillSettings, student: str | LatencyBudget) -> Any:
    recipe = for_student(settings.recipe)
    return started(recipe) if student == RECIPE else recipe


def _student(teacher: str, wanted: str | LatencyBudget, settings: DistillSettings, data: Data) -> Student:
    """By name, by what the recipe describes, or by a budget."""
    if wanted == RECIPE:
        return Student(RECIPE, "", start(settings.recipe))
    seed = settings.recipe.seed
    if is_bundle(teacher):
        if isinstance(wanted, str) and not is_made(wanted):
            return Student(wanted, "", load_source(wanted, allow_pickle=settings.allow_pickle))
        raise InputError(
            f"student {wanted if isinstance(wanted, str) else '--latency'}: inherits a teacher's weights, and {teacher} is a bundle, which "
            "holds graphs. Name the source that it was made of as the first teacher, or another source as student."
        )
    source = load_source(teacher, allow_pickle=settings.allow_pickle)
    samples = pair_samples(source, data)
    if isinstance(wanted, str):
        return Student(wanted, "", student_of(source, wanted, seed=seed, samples=samples))
    name, measured = choose(source, wanted.ms, wanted.reports, percentile=wanted.percentile, samples=samples)
    why = f"Chosen for {wanted.ms:g} ms: {measured.percentile} {measured.ms:.3g} ms, {measured.task} on {measured.device}, measured in {measured.report.name}."
    return Student(name, why, student_of(source, name, seed=seed, samples=samples))


def _wait_for(folder: Folder) -> None:
    """Until the first process has made what is trained on; where it fails, `torchrun` ends the others."""
    while not ((state := checks.read_state(folder) if folder.state.exists() else None) and state.ready):
        time.sleep(POLL_S)


def _write_start(folder: Folder, ready: Prepared) -> None:
    """The student's first weights, with the passport of what will be derived from its teachers."""
    source = ready.student.source
    licence = checks.passport(source.licence, ready.teachers.records)
    with new_folder(folder.start, overwrite=True) as scratch:
        write_source(scratch, replace(source, licence=licence))


def _exported(
    source: Source, data: Data, ranges: Path | None, folder: Folder, settings: DistillSettings
) -> Bundle:
    """The student as a bundle, int8 where it was finished for that; one that was made of the same weights for the same targets is kept."""
    with contextlib.suppress(BundleError):
        if folder.bundle.exists():
            there = open_bundle(str(folder.bundle))
            wanted = source.digest, list(settings.export.targets)
            if (there.manifest.source_digest, there.manifest.provenance.get("targets")) == wanted:
                return there
    export = replace(settings.export, overwrite=True)
    if ranges is None:
        return export_bundle(source, folder.bundle, settings=export).bundle
    with tempfile.TemporaryDirectory() as scratch:
        pictures, texts = Path(scratch) / "pictures", Path(scratch) / "texts.txt"
        # not the held-out ones: they are for the report
        kept = keep_pictures(data, data.train, pictures, COMPRESSED_ON)
        lines = data.bank or [" ".join(caption.split()) for _, captions in kept for caption in captions[:1]]
        texts.write_text("\n".join(dict.fromkeys(lines)), encoding="utf-8")
        # its speed is the report's to tell, and the user asked for int8
        compress = CompressSettings(
            methods=("int8",), ranges=ranges, towers=_towers_in(ranges), images=pictures, texts=texts,
            unproven=True, overwrite=True,
        )  # fmt: skip
        return export_compressed(source, folder.bundle, settings=export, compress=compress)[1].bundle


def _towers_in(ranges: Path) -> tuple[Tower, ...]:
    """Those that have layers in int8; a tower may be too small for any."""
    found = load_ranges(ranges)
    return tuple(tower for tower in get_args(Tower) if tower in found)


def _reported(
    specs: Sequence[str],
    ready: Prepared,
    trained: TrainResult,
    source: Source,
    bundle: Bundle,
    folder: Folder,
    steps: Steps,
) -> DistillReport:
    settings, data = ready.settings, ready.data
    device = settings.recipe.device
    with (
        open_teachers(specs, device=device, allow_pickle=settings.allow_pickle) as teachers,
        Teachers((SourceTeacher(source, pick_device(device)),)) as student,
        open_teachers([str(folder.bundle)]) as shipped,
    ):
        models = (teachers, student, shipped)
        held = look(models, data)
        times: Times | None = None
        if settings.timing_s:
            times = time_models(models, (*held.texts, "a photo of a cat")[0], settings.timing_s)
            if busy := doubt(times.others):
                log.warning("%s", busy)
        sides = _sides(specs, models, source, bundle, held, times)
        others = times.others if times else None
        report = _report(ready, trained, bundle, folder, steps, held, sides, others)
    write_file(folder.report, json.dumps(report.to_dict(), indent=1, ensure_ascii=False) + "\n")
    write_file(folder.report.with_suffix(".html"), page.of_report(report, data))
    return report


def _sides(
    specs: Sequence[str],
    models: Sequence[Teachers],
    source: Source,
    bundle: Bundle,
    held: HeldOut,
    times: Times | None,
) -> tuple[Side, ...]:
    shipped = sum(entry.size for entry in bundle.manifest.files.values())
    kinds = [is_bundle(spec) for spec in specs]
    runs = [" and ".join(dict.fromkeys("ONNX Runtime" if one else "PyTorch fp32" for one in kinds)), "PyTorch fp32", "ONNX Runtime"]  # fmt: skip
    names = [" and ".join(specs), source.name, bundle.root.name]
    sizes = [sum(map(_bytes_of, specs, models[TEACHER].members)), weights_bytes(source), shipped]
    counted = [_activations(models[TEACHER]), _activations(models[SOURCE]), None]
    found = []
    for i, role in ((TEACHER, "teacher"), (SOURCE, "student"), (BUNDLE, "student, bundle")):
        scores = held.scores(i) if held.index else {}
        # a compressed graph has the same parameters in another form
        parameters = models[min(i, SOURCE)].parameters
        took = (times.pictures[i], times.texts[i]) if times else (None, None)
        found.append(Side(role, names[i], runs[i], parameters, sizes[i], counted[i], scores, *took))
    return tuple(found)


def _bytes_of(spec: str, member: Any) -> int:
    if is_bundle(spec):
        files = open_bundle(spec.removeprefix("bundle:")).manifest.files
        return sum(entry.size for entry in files.values())
    return 4 * int(member.record.parameters)


def _activations(model: Teachers) -> int | None:
    """None where a member is a bundle."""
    found = 0
    for member in model.members:
        if not isinstance(member, SourceTeacher):
            return None
        found += activations(member.model, member.spec.size)
    return found


def _report(
    ready: Prepared,
    trained: TrainResult,
    bundle: Bundle,
    folder: Folder,
    steps: Steps,
    held: HeldOut,
    sides: tuple[Side, ...],
    others: float | None,
) -> DistillReport:
    settings, recipe = ready.settings, ready.settings.recipe
    manifest = open_reinforced(folder.reinforced)[1]
    objectives = tuple(entry for entry, _ in recipe.objectives if isinstance(entry, str))
    right = (held.right(TEACHER), held.right(BUNDLE)) if held.index else None
    own = {
        "views": settings.views,
        "captions": settings.captions,
        "targets": ", ".join(settings.export.targets),
    }
    return DistillReport(
        bundle=str(bundle.root),
        student=ready.student.name,
        chosen=ready.student.chosen,
        teachers=tuple(record.spec for record in ready.teachers.records),
        sides=sides,
        held_out=len(held.index),
        teacher_only=int((right[0] & ~right[1]).sum()) if right else 0,
        student_only=int((right[1] & ~right[0]).sum()) if right else 0,
        curve=read_curve(folder.run / "metrics.jsonl", objectives),
        examples=examples(held, ready.data, settings.examples),
        best_step=trained.best_step,
        steps=trained.steps,
        reinforced={
            "pairs": manifest.stored,
            "views": manifest.plan.views,
            "bytes": manifest.size_bytes,
            "bytes_a_pair": round(manifest.bytes_a_pair, 1),
            "unreadable": manifest.unreadable,
        },
        seconds={name: round(value, 1) for name, value in steps.seconds.items()},
        settings={**_told(recipe.to_json()), **own},
        versions=versions(),
        device=machine(),
        threads=threads() if settings.timing_s else {},
        others=others,
        licence=asdict(bundle.manifest.licence),
    )


def _told(recipe: dict[str, Any]) -> dict[str, Any]:
    """Settings that were changed from what every recipe starts with."""
    from edgeclip.models.training import Recipe

    default = Recipe().to_json()
    return {name: value for name, value in recipe.items() if value != default[name]}
