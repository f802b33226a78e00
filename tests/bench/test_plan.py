"""What a run consists of: shares of its launches, order and time of its steps, settings that are refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from edgeclip.bench.plan import Plan, check_settings, launches_of, share, steps_of
from edgeclip.bench.settings import PARTS, SCENARIOS, Settings, preset
from edgeclip.errors import InputError

SETTINGS = Settings(scenarios=SCENARIOS, launches=3, min_seconds=12, max_seconds=30, min_queries=100, seed=5)


def test_launches_share_a_scenario_out() -> None:
    parts = [share(SETTINGS, k, 3) for k in range(3)]
    assert sum(part.min_seconds for part in parts) == pytest.approx(12)
    assert sum(part.max_seconds for part in parts) == pytest.approx(30)
    assert sum(part.min_queries for part in parts) >= 100
    assert [part.seed for part in parts] == [5, 6, 7]  # queries of their own, the same in every run
    assert replace(parts[1], min_seconds=12, max_seconds=30, min_queries=100, seed=5) == SETTINGS
    assert [launches_of(name, SETTINGS) for name in SCENARIOS] == [3, 3, 3, 1]


def test_steps_stand_in_the_order_in_which_they_run() -> None:
    names = [name for name, _ in steps_of(SETTINGS, 10_000_000, variants=2, cores=4)]
    assert names[:4] == ["look at the device", "single-stream 1/3", "single-stream 2/3", "single-stream 3/3"]
    assert names[10:] == ["server", *PARTS]
    only = replace(SETTINGS, scenarios=("offline",), parts=("cold",))
    assert [name for name, _ in steps_of(only, 0, 1, 1)][4:] == ["cold"]


def test_time_that_is_left_shrinks_and_skips_what_was_left_out() -> None:
    told: list[tuple[str, float]] = []
    plan = Plan([("a", 4.0), ("b", 2.0), ("c", 1.0)], lambda what, left: told.append((what, left)))
    for step in "abc":
        plan.begin(step)
    assert told == [("a", 7.0), ("b", 3.0), ("c", 1.0)]
    plan = Plan([("a", 4.0), ("b", 2.0), ("c", 1.0)], lambda what, left: told.append((what, left)))
    plan.begin("c")
    assert told[-1] == ("c", 1.0)


def test_quick_is_expected_to_take_about_a_minute() -> None:
    def seconds(size: int, variants: int) -> float:
        return sum(left for _, left in steps_of(preset("quick"), size, variants, cores=2))

    assert seconds(12_000_000, 1) < 75  # nano
    assert seconds(600_000_000, 2) < 120  # a ViT-B/32 with its text tower in fp32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "segment"}, r"^task 'segment': "),
        ({"scenarios": ("stream",)}, "scenario 'stream': no such scenario. Choose from single-stream, "),
        ({"parts": ("stage",)}, "part 'stage': no such part. Choose from stages, "),
        ({"scenarios": (), "parts": ()}, "nothing to measure"),
        ({"min_seconds": 0}, "min_seconds: expected a number above 0, got 0"),
        ({"min_seconds": float("nan")}, "min_seconds: expected a number above 0, got nan"),
        ({"launches": 0}, "launches: expected a number above 0"),
        ({"min_seconds": 99}, "max_seconds: expected at least min_seconds, 99, got 30"),
        ({"batches": ()}, r"batches: expected numbers above 0, got \(\)"),
        ({"batches": (1, 0)}, "batches: expected numbers above 0"),
        ({"server_rate_per_s": -1}, "server_rate_per_s"),
        ({"server_rate_per_s": 0.01}, r"server_rate_per_s: expected 0\.333 to 8\.33e\+05, at least ten queries .*, got 0\.01"),
        ({"server_rate_per_s": 1e9}, r"server_rate_per_s: expected 0\.333 to .*, got 1e\+09"),
        ({"server_rate_per_s": float("nan")}, "server_rate_per_s: expected 0 or more, got nan"),
        ({"min_seconds": float("inf"), "max_seconds": float("inf")}, "min_seconds: expected a number above 0, got inf"),
        ({"server_bound_ms": 50, "scenarios": ("offline",)}, "server_bound_ms: is of the scenario server"),
        ({"task": "embed", "labels": ("a cat",)}, "labels: task 'embed' has no use for them"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_used(changes: dict[str, Any], message: str) -> None:
    check_settings(SETTINGS)
    with pytest.raises(InputError, match=message):
        check_settings(replace(SETTINGS, **changes))
