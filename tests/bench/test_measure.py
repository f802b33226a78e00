"""How a run is put together: order, launches, what a failing part costs, what ran. Everything that takes time is a stand-in."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeclip.bench import measure as measuring
from edgeclip.bench.launch import Launched
from edgeclip.bench.measure import measure
from edgeclip.bench.opening import Used
from edgeclip.bench.report import ScenarioResult, TowerUsed
from edgeclip.bench.settings import PARTS, Settings
from edgeclip.bundle import Bundle
from edgeclip.errors import EngineError, InputError
from tests.bench.reports import (
    make_cold,
    make_device,
    make_report,
    make_roof,
    make_scenario,
    make_stages,
    make_state,
    make_sweep,
)
from tests.runtime.toy import make_bundle

TOWER = TowerUsed("image", "onnxruntime-cpu", "CPUExecutionProvider", "image-fp32", "fp32", "c" * 64)
SETTINGS = Settings(launches=2, min_seconds=4, max_seconds=8, min_queries=20)


class Watched:
    """Stands in for all that measures, and notes what was asked of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.launches: list[tuple[str, Settings, float]] = []
        self.joules: list[float | None] = [3.0, 3.0]
        self.ran = Used((TOWER,), 2)
        report = make_report()
        parts = {
            "measure_stages": make_stages(), "sweep_batches": make_sweep((1, 2)), "measure_roofline": (make_roof(),),
            "sweep_threads": make_sweep((1, 2)), "measure_variants": report.variants, "measure_memory": report.memory,
            "measure_cold": make_cold(),
        }  # fmt: skip
        for name, result in parts.items():
            monkeypatch.setattr(measuring, name, self.noting(name, result))
        for name, value in {
            "launch": self.launch, "Sampler": lambda: self, "open_model": self.open_model, "describe_device": make_device,
            "open_task": self.noting("open_task", None), "load_inputs": lambda *_: FakeInputs(), "harness_us": lambda: 0.5,
        }.items():  # fmt: skip
            monkeypatch.setattr(measuring, name, value)

    def noting(self, name: str, result: Any) -> Callable[..., Any]:
        def called(*_: Any, **__: Any) -> Any:
            self.calls.append(name)
            return result

        return called

    def launch(
        self, bundle: str, scenario: Any, settings: Settings, inputs: object, reference_ms: float = 0
    ) -> Launched:
        self.calls.append(scenario)
        self.launches.append((scenario, settings, reference_ms))
        made = make_scenario(scenario, count=60, launches=1, energy_j=None, seed=len(self.launches))
        assert made.latencies is not None
        assert made.pulse is not None
        alone = replace(
            made,
            latencies=replace(made.latencies, starts=(0,)),
            pulse=replace(made.pulse, starts=(0,)),
        )
        begun = 10**9 * len(self.calls)
        return Launched(alone, begun, begun + 5 * 10**8, self.ran)

    @contextmanager
    def open_model(self, *_: Any) -> Any:
        self.calls.append("open")
        yield "model"
        self.calls.append("close")

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *_: object) -> None:
        self.calls.append("sampler ends")

    not_measured = {"state.power": "no counter"}  # noqa: RUF012

    def energy_j(self, begun_ns: int, ended_ns: int) -> float | None:
        assert ended_ns - begun_ns == 5 * 10**8
        return self.joules[begun_ns // 10**9 % 2]

    def state(self) -> Any:
        return make_state()


class FakeInputs:
    """Has facts, and no texts."""

    texts = ()

    facts = make_report().inputs


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    """All stand-ins in their places."""
    return Watched(monkeypatch)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The toy bundle."""
    return make_bundle(tmp_path_factory.mktemp("measure") / "toy")


def test_everything_in_its_order(watched: Watched, toy: Bundle) -> None:
    told: list[tuple[str, float]] = []
    report = measure(str(toy.root), SETTINGS, tell=lambda what, left: told.append((what, left)))
    scenarios = ["single-stream", "multi-stream", "offline"]
    assert watched.calls == [
        *[name for name in scenarios for _ in range(2)],
        "open", "open_task", "measure_stages", "sweep_batches", "measure_roofline", "close",
        "sweep_threads", "measure_variants", "measure_memory", "measure_cold", "sampler ends",
    ]  # fmt: skip
    assert [what for what, _ in told][:3] == ["look at the device", "single-stream 1/2", "single-stream 2/2"]
    assert [what for what, _ in told][7:] == list(PARTS)
    left = [seconds for _, seconds in told]
    assert left == sorted(left, reverse=True)
    assert [one.scenario for one in report.scenarios] == scenarios
    assert report.subject.bundle == str(toy.root)
    assert (report.subject.digest, report.subject.model_id) == (toy.digest, toy.manifest.model_id)
    assert (report.subject.towers, report.subject.threads) == ((TOWER,), 2)
    assert report.not_measured == {"state.power": "no counter"}
    assert (report.stages, report.batches, report.cold) == (make_stages(), make_sweep((1, 2)), make_cold())


def test_launches_are_put_together(watched: Watched, toy: Bundle) -> None:
    report = measure(toy, replace(SETTINGS, scenarios=("single-stream",), parts=()))
    (one,) = report.scenarios
    assert (one.launches, one.queries, one.samples) == (2, 120, 120)
    assert one.energy_j == pytest.approx(2 * 3.0 / 120)
    shares = [settings for _, settings, _ in watched.launches]
    assert [(s.min_seconds, s.max_seconds, s.min_queries, s.seed) for s in shares] == [
        (2, 4, 10, 0),
        (2, 4, 10, 1),
    ]
    assert set(report.not_measured) == {"state.power", *PARTS}
    assert "open" not in watched.calls


def test_no_energy_without_a_counter_over_all_of_it(watched: Watched, toy: Bundle) -> None:
    watched.joules[1] = None  # over one of the two launches
    (one,) = measure(toy, replace(SETTINGS, scenarios=("offline",), parts=())).scenarios
    assert one.energy_j is None


def test_the_servers_bound_needs_a_single_stream(watched: Watched, toy: Bundle) -> None:
    server = replace(SETTINGS, scenarios=("server",), parts=())
    measure(toy, server)
    (_, brief, _), (name, _, reference) = watched.launches
    assert (name, brief.min_seconds) == ("server", SETTINGS.part_seconds)
    assert reference > 0
    watched.launches.clear()
    measure(toy, replace(server, server_bound_ms=50))
    assert [(name, reference) for name, _, reference in watched.launches] == [("server", 0.0)]
    watched.launches.clear()
    report = measure(toy, replace(server, scenarios=("single-stream", "server")))
    assert watched.launches[-1][2] == report.scenarios[0].latency.p50.ms
    assert len(watched.launches) == 3


def test_a_part_that_fails_is_missing_and_told(
    watched: Watched, toy: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> Any:
        raise EngineError("stages: out of memory.")

    monkeypatch.setattr(measuring, "measure_stages", fails)
    report = measure(toy, SETTINGS)
    assert report.stages is None
    assert report.not_measured["stages"] == "stages: out of memory."
    assert "stages: not measured: stages: out of memory." in report.warnings
    assert report.batches == make_sweep((1, 2))
    assert watched.calls.count("open") == 1


def test_a_scenario_that_fails_ends_the_run(
    watched: Watched, toy: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise InputError("no tower")

    monkeypatch.setattr(measuring, "launch", fails)
    with pytest.raises(InputError, match="no tower"):
        measure(toy, SETTINGS)
    assert watched.calls == ["sampler ends"]


def test_launches_on_different_engines_are_never_one_figure(
    watched: Watched, toy: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def falls_back(*arguments: Any, **named: Any) -> Launched:
        found = watched.launch(*arguments, **named)
        watched.ran = Used((replace(TOWER, engine="onnxruntime-cuda"),), 2)
        return found

    monkeypatch.setattr(measuring, "launch", falls_back)
    with pytest.raises(
        EngineError, match=r"^single-stream 2/2: ran image-fp32 on onnxruntime-cuda .* --require"
    ):
        measure(toy, SETTINGS)


def test_wrong_settings_are_refused_before_anything_opens(watched: Watched, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="task 'segment'"):
        measure(tmp_path / "absent", replace(SETTINGS, task="segment"))


def test_without_scenarios_only_parts(watched: Watched, toy: Bundle) -> None:
    report = measure(toy, replace(SETTINGS, scenarios=(), parts=("memory",)))
    assert report.scenarios == ()
    assert watched.calls == ["measure_memory", "sampler ends"]
    assert isinstance(report.scenarios, tuple)
    assert not any(isinstance(one, ScenarioResult) for one in report.scenarios)
