"""LoadGen's summary is read rightly, and the page made of it says what was measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import loadgen

# What LoadGen 6.0.17 writes, without the lines that are not read.
SINGLE = """SUT name : PySUT
90.0th percentile latency (ns) : 41141000
Early Stopping Result:
 * Processed at least 64 queries (172).
 * Would discard 7 highest latency queries.
 * Early stopping 90.0th percentile estimate: 46170000
 * Not enough queries processed for 99.0th percentile
 * Early stopping 99.0th percentile estimate: 71000000
Mean latency (ns)               : 25000000
50.00 percentile latency (ns)   : 28780000
90.00 percentile latency (ns)   : 41140000
99.00 percentile latency (ns)   : 61110000
samples_per_query : 1
"""
MULTI = """ * Early stopping 99.0th percentile estimate: 300000000
Per-query latency:
Mean latency (ns)               : 160000000
50.00 percentile latency (ns)   : 141200000
90.00 percentile latency (ns)   : 181380000
99.00 percentile latency (ns)   : 188900000
samples_per_query : 8
"""
SERVER = """Completed samples per second    : 13.04
Mean latency (ns)               : 38000000
50.00 percentile latency (ns)   : 29280000
90.00 percentile latency (ns)   : 49070000
99.00 percentile latency (ns)   : 68540000
samples_per_query : 1
"""
OFFLINE = """Samples per second: 58.6195
Mean latency (ns)               : 5000000000
50.00 percentile latency (ns)   : 5000000000
samples_per_query : 600
"""
FOUND = {
    "single-stream": (SINGLE, (172, 28.78, 41.14, 61.11, 46.17, 7, 40.0)),
    "multi-stream": (MULTI, (172, 141.2, 181.38, 188.9, 300.0, None, 50.0)),
    "server": (SERVER, (172, 29.28, 49.07, 68.54, None, None, 13.04)),
    "offline": (OFFLINE, (172, None, None, None, None, None, 58.6195)),
}


@pytest.mark.parametrize("name", FOUND)
def test_a_summary_is_read(name: str) -> None:
    summary, expected = FOUND[name]
    assert loadgen._parse(name, summary, 172) == pytest.approx(
        dict(zip(loadgen.FIGURES, expected, strict=True))
    )


def test_the_page_shows_both_and_how_they_differ(tmp_path: Path) -> None:
    rows = {}
    for name, (summary, _) in FOUND.items():
        theirs = loadgen._parse(name, summary, 172)
        ours = {key: None if value is None else 1.02 * value for key, value in theirs.items()}
        rows[name] = {"LoadGen": [theirs], "edgeclip": [ours]}
    summary = {
        "machine": {"cpu": "toy"}, "ran": "nano", "task": "classify", "inputs": "generated", "seconds": 30, "rounds": 1,
        "server": {"rate_per_s": 15.0, "bound_ms": 300.0}, "scenarios": rows,
    }  # fmt: skip
    loadgen._write(tmp_path / "r", summary)
    text = (tmp_path / "r.md").read_text()
    assert "| single-stream | LoadGen | 172 | 28.78 | 41.14 | 61.11 | 46.17 | 40.00 |" in text
    assert "| | difference | | +2.0 % | +2.0 % | +2.0 % | - | +2.0 % |" in text
    assert "in 1 of its 1 runs" in text  # 172 queries: 7 are left out by both
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1
