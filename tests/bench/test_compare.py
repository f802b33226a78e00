from __future__ import annotations

from dataclasses import replace

import pytest

from edgeclip.bench import compare as module
from edgeclip.bench.compare import compare, verdict
from edgeclip.bench.gate import parse_gate
from edgeclip.errors import InputError
from tests.bench.noise import launches, report_of
from tests.bench.reports import (
    make_bare_report,
    make_cold,
    make_device,
    make_report,
    make_scenario,
    make_server,
    make_spread,
)
from tests.mutants import broken


def recorded(slower=1.0, first=0, name="quiet"):
    """A report whose single stream was recorded on a machine left alone."""
    import numpy as np

    latencies, pulse = report_of(launches(name)[first : first + 8], slower)
    ms = np.asarray(latencies.ms)
    scenario = make_scenario(
        latencies=latencies, pulse=pulse, latency=make_spread(ms), queries=len(ms), samples=len(ms), throughput_per_s=1e3 / ms.mean(),
        seconds=ms.sum() / 1e3,
    )  # fmt: skip
    return make_report(scenarios=(scenario,))


def rows(found):
    return {(one.scenario, one.metric): one for one in found.changes}


def test_a_slower_program_is_told_from_a_slower_machine():
    found = compare(recorded(), recorded(1.1, 10), [parse_gate("p50>+5%"), parse_gate("throughput<-5%")])
    p50, rate = (rows(found)["single-stream", metric] for metric in ("p50", "throughput"))
    assert (p50.verdict, p50.failed, found.failed) == ("worse", True, True)
    assert 0.05 < p50.change < 0.15
    assert p50.note == "at an equal pulse of the machine"
    assert (rate.verdict, rate.failed, rate.change < 0) == ("worse", True, True)
    same = compare(recorded(), recorded(1.0, 10), [parse_gate("p50>+5%")])
    assert rows(same)["single-stream", "p50"].verdict in ("same", "undecided")
    assert not same.failed
    assert same.machine == pytest.approx(found.machine)
    assert abs(same.machine) < 0.2


def test_every_figure_that_both_have_is_there():
    gpu = make_report(gpu=True)
    found = rows(compare(gpu, gpu))
    timed = {"p50", "p90", "p99", "mean", "throughput"}
    assert {metric for scenario, metric in found if scenario == "multi-stream"} == timed | {"energy"}
    assert {metric for scenario, metric in found if scenario == "server"} == timed
    assert {metric for scenario, metric in found if not scenario} == {"rss", "size"}
    assert {scenario for scenario, metric in found if metric == "cold"} == {"empty caches", "label pack"}
    assert all(one.change == 0 and one.verdict in ("same", "undecided") for one in found.values())
    assert found["", "size"].unit == "MB"
    assert found["", "size"].a == pytest.approx(612 * 1.048576)


def test_a_bare_report_is_compared_as_far_as_it_goes():
    bare = make_bare_report()
    found = compare(bare, bare, [parse_gate("p50>+5%")])
    p50 = rows(found)["single-stream", "p50"]
    assert (p50.verdict, p50.low, p50.note) == (
        "undecided",
        None,
        "no single latencies; p50>+5%: undecided, the change has no interval",
    )
    assert found.machine is None
    assert not found.failed
    assert compare(bare, bare, [parse_gate("p50>+5%")], strict=True).failed


def changed(what, **fields):
    report = make_report()
    return replace(report, **{what: replace(getattr(report, what), **fields)})


@pytest.mark.parametrize(
    ("other", "word", "said"),
    [
        (make_report(device=make_device(gpu=True)), "device", "GPU differs: none in A, NVIDIA H100 80GB HBM3 in B"),
        (changed("device", cpu="Cortex-A78AE"), "device", "CPU differs: Intel(R) Xeon(R) CPU @ 2.80GHz in A, Cortex-A78AE in B"),
        (changed("device", cores=6), "device", "cores differs: 2 in A, 6 in B"),
        (changed("device", memory_bytes=8 << 30), "device", "memory, GB differs: 24 in A, 9 in B"),
        (changed("device", governor="schedutil"), "mode", "governor differs: performance in A, schedutil in B"),
        (changed("device", governor=None), "mode", "governor differs: performance in A, unknown in B"),
        (changed("device", power_mode="15W"), "mode", "power mode differs: unknown in A, 15W in B"),
        (changed("device", virtual=""), "mode", "virtual machine differs: kvm in A, none in B"),
        (changed("subject", threads=4), "mode", "threads differs: 2 in A, 4 in B"),
        (changed("settings", task="search"), "settings", "task differs: classify in A, search in B"),
        (changed("settings", multi_stream_samples=4), "settings", "multi_stream_samples differs: 8 in A, 4 in B"),
        (changed("inputs", sha256="0" * 64), "inputs", "inputs differs: 64 pictures, sha256 e5e5e5e5e5e5 in A, 64 pictures, sha256 000000000000"),
    ],
)  # fmt: skip
def test_what_must_agree_is_refused_unless_allowed(other, word, said):
    with pytest.raises(InputError) as caught:
        compare(make_report(), other)
    told = str(caught.value)
    assert (said in told, f"--allow {word}." in told, "\n" in told) == (True, True, False), told
    found = compare(make_report(), other, allow=[word])
    assert any(note.startswith("allowed to differ") for note in found.notes)


def test_a_gpu_with_less_power_is_another_device():
    full = make_report(gpu=True)
    capped = replace(
        full,
        device=replace(full.device, gpus=tuple(replace(g, power_limit_w=300.0) for g in full.device.gpus)),
    )
    with pytest.raises(
        InputError, match=r"power limit of the GPU, W differs: .* in A, 300\.0 in B.*--allow device"
    ):
        compare(full, capped)


def test_a_word_that_allows_nothing_is_refused():
    with pytest.raises(InputError, match="allow 'hardware': expected one of device, mode, settings, inputs"):
        compare(make_report(), make_report(), allow=["hardware"])


def test_memory_may_lack_what_the_kernel_takes():
    assert compare(make_report(), changed("device", memory_bytes=(22 << 30) - (90 << 20))).notes == ()


def test_what_is_compared_may_differ_and_is_named():
    subject = make_report().subject
    towers = tuple(replace(tower, variant="image-int8", precision="int8") for tower in subject.towers[:1])
    other = make_report(subject=replace(subject, digest="b2" * 32, towers=towers), edgeclip="0.2.0")
    other = replace(
        other, device=replace(other.device, packages={**other.device.packages, "onnxruntime": "1.24.0"})
    )
    found = compare(make_report(), other)
    assert found.notes == (
        "bundle: openai/clip-vit-base-patch32 a1a1a1a1 in A, openai/clip-vit-base-patch32 b2b2b2b2 in B",
        "variants: image-fp32-decomposed, text-fp32-decomposed in A, image-int8 in B",
        "edgeclip: 0.1.0 in A, 0.2.0 in B",
        "onnxruntime: 1.23.2 in A, 1.24.0 in B",
    )
    assert (found.a, found.b) == (
        "openai/clip-vit-base-patch32 · fp32",
        "openai/clip-vit-base-patch32 · int8",
    )


def test_no_scenario_in_common():
    with pytest.raises(InputError, match="no scenario in both reports: single-stream against server"):
        compare(make_report(scenarios=(make_scenario(),)), make_report(scenarios=(make_server(),)))


def test_a_scenario_that_one_report_lacks_is_named():
    one = make_report(scenarios=(make_scenario(),))
    said = [
        note for note in compare(make_report(), one, [parse_gate("p99>+5%")]).notes if "under no gate" in note
    ]
    assert "multi-stream: measured in A only, not compared and under no gate" in said
    assert len(said) == len(make_report().scenarios) - 1


def test_an_absolute_gate_on_a_short_run_is_decided():
    bare = make_bare_report()
    p99 = bare.scenarios[0].latency.p99
    assert p99.low is None
    assert compare(bare, bare, [parse_gate(f"p99>{p99.ms * 0.9:.6f}ms")]).failed
    assert not compare(bare, bare, [parse_gate(f"p99>{p99.ms * 1.1:.6f}ms")], strict=True).failed


def test_servers_at_other_rates_are_not_compared_by_latency():
    a, b = (
        make_report(scenarios=(make_server(offered_per_s=rate, throughput_per_s=rate),))
        for rate in (50.0, 60.0)
    )
    found = rows(compare(a, b))
    assert found["server", "p99"].note == "queries arrived at other rates"
    assert found["server", "p99"].low is None
    assert found["server", "throughput"].change == pytest.approx(0.2)


def test_cold_starts_are_apart_when_their_ranges_are():
    slow = tuple(
        replace(one, total_ms=one.total_ms + 300, low_ms=one.low_ms + 300, high_ms=one.high_ms + 300)
        for one in make_cold()
    )
    found = [one for one in compare(make_report(), make_report(cold=slow)).changes if one.metric == "cold"]
    assert [one.verdict for one in found] == ["worse", "worse"]
    assert found[0].note == "range of 5 starts"
    few = tuple(replace(one, runs=2) for one in slow)
    found = [one for one in compare(make_report(), make_report(cold=few)).changes if one.metric == "cold"]
    assert [one.verdict for one in found] == ["undecided", "undecided"]
    assert found[0].note.endswith("4 would tell")
    judged = compare(make_report(), make_report(cold=few), [parse_gate("cold>+5%")])
    assert not judged.failed
    assert any(one.undecided for one in judged.changes)


@pytest.mark.parametrize(
    ("bytes_", "said"), [(650 << 20, "same"), (800 << 20, "worse"), (500 << 20, "better")]
)
def test_memory_is_told_beyond_its_own_noise(bytes_, said):
    other = make_report(memory=replace(make_report().memory, rss_bytes=bytes_))
    assert rows(compare(make_report(), other))["", "rss"].verdict == said


@pytest.mark.parametrize(
    ("metric", "low", "high", "said"),
    [
        ("p50", 0.01, 0.09, "worse"),
        ("p50", -0.09, -0.01, "better"),
        ("throughput", 0.01, 0.09, "better"),
        ("throughput", -0.09, -0.01, "worse"),
        ("p50", -0.04, 0.04, "same"),
        ("p50", -0.01, 0.06, "undecided"),
        ("p50", -0.06, 0.01, "undecided"),
    ],
)
def test_verdicts(metric, low, high, said):
    assert verdict(metric, low, high) == said


def test_a_throttled_run_is_named():
    found = compare(make_report(), make_report(throttled=True))
    assert any("measured while the device throttled" in note for note in found.notes)


def test_planted_faults_are_caught(monkeypatch):
    faults = (
        ("verdict", '!= (metric == "throughput")', '== (metric == "throughput")', test_a_slower_program_is_told_from_a_slower_machine),
        ("scenario_rows", "Difference(-means.log", "Difference(means.log", test_a_slower_program_is_told_from_a_slower_machine),
        ("refuse_others", "if one == other:", "if one == other or one is None:", lambda: test_what_must_agree_is_refused_unless_allowed(changed("device", power_mode="15W"), "mode", "power mode")),
    )  # fmt: skip
    for name, old, new, test in faults:
        monkeypatch.setattr(module, name, broken(getattr(module, name), old, new))
        with pytest.raises((AssertionError, pytest.fail.Exception)):
            test()
        monkeypatch.undo()
