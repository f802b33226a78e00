from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from edgeclip.bench import pulse
from edgeclip.bench.pulse import Pieces, Pulses, others_ns, smoothed, thread_times
from tests.mutants import broken


class Machine:
    """A clock that only moves when told; work that takes 1 ms of it; threads that run and wait."""

    def __init__(self, work_us=200.0, waited_share=0.0, others_share=10.0):
        self.now, self.work_us, self.waited_share, self.others_share = 0, work_us, waited_share, others_share
        self.done = 0
        self.at_begin = 0

    def work(self):
        self.done += 1
        self.now += 1_000_000
        return 1e3 * self.work_us

    def waits(self):
        run = self.now / (1 + self.waited_share)
        return int(run), int(run * self.waited_share)

    def others(self):
        return int(self.now * self.others_share)

    def pulses(self):
        return Pulses(lambda: self.now, self.work, self.waits, self.others)

    def run(self, pulses, seconds, query_ms=5):
        for _ in range(round(1000 * seconds / query_ms)):
            self.now += int(1e6 * query_ms)
            pulses.tick()


def test_a_pulse_comes_each_quarter_of_a_second_and_costs_a_half_percent():
    machine = Machine()
    pulses = machine.pulses()
    assert pulses.pulse() is None
    pulses.begin()
    warm = machine.done
    machine.run(pulses, 10)
    found = pulses.pulse()
    assert found.starts == (0,)
    assert found.at_ms[:3] == (
        0,
        251,
        502,
    )  # at the first query that ends later than 250 ms after the one before
    assert machine.done - warm == len(found.us) - 1  # one of those before is the first pulse
    assert 38 <= len(found.us) <= 41
    assert set(found.us) == {200.0}


def test_dear_pulses_come_less_often():
    machine = Machine()
    dear = Pulses(
        lambda: machine.now, lambda: max(machine.work() for _ in range(5)), machine.waits, machine.others
    )
    dear.begin()
    machine.run(dear, 20)
    at = dear.pulse().at_ms
    assert np.diff(at).min() >= 1000  # 5 ms of 1000


def test_begin_forgets_what_was():
    machine = Machine()
    pulses = machine.pulses()
    pulses.begin()
    machine.run(pulses, 3)
    pulses.begin()
    machine.run(pulses, 1)
    assert pulses.pulse().at_ms[0] == 0
    assert len(pulses.pulse().us) <= 5


@pytest.mark.parametrize(("share", "factor"), [(0.0, 1.0), (0.5, 1.5), (2.0, 3.0)])
def test_waiting_for_a_core_stretches_the_pulse(share, factor):
    machine = Machine(waited_share=share)
    pulses = machine.pulses()
    pulses.begin()
    machine.run(pulses, 5)
    np.testing.assert_allclose(pulses.pulse().us[:-1], 200 * factor, rtol=1e-3)


def test_waiting_for_ones_own_threads_does_not_count():
    """Nobody else ran: the waiting is the program's own doing, and a slower program, not a slower machine."""
    machine = Machine(waited_share=1.0, others_share=0.0)
    pulses = machine.pulses()
    pulses.begin()
    machine.run(pulses, 5)
    np.testing.assert_allclose(pulses.pulse().us, 200)
    machine.others_share = 0.25  # half of what was waited for
    pulses.begin()
    machine.run(pulses, 5)
    np.testing.assert_allclose(pulses.pulse().us[:-1], 300, rtol=0.02)


def test_one_odd_pulse_among_its_neighbours_is_passed_over():
    values = np.array([1, 1, 9, 1, 1, 1, 2, 2, 2, 2.0])
    assert smoothed(values).tolist() == [1, 1, 1, 1, 1, 1, 2, 2, 2, 2]
    assert smoothed(np.array([3.0])).tolist() == [3]


def test_a_thread_that_ends_takes_its_times_along():
    machine = Machine()
    times = iter([(0, 0), (900, 100), (100, 0), (200, 0), (300, 0), (400, 0)])
    pulses = Pulses(lambda: machine.now, machine.work, lambda: next(times), lambda: None)
    pulses.begin()
    machine.run(pulses, 0.6)
    assert min(pulses.pulse().us) >= 200


def test_thread_times_are_what_the_kernel_says(tmp_path):
    for name, line in (("7", "1000 50 3\n"), ("8", "500 25 1\n"), ("9", "nonsense\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "schedstat").write_text(line)
    assert thread_times(tmp_path) == (1500, 75)
    assert thread_times(tmp_path / "none") == (0, 0)


def test_running_here_grows_by_the_cpu_time_of_this_process():
    if thread_times() == (0, 0):
        pytest.skip("this system keeps no /proc/self/task/*/schedstat")
    before, cpu = thread_times()[0], time.process_time_ns()
    while time.process_time_ns() - cpu < 30_000_000:
        pass
    assert thread_times()[0] - before == pytest.approx(time.process_time_ns() - cpu, rel=0.5)


def test_others_are_all_but_this_process(tmp_path, monkeypatch):
    (tmp_path / "stat").write_text("cpu  100 20 30 9999 77 4 5 6 0 0\ncpu0 1 2 3\n")
    monkeypatch.setattr(pulse.os, "sysconf", lambda name: 100)
    monkeypatch.setattr(pulse.time, "process_time_ns", lambda: 250_000_000)
    assert others_ns(tmp_path / "stat") == (100 + 20 + 30 + 4 + 5 + 6) * 10_000_000 - 250_000_000
    assert others_ns(tmp_path / "none") is None
    (tmp_path / "stat").write_text("cpu 1 2\n")
    assert others_ns(tmp_path / "stat") is None


def test_what_a_query_leaves_in_the_caches_is_not_the_machines(monkeypatch):
    """Whoever fills the caches pays: B's own appetite would else be divided out of B's time."""
    pieces, now, cold = Pieces(), [0], {"_hash": 9_000, "_multiply": 4_000}
    pieces._clock = lambda: now[0]
    for name in cold:

        def part(name=name):
            now[0] += 100_000 + cold[name]
            cold[name] = 0

        monkeypatch.setattr(pieces, name, part)
    assert pieces() == 100_000


def test_the_work_stays_on_its_thread_and_is_short():
    pieces = Pieces()
    pieces()
    cpu, thread = time.process_time_ns(), time.thread_time_ns()
    lasted = [pieces() for _ in range(40)]
    cpu, thread = time.process_time_ns() - cpu, time.thread_time_ns() - thread
    assert cpu <= 1.3 * thread + 2e6  # nothing was spread over other threads
    assert min(lasted) < 5e6
    assert threading.active_count() < 50


def test_planted_faults_are_caught(monkeypatch):
    faults = (
        ("wait *= min(1.0,", "wait *= max(1.0,", test_waiting_for_ones_own_threads_does_not_count),
        ("np.maximum(times, 0).T", "times.T", test_a_thread_that_ends_takes_its_times_along),
        (
            "smoothed(np.asarray(self._ns))",
            "np.asarray(self._ns) * 2",
            test_begin_forgets_what_was_and_tells_us,
        ),
    )
    for old, new, test in faults:
        monkeypatch.setattr(Pulses, "pulse", broken(Pulses.pulse, old, new))
        with pytest.raises(AssertionError):
            test()
        monkeypatch.undo()


def test_begin_forgets_what_was_and_tells_us():
    machine = Machine(work_us=123.0)
    pulses = machine.pulses()
    pulses.begin()
    assert pulses.pulse().us == (123.0,)
