"""Queries by a clock that only they move, against the theory of queues, and with the runtime's own calls."""

from __future__ import annotations

import gc
import time
from dataclasses import replace
from hashlib import sha256
from itertools import islice

import numpy as np
import pytest

from edgeclip import load
from edgeclip.bench.between import Nothing
from edgeclip.bench.early_stopping import estimate
from edgeclip.bench.report import Pulse, Warmup
from edgeclip.bench.samples import load_inputs
from edgeclip.bench.scenarios import harness_us, launches, loop, merge, run_scenario, server
from edgeclip.bench.scenarios.loop import Until, draws, timed
from edgeclip.bench.scenarios.server import Arrivals, arrivals, serve
from edgeclip.bench.settings import SCENARIOS, Settings
from edgeclip.bench.tasks import Task, open_task
from edgeclip.errors import EngineError, InputError
from tests.mutants import broken
from tests.runtime.toy import make_bundle, picture

MS = 1_000_000
SHORT = Settings(
    min_seconds=0.05, min_queries=20, max_seconds=2.0, part_seconds=0.02, multi_stream_samples=3, offline_batch=4, server_batch=2
)  # fmt: skip


class Machine:
    """A task whose queries take `ms` each, by a clock that moves 20 us whenever it is read."""

    unit, samples = "picture", 16

    def __init__(self, ms=10.0):
        self.now, self.ms, self.seen = 0, ms, []

    def query(self, samples):
        self.seen.append(list(samples))
        self.now += int(MS * (self.ms(self) if callable(self.ms) else self.ms))

    def clock(self):
        self.now += 20_000
        return self.now

    def sleep(self, seconds):
        self.now += int(1e9 * seconds)


class Slow(Nothing):
    """Work between queries that takes 5 ms each time."""

    def __init__(self, machine):
        self.machine, self.begun, self.ticks = machine, 0, 0

    def begin(self):
        self.begun += 1

    def tick(self):
        self.machine.now += 5 * MS
        self.ticks += 1

    def pulse(self):
        return Pulse((0,), (0,), (1.0,))


# one after another


def test_a_query_draws_with_replacement_and_equal_settings_make_equal_queries() -> None:
    first = list(islice(draws(5, 3, 7), 3000))
    assert first == list(islice(draws(5, 3, 7), 3000))
    assert first != list(islice(draws(5, 3, 8), 3000))
    assert all(len(samples) == 3 for samples in first)
    share = np.bincount(np.ravel(first), minlength=5) / 9000
    assert np.abs(share - 0.2).max() < 0.02
    assert any(len(set(samples)) < 3 for samples in first)


@pytest.mark.parametrize(
    ("until", "queries"),
    [
        (Until(1.0, 20, 9), 100),  # the duration is met last
        (Until(0.1, 50, 9), 50),  # the number is
        (Until(1.0, 500, 2), 200),  # neither before the limit
        (Until(0.0, 2000, 999), 2000),  # more than fit at first
    ],
)
def test_measuring_ends_when_there_is_enough_of_both_or_at_the_limit(
    monkeypatch: pytest.MonkeyPatch, until: Until, queries: int
) -> None:
    monkeypatch.setattr(loop, "ROOM", 64)
    machine = Machine(10 - 0.02)  # reading the clock takes the rest
    found = timed(machine.query, draws(16, 2, 0), until, Nothing(), machine.clock)
    assert len(found.lasted_ns) == queries
    assert set(found.lasted_ns) == {10 * MS}
    assert [samples[0] for samples in machine.seen] == found.first.tolist()
    assert machine.seen == list(islice(draws(16, 2, 0), queries))
    assert np.all(np.diff(found.began_ns) >= 10 * MS)


def test_work_between_queries_is_neither_latency_nor_time() -> None:
    quiet, busy = Machine(), Machine()
    between = Slow(busy)
    plain, found = (
        timed(m.query, draws(16, 1, 0), Until(1.0, 10, 9), b, m.clock)
        for m, b in ((quiet, Nothing()), (busy, between))
    )
    np.testing.assert_array_equal(found.lasted_ns, plain.lasted_ns)
    assert (between.begun, between.ticks) == (1, len(found.lasted_ns) - 1)
    assert found.pulse == between.pulse()
    assert found.began_ns[-1] - found.began_ns[0] > plain.began_ns[-1] - plain.began_ns[0] + 400 * MS


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("took = clock() - start", "tick(); took = clock() - start"),
        ("began[made], lasted[made]", "began[made - 1], lasted[made - 1]"),
        ("and made >= least", "or made >= least"),
        ("kept.extend(kept)", "kept[:] = kept"),
    ],
)
def test_planted_faults_of_the_loop_are_caught(monkeypatch: pytest.MonkeyPatch, old: str, new: str) -> None:
    monkeypatch.setattr(loop, "ROOM", 64)
    mutant = broken(timed, old, new)
    outcomes = []
    for function in (timed, mutant):
        machine = Machine(lambda m: 10 + len(m.seen) % 7)
        try:
            found = function(
                machine.query, draws(16, 1, 0), Until(9.0, 100, 999), Slow(machine), machine.clock
            )
            outcomes.append((found.lasted_ns.tolist(), found.began_ns.tolist()))
        except (IndexError, ValueError) as error:
            outcomes.append(type(error))
    assert outcomes[0] != outcomes[1]


def test_the_loop_costs_less_than_two_percent_of_a_millisecond() -> None:
    assert (
        0.05 < harness_us() < 20
    )  # 0.8 here; the best of forty rounds, so that a busy machine does not fail it


def test_what_is_measured_is_what_the_call_itself_takes() -> None:
    """The same calls timed from within: where the two clocks stand apart, the machine's noise cancels."""
    data, own = bytes(1 << 20), []  # about 1 ms of hashing

    def query(samples):
        start = time.perf_counter_ns()
        sha256(data).digest()
        own.append(time.perf_counter_ns() - start)

    found = timed(query, draws(16, 1, 0), Until(0.0, 200, 9), Nothing())
    inside = np.array(own)
    assert abs(np.median(found.lasted_ns) / np.median(inside) - 1) < 0.02
    added_us = np.median(found.lasted_ns - inside) / 1e3
    assert 0 < added_us < 20


def test_an_error_of_a_query_ends_the_scenario_and_so_does_ctrl_c() -> None:
    class Broken(Machine):
        error: BaseException = EngineError("the engine is gone")

        def query(self, samples):
            super().query(samples)
            if len(self.seen) == 30:
                raise self.error

    for name in SCENARIOS:
        with pytest.raises(EngineError, match="the engine is gone"):
            run_scenario(name, Broken(), SHORT, Nothing())
    interrupted = Broken()
    interrupted.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run_scenario("single-stream", interrupted, SHORT, Nothing())
    assert gc.get_freeze_count() == 0
    with pytest.raises(
        InputError, match=r"^scenario 'burst': no such scenario\. Choose one of single-stream, "
    ):
        run_scenario("burst", Machine(), SHORT, Nothing())


# the server


def poisson(rate, seconds, seed=0):
    return arrivals(rate, Until(seconds, 1, 1e9), 16, seed)


def run(machine, offered, batch=1, bound_ms=100.0, patience=1e9, between=None, of=serve):
    return of(
        machine.query, offered, batch, MS * bound_ms, patience, between or Nothing(), machine.clock, machine.sleep
    )  # fmt: skip


def test_arrivals_are_poisson_and_the_same_for_a_seed() -> None:
    offered = poisson(100.0, 200.0)
    gaps = np.diff(offered.due_ns) / 1e9
    assert abs(gaps.mean() * 100 - 1) < 0.02
    assert abs(gaps.std() * 100 - 1) < 0.03  # an exponential's deviation is its mean
    assert abs(np.corrcoef(gaps[1:], gaps[:-1])[0, 1]) < 0.03
    assert offered == poisson(100.0, 200.0)
    assert offered.due_ns != poisson(100.0, 200.0, seed=1).due_ns
    faster = poisson(200.0, 100.0)
    np.testing.assert_allclose(np.array(offered.due_ns[:9000]) / 2, faster.due_ns[:9000], atol=1)
    assert offered.due_ns[-2] < 200e9 <= offered.due_ns[-1]
    assert len(arrivals(100.0, Until(1.0, 900, 1e9), 16, 0).due_ns) == 900
    assert arrivals(100.0, Until(1.0, 900, 3.0), 16, 0).due_ns[-1] <= 3e9
    assert len(arrivals(1e-6, Until(1.0, 900, 3.0), 16, 0).due_ns) == 1


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_waiting_is_what_the_theory_of_queues_says(load: float) -> None:
    machine = Machine(9.94)  # and 0.06 for three readings of the clock
    offered = poisson(100 * load, 20_000 / (100 * load))
    found = run(machine, offered)
    waited_ms = found.latency_ns.mean() / MS - 10
    # M/D/1: mean wait = load * service / (2 * (1 - load)); Pollaczek and Khinchin
    assert abs(waited_ms / (load * 10 / (2 * (1 - load))) - 1) < 0.06
    # and every single one, by Lindley's recursion on the same arrivals
    free, expected = 0.0, []
    for due in offered.due_ns:
        free = max(free, due) + 10 * MS
        expected.append(free - due)
    np.testing.assert_allclose(found.latency_ns, expected, rtol=0, atol=0.3 * MS)


def test_what_waits_behind_a_stall_is_late_too() -> None:
    def ms(machine):
        return 1000 if len(machine.seen) == 500 else 1

    found = run(Machine(ms), poisson(100.0, 20.0))
    late = found.latency_ns > 50 * MS
    assert 80 < late.sum() < 140  # a second's arrivals; a clock that starts at the call would see one
    assert found.late == (found.latency_ns > 100 * MS).sum()


def test_queries_that_wait_share_a_call() -> None:
    machine = Machine()
    offered = Arrivals([0, 1, 2, 3, 4, 500 * MS], [5, 6, 7, 8, 9, 1])
    found = run(machine, offered, batch=3)
    assert machine.seen[0] == [5, 6, 7]
    assert machine.seen[1:] == [[8, 9], [1]]
    assert found.calls == 3
    assert np.all(found.latency_ns[3:5] > 20 * MS)


def test_work_between_calls_stops_the_clock() -> None:
    offered = poisson(50.0, 20.0)
    plain = run(Machine(), offered)
    machine = Machine()
    found = run(machine, offered, between=Slow(machine))
    np.testing.assert_allclose(found.latency_ns, plain.latency_ns, atol=0.3 * MS)
    assert abs(found.seconds - plain.seconds) < 0.01
    assert machine.now > 1e9 * found.seconds + 4 * MS * found.calls


def test_an_overload_is_stopped_and_waiting_alone_is_not() -> None:
    offered = poisson(200.0, 60.0)  # twice what the machine can do
    found = run(Machine(), offered, patience=10, bound_ms=50)
    assert found.stopped
    assert not found.holds(50 * MS)
    assert found.seconds < 3
    assert len(found.latency_ns) < 300
    assert run(Machine(), poisson(50.0, 60.0), patience=10, bound_ms=50).holds(50 * MS)
    once = run(
        Machine(lambda m: 2000 if len(m.seen) == 9 else 1), poisson(1.0, 900.0), patience=10, bound_ms=50
    )
    assert not once.stopped  # 2 s of stall in 900 s: p99 holds
    assert once.holds(50 * MS)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            "took = now - due[i]",
            "took = now - max(due[i], begun_call)",
        ),  # from the call: coordinated omission
        ("origin += clock() - begun", "clock()"),
        ("and end - done < batch", ""),
        ("and due[end] <= now", ""),
        ("(left - SPIN_NS)", "(left + SPIN_NS)"),
        ("late += took > bound_ns", "late += took > 2 * bound_ns"),
    ],
)
def test_planted_faults_of_the_server_are_caught(old: str, new: str) -> None:
    mutant = broken(serve, old, new)
    mutant.__globals__["begun_call"] = 0
    outcomes = []
    for function in (serve, mutant):
        machine = Machine()

        def query(samples, machine=machine):
            mutant.__globals__["begun_call"] = machine.now - 20_000
            Machine.query(machine, samples)

        offered = poisson(90.0, 5.0)
        found = function(
            query, offered, 3, 12 * MS, 1e9, Slow(machine), machine.clock, machine.sleep
        )  # fmt: skip
        outcomes.append((found.latency_ns.tolist(), found.late))
    assert outcomes[0] != outcomes[1]


def best_rate(bound_ms, service_ms=10.0):
    """The highest rate at which p99 of M/D/1 is within the bound, by Lindley's recursion on other arrivals."""
    gaps, found = np.random.default_rng(99).exponential(size=15_000), 0.0
    for rate in np.arange(50, 100, 3.0):
        wait, waits = 0.0, []
        for gap in gaps / rate * 1000:
            waits.append(wait)
            wait = max(0.0, wait + service_ms - gap)
        if np.percentile(waits, 99) + service_ms <= bound_ms:
            found = rate
        else:
            return found
    return found


def test_the_rate_that_is_found_is_the_highest_that_holds() -> None:
    machine = Machine(9.96)
    settings = Settings(
        min_seconds=100,
        min_queries=2000,
        max_seconds=500,
        part_seconds=50,
        server_batch=1,
        server_bound_ms=50,
    )
    found = server.run(machine, settings, Nothing(), 0.0, machine.clock, machine.sleep)
    expected = best_rate(50)
    assert found.holds
    assert 0.85 * expected <= found.offered_per_s <= 1.1 * expected
    assert found.latency.p99.ms <= 50
    assert found.mean_batch == 1
    assert found.enough
    assert abs(found.throughput_per_s / found.offered_per_s - 1) < 0.1
    assert "searched in 5 runs" in found.notes[0]


def test_the_bound_is_ten_times_the_single_stream_and_batches_let_more_through() -> None:
    settings = Settings(min_seconds=20, min_queries=500, max_seconds=60, part_seconds=5, server_batch=4)
    machine = Machine()
    found = server.run(machine, settings, Nothing(), 9.0, machine.clock, machine.sleep)
    assert found.bound_ms == 90
    assert found.offered_per_s > 150  # a call of four takes as long as one of one
    assert found.mean_batch > 1.5
    alone = server.run(machine, settings, Nothing(), 0.0, machine.clock, machine.sleep)
    assert alone.bound_ms == pytest.approx(100.2)


def test_a_rate_that_is_given_is_measured_and_an_overload_told() -> None:
    settings = Settings(
        min_seconds=20,
        min_queries=500,
        max_seconds=60,
        server_batch=1,
        server_rate_per_s=50,
        server_bound_ms=60,
    )
    machine = Machine()
    good = server.run(machine, settings, Nothing(), 0.0, machine.clock, machine.sleep)
    assert (good.holds, good.offered_per_s, good.notes, good.enough) == (True, 50, (), True)
    assert good.early_stopping.percentile == 99
    over = server.run(
        machine, replace(settings, server_rate_per_s=300), Nothing(), 0.0, machine.clock, machine.sleep
    )
    assert (over.holds, over.enough) == (False, False)
    assert over.seconds < 5
    assert over.notes[0].startswith("Overload: ")
    assert "Offer less than 300/s." in over.notes[0]


def test_a_bound_that_nothing_holds_is_told() -> None:
    settings = Settings(
        min_seconds=5, min_queries=50, max_seconds=60, part_seconds=1, server_batch=1, server_bound_ms=5
    )
    machine = Machine()
    found = server.run(machine, settings, Nothing(), 0.0, machine.clock, machine.sleep)
    assert found.holds is False
    assert "none of them held the bound" in found.notes[0]


# launches put together


def three(counts=(300, 200, 500)):
    found = []
    for k, count in enumerate(counts):
        machine = Machine(lambda m, k=k: 10 + k + 3 * (len(m.seen) % 5))
        until = Until(0.0, count, 999)
        done = timed(machine.query, draws(16, 1, k), until, Slow(machine), machine.clock)
        warmup = Warmup(10 + k, 1.0, k != 1)
        found.append(
            loop.result(
                "single-stream", done, warmup, per_query=1, percentile=90, seconds=int(done.lasted_ns.sum()) / 1e9, until=until
            )
        )  # fmt: skip
    return found


def test_one_restless_launch_of_four_leaves_a_note_and_no_doubt() -> None:
    calm, *_ = three()
    warm, cold = (replace(calm, warmup=replace(calm.warmup, steady=steady)) for steady in (True, False))
    found = merge([warm, cold, warm, warm], range(4))
    assert (found.warmup.steady, len(found.notes)) == (True, len(calm.notes) + 1)
    assert not merge([warm, cold, cold, warm], range(4)).warmup.steady
    assert merge([warm] * 4, range(4)).notes == calm.notes


def test_launches_are_one_result_over_all_of_their_queries() -> None:
    parts = three()
    begun = [7_000 * MS, 19_000 * MS, 31_500 * MS]
    found = merge(parts, begun)
    ms = np.concatenate([part.latencies.ms for part in parts])
    assert (found.launches, found.queries, found.samples) == (3, 1000, 1000)
    assert found.seconds == pytest.approx(ms.sum() / 1000)
    assert found.throughput_per_s == pytest.approx(1000 / found.seconds)
    points = [found.latency.p50.ms, found.latency.p90.ms, found.latency.p99.ms]
    np.testing.assert_allclose(points, np.percentile(ms, [50, 90, 99]))
    assert found.early_stopping == estimate(sorted(ms), 90)
    assert (found.warmup.queries, found.warmup.seconds, found.warmup.steady) == (33, 3.0, False)
    assert found.notes[-1] == "latencies had not settled after the warm-up of 1 of 3 launches"
    kept = found.latencies
    assert (kept.every, kept.starts, len(kept.ms)) == (1, (0, 300, 500), 1000)
    assert [kept.at_ms[start] for start in kept.starts] == [0, 12_000, 24_500]
    assert kept.sample[300:500] == parts[1].latencies.sample
    assert (found.pulse.starts, found.pulse.at_ms) == ((0, 1, 2), (0, 12_000, 24_500))
    assert merge(parts[:1], begun[:1]) == parts[0]


@pytest.mark.parametrize("most", [100, 333, 999])
def test_a_report_holds_so_many_latencies_and_figures_are_of_all(
    monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    parts = three()
    whole = merge(parts, [0, 0, 0])
    monkeypatch.setattr(launches, "MOST_KEPT", most)
    found = merge(parts, [0, 0, 0])
    kept = found.latencies
    assert len(kept.ms) <= most
    assert kept.ms == whole.latencies.ms[:: kept.every]
    for start, first in zip(kept.starts, whole.latencies.starts, strict=True):
        assert (start - 1) * kept.every < first <= start * kept.every
    assert (found.latency, found.early_stopping) == (whole.latency, whole.early_stopping)
    with pytest.raises(ValueError, match="each with every latency"):
        merge([found], [0])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("np.add(one.at_ms, by)", "np.add(one.at_ms, 0)"),
        ("sample[::step]", "sample[:: step + 1]"),
        ("tuple(ceil(start / step) for start in starts)", "tuple(start // step for start in starts)"),
        ("np.sort(ms).tolist()", "sorted(known[0].ms)"),
        ("spread(ms, at_ms, starts)", "spread(ms[::step], at_ms[::step])"),
        ("samples / seconds", "samples / first.seconds"),
    ],
)
def test_planted_faults_of_putting_together_are_caught(
    monkeypatch: pytest.MonkeyPatch, old: str, new: str
) -> None:
    monkeypatch.setattr(launches, "MOST_KEPT", 150)
    monkeypatch.setattr(launches, "merge", broken(merge, old, new))
    parts = three()
    assert launches.merge(parts, [0, 12_000 * MS, 24_500 * MS]) != merge(parts, [0, 12_000 * MS, 24_500 * MS])


def test_only_launches_of_one_scenario_are_put_together() -> None:
    parts = three((30, 30))
    with pytest.raises(ValueError, match="launches of one scenario"):
        merge([parts[0], replace(parts[1], scenario="offline")], [0, 0])


# the runtime's own calls


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    from PIL import Image

    folder = tmp_path_factory.mktemp("pictures")
    for seed in range(5):
        Image.fromarray(picture(seed)).save(folder / f"{seed}.png")
    settings = replace(SHORT, labels=("cat", "dog"))
    with load(make_bundle(folder / "toy"), threads=1) as model:
        yield open_task("classify", model, load_inputs(folder, "classify", settings), settings)


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_scenario_runs_a_bundle(task: Task, name: str) -> None:
    found = merge([run_scenario(name, task, SHORT, Nothing(), reference_ms=20.0)], [0])
    per_query = {"single-stream": 1, "multi-stream": 3, "offline": 4, "server": 1}[name]
    assert (found.scenario, found.samples_per_query) == (name, per_query)
    assert found.samples == found.queries * per_query
    assert found.queries >= (5 if name == "offline" else 20)  # offline counts samples
    assert found.enough
    assert found.seconds >= 0.05
    assert found.latency.count == found.queries == len(found.latencies.ms)
    assert found.latencies.at_ms[0] == 0
    assert set(found.latencies.sample) <= set(range(5))
    percentile = {"single-stream": 90, "multi-stream": 99, "offline": None, "server": 99}[name]
    assert (found.early_stopping.percentile if found.early_stopping else None) == percentile
    assert (found.bound_ms == 200.0) == (name == "server")


def test_its_median_is_the_median_of_the_calls_as_timed_within(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = []
    classify = task.model.classify

    def timed_within(*args, **options):
        start = time.perf_counter_ns()
        found = classify(*args, **options)
        own.append((time.perf_counter_ns() - start) / 1e6)
        return found

    monkeypatch.setattr(task.model, "classify", timed_within)
    found = run_scenario("single-stream", task, SHORT, Nothing())
    inside = np.median(own[found.warmup.queries :])
    assert 0 <= found.latency.p50.ms - inside < 0.02  # ms: 2 % of a call of 1 ms
