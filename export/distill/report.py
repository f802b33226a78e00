"""The report of a distillation: teacher and student side by side, the curve, pictures on which they differ. For programs; page.py shows it."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edgeclip import __version__
from edgeclip.export.distill.held_out import Data, HeldOut
from edgeclip.export.distill.timing import Took
from edgeclip.models.source import DualEncoder, Source

FORMAT, FORMAT_VERSION = "edgeclip.distill", (1, 0)
TEACHER, SOURCE, BUNDLE = range(3)  # sides, and models of `HeldOut`


@dataclass(frozen=True)
class Side:
    """A teacher or a student: what it costs and what it knows."""

    role: str  # "teacher", "student", "student, bundle"
    name: str
    runs_in: str  # "PyTorch fp32", "ONNX Runtime"
    parameters: int
    size_bytes: int  # of its weights, or of all files of its bundle
    activations: (
        int | None
    )  # numbers that the linear and convolutional layers of its image tower give for a picture; None: a bundle
    scores: dict[str, float]  # 0-1, on the held-out pairs; {}: none
    image: Took | None  # None: not timed
    text: Took | None


@dataclass(frozen=True)
class Example:
    """A held-out picture on which teacher and student differ."""

    key: str
    index: int  # in the data
    kind: str  # "teacher" or "student": who is right; "": pictures without texts, where they only differ
    truth: str
    teacher: str  # the text that it holds closest
    student: str
    teacher_cosine: float  # of its answer
    student_cosine: float


@dataclass(frozen=True)
class Curve:
    """What metrics.jsonl says, by step."""

    score: tuple[tuple[int, float], ...]
    loss: tuple[tuple[int, float], ...]
    terms: dict[str, tuple[tuple[int, float], ...]]  # each objective, unweighted


@dataclass(frozen=True)
class DistillReport:
    """A finished distillation."""

    bundle: str
    student: str  # as it was asked for
    chosen: str  # why this student; "": by name
    teachers: tuple[str, ...]
    sides: tuple[Side, ...]
    held_out: int
    teacher_only: int  # held-out pictures that the teacher names rightly and the student does not
    student_only: int
    curve: Curve
    examples: tuple[Example, ...]
    best_step: int | None
    steps: int
    reinforced: dict[str, Any]  # pairs, views, bytes, bytes_a_pair
    seconds: dict[str, float]  # of this call, by phase
    settings: dict[str, Any]  # the resolved recipe and what else was chosen
    versions: dict[str, str]
    device: str
    threads: dict[str, int]  # of each engine in the timed calls; {}: not timed
    others: float | None  # share of the cores that other programs took meanwhile; None: not timed, or unknown
    licence: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"format": FORMAT, "format_version": list(FORMAT_VERSION), **asdict(self)}


def versions() -> dict[str, str]:
    """Of what made the numbers."""
    names = ("torch", "onnxruntime", "numpy")
    return {
        "edgeclip": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in names},
    }


def machine() -> str:
    """This one, in words."""
    from edgeclip.bench.device.describing import describe_device

    return describe_device().name


def weights_bytes(source: Source) -> int:
    """Of its parameters as they lie in memory."""
    return sum(parameter.numel() * parameter.element_size() for parameter in source.model.parameters())


@torch.no_grad()
def activations(model: DualEncoder, size: tuple[int, int]) -> int:
    """Numbers that linear and convolutional layers of the image tower give for one picture.

    Args:
        size: (H, W) of the pictures.
    """
    counted: list[int] = []

    def count(module: nn.Module, inputs: Any, output: Any) -> None:
        counted.append(output.numel())

    tower = model.image
    assert tower is not None
    layers = [module for module in tower.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    device = next(model.parameters()).device
    try:
        model.eval()
        model.encode_image(torch.zeros(1, 3, *size, device=device))
    finally:
        for hook in hooks:
            hook.remove()
    return sum(counted)


def read_curve(metrics: Path, objectives: tuple[str, ...]) -> Curve:
    """The run's record. A line that was cut off is passed over."""
    lines: list[dict[str, Any]] = []
    if metrics.exists():
        for line in metrics.read_text().splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:
                continue

    def points(name: str) -> tuple[tuple[int, float], ...]:
        return tuple((line["step"], float(line[name])) for line in lines if name in line)

    return Curve(
        points("score"), points("loss"), {name: found for name in objectives if (found := points(name))}
    )


def examples(held: HeldOut, data: Data, most: int) -> tuple[Example, ...]:
    """Pictures on which the student's bundle and the teacher differ, `most` of each kind: those that the one who is right is surest of."""
    if not held.index:
        return ()
    teacher, student = held.seen[TEACHER], held.seen[BUNDLE]
    answers = teacher.nearest, student.nearest
    sure = [(one.image @ one.text.T).max(axis=1) for one in (teacher, student)]
    if held.groups is None:
        kinds = [("", answers[0] != answers[1], sure[0])]
    else:
        right = held.right(TEACHER), held.right(BUNDLE)
        kinds = [("teacher", right[0] & ~right[1], sure[0]), ("student", right[1] & ~right[0], sure[1])]
    found: list[Example] = []
    for kind, differ, by in kinds:
        places = np.flatnonzero(differ)
        for i in places[np.argsort(-by[places], kind="stable")][:most]:
            index = held.index[i]
            found.append(
                Example(
                    data.pairs.keys[index], index, kind, "" if held.groups is None else held.texts[i],
                    held.texts[answers[0][i]], held.texts[answers[1][i]], float(sure[0][i]), float(sure[1][i]),
                )
            )  # fmt: skip
    return tuple(found)
