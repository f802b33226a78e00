"""The report as one HTML file: nothing is fetched, no script runs."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence

from PIL import Image

from edgeclip.bench.render.grid import grid
from edgeclip.bench.render.page import (
    bullets,
    card,
    facts,
    figure,
    legend,
    page,
    paragraph,
    plots,
    section,
    table,
)
from edgeclip.bench.render.svg import Plot, axis, tag, text
from edgeclip.bench.render.words import a_few, clean, fixed, number, percent, size
from edgeclip.errors import InputError
from edgeclip.export.distill.held_out import Data
from edgeclip.export.distill.report import BUNDLE, SOURCE, TEACHER, Curve, DistillReport, Example, Side
from edgeclip.export.distill.timing import doubt
from edgeclip.runtime.images import decode

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
SIDE, QUALITY = 192, 80  # of a picture: pixels at most, and of its JPEG
STYLE = """
.answers { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 200px), 1fr)); gap: 1rem; margin: 0.6rem 0 1.2rem; }
.answers figure { margin: 0; }
.answers img { width: 100%; max-width: 192px; height: auto; display: block; border-radius: 4px; }
.answers dl { grid-template-columns: max-content 1fr; gap: 0 0.6rem; font-size: 0.8125rem; }
"""
SCORES = {
    "score": "retrieval R@1, mean of both ways",
    "image_to_text_r1": "picture finds its text",
    "text_to_image_r1": "text finds its picture",
    "agreement": "names pictures as the teacher does",
}


def of_report(report: DistillReport, data: Data) -> str:
    """The whole page. `data`: the pictures of the examples are read from it."""
    name = report.sides[SOURCE].name
    title = f"{name}: distilled from {' and '.join(report.teachers)}"
    parts = [
        tag("header", tag("h1", text(title)) + paragraph(_in_brief(report)) + bullets(_doubts(report), "doubts")),
        _cards(report),
        _sides(report),
        _curves(report),
        _answers(report, data),
        section("Reinforced data", facts(_reinforced(report))),
        section("Licence", facts(_licence(report)), bullets(report.licence["warnings"], "notes")),
        section("Settings", facts((key, _said(value)) for key, value in report.settings.items())),
        section("What ran, and on what", facts([("machine", report.device), *report.versions.items(), *_phases(report)])),
    ]  # fmt: skip
    head = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n<style>{STYLE}</style>\n'
    return page(title, "\n".join(parts), head)


def _in_brief(report: DistillReport) -> str:
    teacher, student = report.sides[TEACHER], report.sides[BUNDLE]
    smaller = f"{number(teacher.parameters / max(1, student.parameters))} times fewer parameters"
    known = ""
    for key, words in SCORES.items():
        if key in student.scores and key in ("score", "agreement"):
            known = f", {words} {percent(student.scores[key])}" + (
                f" (teacher {percent(teacher.scores[key])})" if key == "score" else ""
            )
    chosen = f" {report.chosen}" if report.chosen else ""
    return f"Student {report.student}: {smaller}{known}, on {a_few(report.held_out, 'held-out picture')}.{chosen}"


def _doubts(report: DistillReport) -> list[str]:
    found = []
    if not report.held_out:
        found.append("No pair was held out: what the student knows was not measured.")
    elif report.held_out < 100:
        found.append(
            f"Only {a_few(report.held_out, 'pair')} were held out: scores may be off by some points."
        )
    if busy := doubt(report.others):
        found.append(busy)
    if report.best_step is not None:
        found.append("The checkpoint was chosen on these held-out pairs: on others expect a little less.")
    source, bundle = (report.sides[i].scores.get("score") for i in (SOURCE, BUNDLE))
    if source is not None and bundle is not None and abs(source - bundle) > 0.005:
        found.append(f"The bundle scores {percent(bundle)}, its source in PyTorch {percent(source)}.")
    return found


def _cards(report: DistillReport) -> str:
    teacher, student = report.sides[TEACHER], report.sides[BUNDLE]
    cards = [
        card("parameters", number(student.parameters), f"teacher {number(teacher.parameters)}"),
        card("bundle", size(student.size_bytes), f"teacher {size(teacher.size_bytes)}, {teacher.runs_in}"),
    ]
    for key, words in SCORES.items():
        if key in student.scores:
            more = "" if key == "agreement" else f"teacher {percent(teacher.scores[key])}"
            cards.append(card(words, percent(student.scores[key]), more))
    source = report.sides[SOURCE]
    if student.image and teacher.image and source.image:
        there = f", the student there {fixed(source.image.p50_ms)} ms" if "PyTorch" in teacher.runs_in else ""
        told = f"teacher {fixed(teacher.image.p50_ms)} ms in {teacher.runs_in}{there}"
        cards.append(card("one picture, p50", f"{fixed(student.image.p50_ms)} ms", told))
    return tag("div", "".join(cards), class_="cards")


def _sides(report: DistillReport) -> str:
    sides = report.sides
    rows = [
        ["name", *(side.name for side in sides)],
        ["runs in", *(side.runs_in for side in sides)],
        ["parameters", *(f"{side.parameters:,}" for side in sides)],
        ["size", *(size(side.size_bytes) for side in sides)],
        ["activations", *("-" if side.activations is None else f"{side.activations:,}" for side in sides)],
        *([words, *(percent(side.scores.get(key)) for side in sides)] for key, words in SCORES.items() if key in sides[BUNDLE].scores),
        *_latencies(sides),
    ]  # fmt: skip
    threads = ", ".join(f"{name} {a_few(count, 'thread')}" for name, count in report.threads.items())
    notes = (
        "Size: of a source its weights in fp32, of a bundle all files. Activations: numbers that linear and convolutional layers of the image "
        "tower give for one picture.",
        f"One prepared picture, or one text, a call, all in turns: {threads}. PyTorch and ONNX Runtime differ in speed: compare like with like."
        if threads
        else "Latencies were not measured.",
    )
    found = grid("Side by side", "|".join(["", *(side.role for side in sides)]), rows, notes)
    return section("Side by side", table(found))


def _latencies(sides: Sequence[Side]) -> list[list[str]]:
    if any(side.image is None for side in sides):
        return []
    return [
        [f"one {what}, {name} ms", *(fixed(getattr(getattr(side, part), f"{name}_ms")) for side in sides)]
        for what, part in (("picture", "image"), ("text", "text"))
        for name in ("p50", "p90")
    ]


def _curves(report: DistillReport) -> str:
    curve, parts = report.curve, []
    teacher = report.sides[TEACHER].scores.get("score")
    if curve.score:
        parts.append(
            figure(
                "Held-out score.",
                _score_plot(curve, teacher, report.best_step),
                "Of every checkpoint; the dot is what was shipped.",
            )
        )
    if curve.loss:
        lines = {"whole": curve.loss, **curve.terms}
        colours = {name: f"c{1 + i % 8}" for i, name in enumerate(lines)}
        parts.append(
            figure(
                "Loss.",
                _loss_plot(lines, colours),
                "Each objective as it is, the whole weighted.",
                legend((name, css) for name, css in colours.items()),
            )
        )
    return section("Over training", plots(*parts) if parts else paragraph("No metrics were kept."))  # fmt: skip


def _score_plot(curve: Curve, teacher: float | None, best: int | None) -> str:
    levels = [teacher] if teacher is not None else []
    plot = Plot(
        "Held-out score by step",
        axis("step", [float(step) for step, _ in curve.score], zero=True),
        axis("score", [*(value for _, value in curve.score), *levels], zero=True),
    )
    plot.line([(float(step), value) for step, value in curve.score], "c1")
    if teacher is not None:
        plot.level(teacher, f"teacher {number(teacher)}")
    for step, value in curve.score:
        if step == best:
            plot.dot(
                step, value, "c1", f"step {step}: {number(value)}", f"student {number(value)}", below=True
            )
    return plot.svg()


def _loss_plot(lines: dict[str, tuple[tuple[int, float], ...]], colours: dict[str, str]) -> str:
    every = [point for line in lines.values() for point in line]
    plot = Plot(
        "Loss by step",
        axis("step", [float(step) for step, _ in every], zero=True),
        axis("loss", [value for _, value in every], zero=True),
    )
    for name, line in lines.items():
        plot.line([(float(step), value) for step, value in line], colours[name])
    return plot.svg()


def _answers(report: DistillReport, data: Data) -> str:
    kinds = {
        "teacher": f"The teacher is right, the student is not ({report.teacher_only} of {report.held_out})",
        "student": f"The student is right, the teacher is not ({report.student_only} of {report.held_out})",
        "": f"They differ ({report.teacher_only} of {report.held_out})",
    }
    parts = []
    for kind, title in kinds.items():
        shown = [example for example in report.examples if example.kind == kind]
        if shown or (kind and report.held_out and "agreement" not in report.sides[BUNDLE].scores):
            drawn = tag("div", "".join(_answer(example, data) for example in shown), class_="answers")
            parts.append(tag("h3", text(title)) + (drawn if shown else paragraph("No such picture.")))
    note = "Held-out pictures with the text that each holds closest, and its cosine; the surest first."
    return section("Where they differ", paragraph(note), *parts) if parts else ""


def _answer(example: Example, data: Data) -> str:
    said = [
        ("truth", example.truth),
        ("teacher", f"{example.teacher} ({number(example.teacher_cosine)})"),
        ("student", f"{example.student} ({number(example.student_cosine)})"),
    ]
    told = facts((name, answer) for name, answer in said if answer)
    return tag("figure", _picture(example, data) + tag("figcaption", told))


def _picture(example: Example, data: Data) -> str:
    try:
        image: Image.Image = decode(data.pairs.read(example.index)[0], where=example.key).image.copy()
    except (InputError, OSError):
        return paragraph("The picture cannot be read any more.")
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    shown = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return (
        f'<img src="{shown}" alt="{text(clean(example.key))}" width="{image.width}" height="{image.height}">'
    )


def _reinforced(report: DistillReport) -> list[tuple[str, str]]:
    told = report.reinforced
    return [
        ("training pairs", f"{told['pairs']:,}"),
        ("views of each", str(told["views"])),
        ("on disk", f"{size(told['bytes'])}, {number(told['bytes_a_pair'])} bytes a pair"),
        ("left out", a_few(told["unreadable"], "unreadable pair")),
    ]


def _licence(report: DistillReport) -> list[tuple[str, str]]:
    return [
        (key, str(report.licence[key]))
        for key in ("weights", "code", "data", "credit")
        if report.licence[key]
    ]


def _phases(report: DistillReport) -> list[tuple[str, str]]:
    return [(name, f"{number(seconds)} s") for name, seconds in report.seconds.items()]


def _said(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
