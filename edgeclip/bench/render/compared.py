"""What a comparison and a matrix say, as tables and sentences."""

from __future__ import annotations

from edgeclip.bench.cells import Matrix
from edgeclip.bench.comparison import Change, Comparison
from edgeclip.bench.render.grid import Grid, grid
from edgeclip.bench.render.words import a_few, fixed, interval, number, percent, size

READING = (
    "In brackets: intervals of 95 %. Worse, better: the interval leaves out 0. Same: it lies within ±5 %. "
    "Can tell: the smallest change that these runs could have told from none."
)


def verdict(comparison: Comparison) -> str:
    """The outcome in one sentence."""
    changes = comparison.changes
    failed = [change for change in changes if change.failed]
    if failed:
        parts = (f"{label(c)} {_of_gate(c)} ({c.gate})" for c in failed)
        return f"A gate failed: {'; '.join(parts)}."
    if comparison.failed:
        return "A gate failed."
    gated = [change for change in changes if change.gate]
    if any(change.undecided for change in gated):
        return "No gate failed, but these runs cannot tell for all of them."
    passed = f"{'The gate holds' if len(gated) == 1 else 'All gates hold'}. " if gated else ""
    counts = [
        f"{sum(change.verdict == word for change in changes)} {word}"
        for word in ("worse", "better", "same", "undecided")
        if any(change.verdict == word for change in changes)
    ]
    return f"{passed}Of {a_few(len(changes), 'figure')}: {', '.join(counts)}."


def _of_gate(change: Change) -> str:
    """The change, the figure itself, or both: whatever its gates limit."""
    limits = change.gate.split(", ")
    shown = [percent(change.change, signed=True)] if any("%" in one for one in limits) else []
    return ", ".join(shown + [f"{fixed(change.b)} {change.unit}"] * any("%" not in one for one in limits))


def label(change: Change) -> str:
    """ "single-stream p99"; "cold start, label pack"."""
    if change.metric == "cold":
        return f"cold start, {change.scenario}"
    return f"{change.scenario} {change.metric}".strip()


def change_text(change: Change) -> str:
    """The change with its interval: "+12 % (+9.0 to +15)"."""
    if change.low is None or change.high is None:
        return percent(change.change, signed=True)
    low, high = percent(change.low, signed=True), percent(change.high, signed=True)
    return f"{percent(change.change, signed=True)} ({low[:-2]} to {high[:-2]})"


def _joined(labels: list[str]) -> str:
    """ "single-stream p50, p90": a scenario's name stands once."""
    return ", ".join((labels[0], *(each.rpartition(" ")[2] for each in labels[1:])))


def gates(comparison: Comparison) -> list[str]:
    """A line for each figure under a gate."""
    return [f"{label(c)} ({c.gate}): {_outcome(c)}" for c in comparison.changes if c.gate]


def _outcome(change: Change) -> str:
    return "failed" if change.failed else "undecided" if change.undecided else "passed"


def changes(comparison: Comparison) -> Grid:
    """One row each figure."""
    rows = [
        (label(c), c.unit, fixed(c.a), fixed(c.b), change_text(c), c.verdict, "-" if c.resolution is None else f"±{percent(c.resolution)}", f"{c.gate}: {_outcome(c)}" if c.gate else "-")
        for c in comparison.changes
    ]  # fmt: skip
    alike: dict[str, dict[str, list[str]]] = {}  # note -> scenario -> labels
    for c in comparison.changes:
        if c.note:
            alike.setdefault(c.note, {}).setdefault(c.scenario, []).append(label(c))
    notes = [f"{'; '.join(map(_joined, labels.values()))}: {note}" for note, labels in alike.items()]
    if comparison.machine is not None:
        slower = "slower" if comparison.machine >= 0 else "faster"
        notes.append(
            f"By its pulse the machine itself was {percent(abs(comparison.machine))} {slower} under B."
        )
    head = "figure|unit|A|B|change|verdict|can tell|gate"
    return grid("Changes", head, rows, [*notes, *comparison.notes], "unit|verdict|gate")


def cells(matrix: Matrix) -> Grid:
    """One row each cell; those that failed have their reason below."""
    rows: list[tuple[str, ...]] = []
    reasons: dict[str, list[str]] = {}
    for c in matrix.cells:
        if c.state == "failed" or c.latency is None:
            reasons.setdefault(c.reason or "no reason was kept", []).append(
                f"{c.engine}, {c.variant}, batch {c.batch}"
            )
        done = c.latency if c.state == "done" else None
        figures = (
            (interval(done.p50), interval(done.p99), number(c.throughput_per_s))
            if done
            else ("failed", "-", "-")
        )
        rows.append(
            (
                c.engine,
                c.variant,
                c.precision,
                str(c.batch),
                *figures,
                number(c.relative_distance),
                size(c.peak_rss_bytes),
                c.provider or "-",
            )
        )
    notes = [f"failed: {'; '.join(where)}: {reason}" for reason, where in reasons.items()]
    head = "engine|variant|precision|batch|p50 ms|p99 ms|samples/s|distance|memory|provider"
    return grid("Cells", head, rows, notes, "variant|precision|provider")
