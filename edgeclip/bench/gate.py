"""A limit that a release must hold: `p99>+5%` against the other run, `p99>20ms` for itself."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgeclip.bench.comparison import Change
from edgeclip.bench.settings import SCENARIOS
from edgeclip.errors import InputError

# metric -> (unit of its figures, units that a limit may have with their size in it)
_TIME = ("ms", {"us": 1e-3, "ms": 1.0, "s": 1e3})
_BYTES = ("MB", {"kB": 1e-3, "MB": 1.0, "GB": 1e3})
METRICS: dict[str, tuple[str, dict[str, float]]] = {
    "p50": _TIME,
    "p90": _TIME,
    "p99": _TIME,
    "mean": _TIME,
    "throughput": ("/s", {"/s": 1.0}),
    "cold": _TIME,
    "rss": _BYTES,
    "size": _BYTES,
    "energy": ("J", {"mJ": 1e-3, "J": 1.0}),
}
_GATE = re.compile(
    r"(?:(?P<scenario>[\w-]+):)?(?P<metric>\w+)(?P<side>[<>])(?P<sign>[+-]?)(?P<number>\d+(?:\.\d+)?)(?P<unit>\S*)"
)
_EXAMPLES = "Write p99>+5%, throughput<-5%, p99>20ms or single-stream:p50>+10%."


@dataclass(frozen=True)
class Gate:
    """One limit. It is passed over for a figure that it does not name."""

    text: str
    scenario: str  # "": all
    metric: str
    above: bool  # fails above the limit; else below
    relative: bool  # the limit is a change, 0.05 for 5 %; else a figure in the metric's unit
    limit: float  # of a relative one signed: -0.05 for <-5%

    def judge(self, change: Change, ends: tuple[float, float], *, strict: bool) -> Change:
        """The change with this gate's answer beside those that it holds already.

        A change must be past the limit and more than chance; a figure fails when its whole interval is past, or itself where
        it has none. What is neither surely within nor surely past is undecided, which fails in strict use alone.

        Args:
            ends: the interval of B's own figure, both ends the figure itself where it has none.
        """
        if change.metric != self.metric or self.scenario not in ("", change.scenario):
            return change
        if self.relative:
            # no interval: two runs of the same lie within the resolution, or nothing can be said
            unknown = math.inf if change.verdict == "undecided" else change.resolution or 0.0
            low = change.change - unknown if change.low is None else change.low
            high = change.change + unknown if change.high is None else change.high
            failed = self._past(change.change) and (low > 0 if self.above else high < 0)
        else:
            low, high = ends
            failed = self._past(low if self.above else high)
        far = high if self.above else low
        undecided = not failed and self._past(far)
        note = ""
        if undecided:
            reach = f"{far:+.1%}" if self.relative else f"{far:.4g} {change.unit}"
            note = f"{self.text}: undecided, " + (
                f"the interval reaches {reach}" if math.isfinite(far) else "the change has no interval"
            )
        elif not self.relative and low == high and self.metric in ("p50", "p90", "p99"):
            note = f"{self.text}: decided by the figure alone, which has no interval"
        return replace(
            change,
            gate=", ".join(filter(None, (change.gate, self.text))),
            failed=change.failed or failed or (strict and undecided),
            undecided=change.undecided or undecided,
            note="; ".join(filter(None, (change.note, note))),
        )

    def _past(self, value: float) -> bool:
        return value > self.limit if self.above else value < self.limit


def parse_gate(text: str) -> Gate:
    """Read `[SCENARIO:]METRIC>LIMIT` or `<LIMIT`.

    Raises:
        InputError: no gate, or one that cannot mean anything: a percentage whose sign contradicts its side, a foreign unit.
    """
    found = _GATE.fullmatch(text.replace(" ", ""))
    if not found:
        raise InputError(f"gate {text!r}: expected [SCENARIO:]METRIC>LIMIT. {_EXAMPLES}")
    scenario, metric, side, sign, number, unit = found.groups(default="")
    if scenario not in ("", *SCENARIOS):
        raise InputError(f"gate {text!r}: no scenario {scenario!r}. Choose one of {', '.join(SCENARIOS)}.")
    if metric not in METRICS:
        raise InputError(f"gate {text!r}: no metric {metric!r}. Choose one of {', '.join(METRICS)}.")
    above, relative, units = side == ">", unit == "%", METRICS[metric][1]
    if relative and sign != ("+" if above else "-"):
        want = f"{metric}>+{number}%" if above else f"{metric}<-{number}%"
        raise InputError(
            f"gate {text!r}: a percentage is a change from A, so its sign follows its side: {want}."
        )
    if not relative and (sign or unit not in units):
        raise InputError(
            f"gate {text!r}: {sign + number + unit} is no limit of {metric}. "
            f"Give a change in %, or a figure without sign in {', '.join(units)}."
        )
    limit = float(sign + number) / 100 if relative else float(number) * units[unit]
    return Gate(text.replace(" ", ""), scenario, metric, above, relative, limit)


def apply_gates(
    changes: Sequence[Change],
    ends: Sequence[tuple[float, float]],
    gates: Sequence[Gate],
    *,
    strict: bool = False,
) -> tuple[Change, ...]:
    """All gates on all changes.

    Args:
        ends: of each change, the interval of B's own figure.
    Raises:
        InputError: a gate on a figure that the two runs do not share; it would hold whatever happens.
    """
    for gate in gates:
        if not any(c.metric == gate.metric and gate.scenario in ("", c.scenario) for c in changes):
            have = ", ".join(dict.fromkeys(f"{c.scenario}:{c.metric}".lstrip(":") for c in changes))
            raise InputError(
                f"gate {gate.text}: not measured in both runs, so it cannot be held. They share {have}."
            )
    judged = []
    for change, own in zip(changes, ends, strict=True):
        for gate in gates:
            change = gate.judge(change, own, strict=strict)
        judged.append(change)
    return tuple(judged)
