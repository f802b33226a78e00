"""Variants run in turn; those that do not open say why; what the bundle states of them is passed on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from edgeclip.bench import variants as measuring
from edgeclip.bench.between import Nothing
from edgeclip.bench.settings import preset
from edgeclip.bench.variants import LEAST, SPINNING_NS, in_turn, measure_variants
from edgeclip.bundle import Axes, Bundle, Fidelity, seal
from tests.bench.test_stages import jpegs
from tests.mutants import broken
from tests.runtime.toy import make_bundle

FIDELITY = Fidelity(10, 0.1, 0.99, 0.98, 0.97, 0.05, 0.9)
SETTINGS = preset("quick", part_seconds=0.003, threads=1)


class Watch:
    """Time that work moves, and each look at it by 1 us."""

    def __init__(self) -> None:
        self.now = 0
        self.order: list[str] = []
        self.begun: list[int] = []

    def __call__(self) -> int:
        self.now += 1000
        return self.now

    def turn(self, name: str, ms: float) -> Callable[[], object]:
        def run() -> None:
            self.order.append(name)
            self.begun.append(self.now)
            self.now += int(1e6 * ms)

        return run


def test_turns_alternate_and_each_gets_its_own_time() -> None:
    watch = Watch()
    found = in_turn(
        [watch.turn("a", 1), watch.turn("b", 3), watch.turn("c", 0.5)], 0.09, Nothing(), clock=watch
    )
    assert [round(spread.p50.ms, 2) for spread in found] == [1, 3, 0.5]
    assert [spread.max_ms - spread.min_ms for spread in found] == [0, 0, 0]
    assert found[0].count == 20, "0.09 s of 4.5 ms; spinning and warming up do not count"
    rounds = ["".join(watch.order[i : i + 3]) for i in range(0, len(watch.order), 3)]
    warm = len(rounds) - 20
    assert warm >= 2
    assert rounds[warm : warm + 4] == ["abc", "bca", "cab", "abc"]
    ends = [
        begun + {"a": 1_000_000, "b": 3_000_000, "c": 500_000}[n]
        for n, begun in zip(watch.order, watch.begun, strict=True)
    ]
    assert min(b - a for a, b in zip(ends, watch.begun[1:], strict=False)) >= SPINNING_NS


def test_a_slow_one_gets_enough_rounds() -> None:
    watch = Watch()
    assert in_turn([watch.turn("a", 1000)], 0.1, Nothing(), clock=watch)[0].count == LEAST
    assert in_turn([], 1, Nothing()) == []


def test_one_that_is_always_first_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "_round", broken(measuring._round, "(first + k) % len(turns)", "k"))
    watch = Watch()
    in_turn([watch.turn("a", 1), watch.turn("b", 1)], 0.1, Nothing(), clock=watch)
    assert set(zip(watch.order[::2], watch.order[1::2], strict=True)) == {("a", "b")}, "never b first"


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """Three variants: a whole one, one whose graph is no graph, one that takes bytes of which the graph knows nothing."""
    plain = make_bundle(tmp_path / "plain")
    folder = tmp_path / "several"
    first = plain.manifest.variants_of("image")[0]
    text = plain.manifest.variants_of("text")
    (folder / "graphs").mkdir(parents=True)
    for name in plain.manifest.files:
        (folder / name).write_bytes(plain.path(name).read_bytes())
    (folder / "graphs/image-int8.onnx").write_bytes(b"no graph")
    (folder / "graphs/image-fp16.onnx").write_bytes(plain.path(first.files[0]).read_bytes())
    extra = [
        replace(
            first, id="image-int8", axes=Axes("int8"), files=("graphs/image-int8.onnx",), fidelity=FIDELITY
        ),
        replace(
            first, id="image-fp16", axes=Axes("fp16"), files=("graphs/image-fp16.onnx",), fidelity=FIDELITY
        ),
    ]
    return seal(folder, replace(plain.manifest, variants=(first, *extra, *text), files={}))


def test_all_variants_are_there(bundle: Bundle) -> None:
    whole, damaged, half = measure_variants(bundle, SETTINGS, jpegs(1), Nothing())
    assert [point.id for point in (whole, damaged, half)] == ["image-fp32", "image-int8", "image-fp16"]
    assert [point.precision for point in (whole, damaged, half)] == ["fp32", "int8", "fp32"], "of products"
    assert (whole.runs, damaged.runs, half.runs) == (True, False, True)
    assert damaged.latency is None
    assert "image-int8.onnx: onnxruntime cannot open it" in damaged.failed
    assert whole.latency is not None
    assert whole.latency.count >= LEAST
    assert (whole.relative_distance, whole.cosine_min) == (None, None), "the bundle does not state it"
    assert (half.relative_distance, half.cosine_min) == (0.05, 0.97)
    assert half.size_bytes == bundle.path("graphs/image-fp16.onnx").stat().st_size
    assert {point.engine for point in (whole, damaged, half)} == {"onnxruntime-cpu"}


def test_what_does_not_fit_beside_the_others_says_so(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    free = iter([1 << 40, 1 << 20, 1 << 20])
    monkeypatch.setattr(measuring, "available_memory", lambda: next(free))
    points = measure_variants(bundle, SETTINGS, jpegs(1), Nothing())
    assert [point.runs for point in points] == [True, False, False]
    assert "MiB beside the variants that are open, 1 MiB are free" in points[2].failed


def test_a_bundle_without_pictures_has_none(tmp_path: Path) -> None:
    assert measure_variants(make_bundle(tmp_path / "text", image=False), SETTINGS, jpegs(1), Nothing()) == ()
