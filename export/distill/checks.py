"""What is looked at before hours are spent: each finding one line that says what to do."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from edgeclip.bundle.manifest import Licence
from edgeclip.errors import InputError, TrainingError
from edgeclip.export.distill.held_out import Data, HeldOut
from edgeclip.export.distill.settings import Folder
from edgeclip.files import write_file
from edgeclip.models.training.recipe import Recipe
from edgeclip.models.training.reinforced import TeacherRecord

FORMAT, VERSION = "edgeclip.distillation", 1


@dataclass(frozen=True)
class State:
    """distill.json: what an output folder is of."""

    teachers: tuple[str, ...]  # digests of their weights
    student: str  # its name
    start: str  # digest of the student's weights before it learned
    ready: bool = False  # the student and the reinforced data are whole: processes that only train may begin

    def write(self, folder: Folder) -> None:
        """Whole or not at all."""
        told = {"format": FORMAT, "version": VERSION, **asdict(self)}
        write_file(folder.state, json.dumps(told, indent=1) + "\n")


def read_state(folder: Folder) -> State | None:
    """What the folder is of; None where nothing is there yet.

    Raises:
        InputError: it holds something else, or its distill.json cannot be read.
    """
    if not folder.state.exists():
        if folder.root.is_file() or (
            folder.root.is_dir() and {*folder.root.iterdir()} - {*folder.leftovers()}
        ):
            raise InputError(
                f"{folder.root}: already exists and holds no distillation. Choose another place."
            )
        return None
    try:
        found: dict[str, Any] = json.loads(folder.state.read_text(encoding="utf-8"))
        if found.pop("format") != FORMAT or found.pop("version") != VERSION:
            raise ValueError(f"not of format {FORMAT} {VERSION}")
        return replace(State(**found), teachers=tuple(found["teachers"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder.state}: cannot be read ({error}). Choose another output.") from error


def check_same(before: State | None, now: State, folder: Folder) -> None:
    """Refuse to go on with other teachers or another student.

    Raises:
        InputError: says which differs.
    """
    if before is None:
        return
    where, last = f"{folder.root}: was begun with", "Name that, or choose another output."
    if before.teachers != now.teachers:
        raise InputError(f"{where} other teachers, or their weights have changed. {last}")
    if before.student != now.student:
        raise InputError(f"{where} student {before.student!r}, now it is {now.student!r}. {last}")
    if before.start != now.start:
        raise InputError(f"{where} other weights of {now.student}, or with another seed. {last}")


def check_sizes(teachers: int, student: int, names: tuple[str, str], *, allow_larger: bool) -> None:
    """Refuse a student with more parameters than its teachers.

    Raises:
        InputError: it has; they may be swapped.
    """
    if student > teachers and not allow_larger:
        raise InputError(
            f"student {names[1]} has {student:,} parameters, its teacher {names[0]} {teachers:,}: are they swapped? "
            "If it is meant so, pass --allow-larger."
        )


def check_scores(held: HeldOut, names: tuple[str, str]) -> None:
    """Refuse teachers who know less than the student does before it learns from them.

    Args:
        held: held-out pairs as the teachers (model 0) and the student (model 1) see them.
    Raises:
        TrainingError: the student scores higher.
    """
    if held.groups is None or len(held.index) < 2:
        return
    teacher, student = (held.scores(number)["score"] for number in (0, 1))
    if student > teacher:
        raise TrainingError(
            f"teacher {names[0]} scores {teacher:.3f} on {len(held.index)} held-out pairs, student {names[1]} {student:.3f} before it "
            "learned anything: are they swapped? If it is meant so, pass --allow-weaker."
        )


def check_data(data: Data, recipe: Recipe) -> None:
    """Refuse data with fewer pairs than a batch, and an early stop without anything to stop by.

    Raises:
        TrainingError: one line says what to change.
    """
    if len(data.train) < recipe.batch_size:
        raise TrainingError(
            f"{recipe.data}: {len(data.train)} training pairs ({len(data.held_out)} held out), fewer than batch_size "
            f"{recipe.batch_size}. Bring more pairs, or pass --set batch_size={max(2, len(data.train))}."
        )
    if recipe.patience and not len(data.held_out):
        raise TrainingError(
            f"patience: {recipe.patience} checkpoints without a better score end the run, and none of {len(data.pairs.keys)} pairs is "
            "held out. Set validation_share above 0, or patience=0."
        )


def passport(student: Licence, teachers: Sequence[TeacherRecord]) -> Licence:
    """The student's licence passport: its weights are derived from its own start and from what its teachers said."""
    records = [(teacher.spec, teacher.licence) for teacher in teachers]
    weights = list(dict.fromkeys([student.weights, *(licence.weights for _, licence in records)]))
    credits = dict.fromkeys(filter(None, [student.credit, *(licence.credit for _, licence in records)]))
    data = dict.fromkeys([student.data, *(licence.data for _, licence in records)])
    derived = [f"derived from the weights of {spec}, licence {licence.weights}" for spec, licence in records]
    warnings = [*student.warnings, *(line for _, licence in records for line in licence.warnings), *derived]
    return Licence(
        # who owns a part that nobody licensed is not known: then neither is the licence of the whole
        weights="unknown" if "unknown" in weights else _all_of(weights),
        code=student.code,
        data="unknown" if "unknown" in data else _all_of(list(data)),
        credit="; ".join(credits),
        warnings=tuple(dict.fromkeys(warnings)),
    )


def _all_of(licences: list[str]) -> str:
    """As an SPDX expression."""
    if len(licences) == 1:
        return licences[0]
    return " AND ".join(f"({one})" if " " in one else one for one in licences)
