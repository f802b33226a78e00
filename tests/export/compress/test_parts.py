"""The parts of compression, each against values worked out by hand or by other code."""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeclip.bundle import Bundle
from edgeclip.errors import CheckFailed, InputError
from edgeclip.export.compress import latency
from edgeclip.export.compress.budget import Budget, parse_budgets, shortfalls, within
from edgeclip.export.compress.curve import Point
from edgeclip.export.compress.data import halves
from edgeclip.export.compress.figures import Figures, Judge, neighbour_recall
from edgeclip.export.compress.latency import Latency
from edgeclip.export.compress.picture import draw
from edgeclip.export.compress.scores import refit_scores
from edgeclip.export.compress.search import (
    COARSE,
    WORST,
    Group,
    fewest,
    group_layers,
    left_of,
    order_of,
    sensitivities,
)
from edgeclip.export.compress.target import read_report

FIGURES = Figures(samples=8, distance=0.05, cosine=0.9991, cosine_min=0.99, recall=-0.5, top1=-0.3)


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("cosine=0.9991", True), ("cosine=0.9992", False), ("distance=0.05", True), ("distance=0.049", False),
        ("top1=-0.3", True), ("top1=-0.2", False), (" recall = -0.5 ", True), ("recall=0", False),
    ],
)  # fmt: skip
def test_a_budget_holds_up_to_its_bound(text: str, holds: bool) -> None:
    budget = Budget.parse(text)
    assert budget.holds(FIGURES) is holds
    assert str(budget) == text.replace(" ", "")
    assert (shortfalls([budget], FIGURES) == "") is holds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("speed=2", "--budget speed=2: expected FIGURE=NUMBER with a figure of cosine, distance, top1, recall, box, score, agreement, e.g. "),
        ("cosine", "--budget cosine: expected FIGURE=NUMBER"),
        ("cosine=", "got 'nothing'. Write it like cosine=0.999"),
        ("cosine=nan", "--budget cosine=nan: expected a number from 0 to 1"),
        ("distance=-1", "from 0 to 2 (relative distance to fp32, at most), got '-1'"),
        ("top1=0.3", "from -100 to 0 (zero-shot top-1, points that may be lost), got '0.3'. Write it like top1=-0.3"),
        ("recall=a lot", "got 'a lot'"),
    ],
)  # fmt: skip
def test_a_budget_that_says_nothing_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        Budget.parse(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_budgets_must_hold() -> None:
    both = parse_budgets(["cosine=0.999", "distance=0.04"])
    assert not within(both, FIGURES)
    assert shortfalls(both, FIGURES) == "distance 0.05, at most 0.04 allowed"
    assert [str(budget) for budget in parse_budgets([])] == ["distance=0.1"]
    with pytest.raises(InputError, match="--budget cosine: given more than once"):
        parse_budgets(["cosine=0.9", "cosine=0.8"])


def test_the_interval_is_the_sign_tests() -> None:
    """The ranks that tables of the binomial distribution give for 95 %, e.g. 6th and 15th of 20: 95.9 %."""
    for n, low, high in (
        (6, 1, 6),
        (9, 2, 8),
        (10, 2, 9),
        (15, 4, 12),
        (20, 6, 15),
        (25, 8, 18),
        (30, 10, 21),
    ):
        assert latency.interval([float(i) for i in range(1, n + 1)]) == (low, high), n
    with pytest.raises(ValueError, match="at least 6"):
        latency.interval([1.0] * 5)


def test_the_interval_covers_the_median() -> None:
    chance, covered = random.Random(1), 0
    for _ in range(2000):
        low, high = latency.interval(sorted(chance.expovariate(1) for _ in range(15)))
        covered += low <= 0.6931 <= high
    assert 0.955 < covered / 2000 < 0.985  # 0.9648 for 15 values, whatever they are drawn from


def test_graphs_are_timed_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    now, calls = [0.0], list[str]()
    slow = itertools.cycle([1.0, 5.0])  # the machine is five times slower in every other round

    def call(name: str, seconds: float) -> None:
        calls.append(name)
        now[0] += seconds

    factor = [1.0]

    def reference() -> None:
        factor[0] = next(slow) if len(calls) % 2 == 0 else factor[0]
        call("reference", 2.0 * factor[0])

    def candidate() -> None:
        factor[0] = next(slow) if len(calls) % 2 == 0 else factor[0]
        call("candidate", 1.0 * factor[0])

    monkeypatch.setattr(latency, "clock", lambda: now[0])
    found = latency.compare(reference, candidate, threads=2)
    assert (found.ratio, found.low, found.high, found.faster) == (2, 2, 2, True)
    assert found.rounds == latency.MIN_ROUNDS
    rounds = [calls[i : i + 2] for i in range(4, len(calls), 2)]
    assert rounds[:2] == [["reference", "candidate"], ["candidate", "reference"]]
    assert not Latency(1, 1, 1.0, 1.0, 1.1, 9, 2).faster, "an interval that touches 1 proves nothing"
    assert Latency(1, 1, 1.9, 1.8, 2.0, 9, 2).steady
    assert not Latency(1, 1, 9.7, 1.6, 11.5, 9, 2).steady


def test_few_layers_are_left_and_those_that_count() -> None:
    groups = group_layers([(f"l{i}", 10 * (i + 1)) for i in range(7)], most=3)
    assert [group.layers for group in groups] == [("l0", "l1", "l2"), ("l3", "l4", "l5"), ("l6",)]
    assert [group.parameters for group in groups] == [60, 150, 70]
    errors = [0.01, 0.3, 0.02, 0.2, 0.01]  # added up as squares: 0.3618 in all
    layers = [Group((f"l{i}",), 100, error) for i, error in enumerate(errors)]
    order = order_of(layers)
    assert [group.layers for group in order[:2]] == [("l1",), ("l3",)]
    assert order_of([Group(("small",), 10, 0.1), Group(("large",), 100, 0.2)])[0].layers == ("small",)

    def measure(count: int) -> float:
        left = left_of(order, count)
        return sum(e**2 for i, e in enumerate(errors) if f"l{i}" not in left) ** 0.5

    for bound in (0.35, 0.3, 0.21, 0.1, 0.021, 0.011):
        wanted = next((n for n in range(1, 5) if measure(n) <= bound), None)
        found = fewest(len(order), measure, lambda value, bound=bound: value <= bound)
        assert found == (None if wanted is None else (wanted, measure(wanted))), bound
    assert fewest(len(order), measure, lambda value: False) is None
    assert fewest(0, measure, lambda value: True) is None


def test_the_worst_groups_are_looked_into() -> None:
    layers = [(f"l{i}", 100) for i in range(48)]
    own = {f"l{i}": 0.3 if i == 29 else 0.01 + 0.0001 * i for i in range(48)}
    asked = list[Group]()

    def measure(group: Group) -> Group:
        asked.append(group)
        return replace(group, distance=sum(own[name] ** 2 for name in group.layers) ** 0.5)

    order = sensitivities(layers, measure)
    assert order[0].layers == ("l29",)
    assert len(asked) == COARSE + 4 * WORST
    assert sorted(name for group in order for name in group.layers) == sorted(own), "each layer once"
    assert [group.worth for group in order] == sorted((group.worth for group in order), reverse=True)


def test_halves_share_nothing_and_leave_nothing_out() -> None:
    both = halves(9)
    assert sorted([*both["calibration"], *both["held_out"]]) == list(range(9))
    assert both["held_out"].tolist() == [1, 3, 5, 7]  # every class folder lands in both


def rows(count: int, seed: int = 0, width: int = 12) -> NDArray[np.float32]:
    found = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@pytest.mark.parametrize("count", [4, 15, 40])
def test_recall_is_what_counting_gives(count: int) -> None:
    a, b = rows(count), rows(count) + 0.3 * rows(count, seed=1)
    k = min(10, (count - 1) // 2)

    def nearest(x: NDArray[Any], i: int) -> set[int]:
        cosines = {j: x[i] @ x[j] / np.linalg.norm(x[j]) for j in range(count) if j != i}
        return set(sorted(cosines, key=lambda j: -cosines[j])[:k])

    wanted = np.mean([len(nearest(a, i) & nearest(b, i)) / k for i in range(count)])
    assert neighbour_recall(a, b) == pytest.approx(wanted)
    assert neighbour_recall(a, a) == 1


def test_top1_is_agreement_or_accuracy() -> None:
    a, labels = rows(8), rows(3, seed=5)
    which = halves(8)
    b = a.copy()
    b[1] = labels[(a[1] @ labels.T).argmin()]  # the one held-out row that now says something else

    def cosines(found: NDArray[Any], half: Any) -> NDArray[Any]:
        return found[which[half]] @ labels.T

    agreement = Judge(a, which, cosines).figures(b, "held_out")
    assert agreement.top1 == -25
    assert Judge(a, which, cosines).figures(b, "calibration").top1 == 0
    right_now = {half: cosines(b, half).argmax(axis=1) for half in which}
    assert Judge(a, which, cosines, right_now).figures(b, "held_out").top1 == 25
    assert Judge(a, which).figures(b, "held_out").top1 is None
    fidelity = Judge(a, which, cosines).fidelity(b, "held_out", "image-fp32")
    assert (fidelity.samples, fidelity.top1_agreement, fidelity.against) == (4, 0.75, "image-fp32")
    with pytest.raises(CheckFailed, match="compressed graph: 1 of 4 embeddings are not finite"):
        Judge(a, which).figures(np.where(np.arange(8)[:, None] == 3, np.nan, a), "held_out")


def test_the_scale_is_fitted_to_what_cosines_became(tiny: Bundle) -> None:
    manifest = replace(tiny.manifest, logit_scale=8.0)
    a, labels, which = rows(60), rows(5, seed=5), halves(60)

    def cosines(found: NDArray[Any], half: Any) -> NDArray[Any]:
        return found[which[half]] @ labels.T

    found = refit_scores(
        Judge(a, which, cosines), 0.5 * a, manifest
    )  # every cosine half as large: the scale doubles
    assert not isinstance(found, str)
    assert found.scores.logit_scale == pytest.approx(16, rel=1e-3)
    assert found.error_before > 0.05 > 1e-3 > found.error_after
    assert (found.kept, found.float_error, found.against) == (True, 0, "fp32")

    truth = {half: cosines(a, half).argmax(axis=1) for half in which}
    truth["calibration"] = cosines(a, "calibration").argmin(axis=1)  # misleads: what is fitted helps nobody
    found = refit_scores(Judge(a, which, cosines, truth), a, manifest)
    assert not isinstance(found, str)
    assert found.error_after > found.error_before == found.float_error
    assert (found.kept, found.against) == (False, "labels")
    assert refit_scores(Judge(a, which), a, manifest) == "no labels"


def test_the_picture_shows_every_point_and_the_budget() -> None:
    faster = Latency(10, 20, 2, 1.9, 2.1, 9, 2)
    points = [
        Point("image", "image-fp32", "float", (), 4000, FIGURES, None, "reference"),
        Point("image", "image-fp32", "int8", (), 1000, FIGURES, faster, "refused"),
        Point("image", "image-fp32", "int8", ("a", "<b>"), 1500, FIGURES, faster, "chosen"),
        Point("image", "image-fp32", "fp8", (), 0, None, None, "refused", "does not run"),
        Point("text", "text-fp32", "float", (), 10, FIGURES, None, "reference"),
    ]
    for text in ("distance=0.1", "cosine=0.999", "top1=-0.3", "recall=-1"):
        tree = ElementTree.fromstring(draw(points, [Budget.parse(text)]))
        said = [element.text for element in tree.iter() if element.text]
        assert f"budget {text}" in said
        assert {
            "int8",
            "int8, 2 left (chosen)",
            "image-fp32",
            "text-fp32",
            "image tower",
            "text tower",
        } <= set(said)
        circles = [e for e in tree.iter() if e.tag.endswith("circle")]
        assert len(circles) == 4
        assert all(0 < float(c.attrib["cx"]) < 720 and 0 < float(c.attrib["cy"]) < 360 for c in circles)
    x = [float(c.attrib["cx"]) for c in circles[:3]]
    assert x[0] == x[2] < x[1], "twice as fast is half as far to the right"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "no device report (JSONDecodeError"),
        ("{}", "no device report (KeyError: 'variants')"),
        ('{"variants": {"a": {"ms": 1}}}', "no device report (TypeError"),
        ("[]", "no device report (TypeError"),
    ],
)
def test_what_is_no_device_report_is_refused(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        read_report(path)
    assert f"--device-report {path}: {message}" in str(caught.value)
    assert "--measure-only" in str(caught.value)
    with pytest.raises(InputError, match="cannot be read"):
        read_report(tmp_path / "none.json")


def test_a_figure_of_a_report_is_a_number_above_0(tmp_path: Path) -> None:
    figures = {
        "ms": 1.0,
        "reference_ms": 2.0,
        "ratio": -2.0,
        "low": 1.9,
        "high": 2.1,
        "rounds": 9,
        "threads": 2,
    }
    report = {
        "device": "d",
        "engine": "e",
        "flags": [],
        "threads": 2,
        "onnxruntime": "1",
        "variants": {"a": figures},
    }
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report))
    with pytest.raises(InputError, match="a figure is not above 0"):
        read_report(path)
    figures["ratio"] = 2.0
    path.write_text(json.dumps(report))
    found = read_report(path)
    assert found.variants["a"].faster
    assert found.variants["a"].device == "d"
    assert found.saturating, "not known counts as yes"
