"""Two bundles in one run: each in a process of its own, by turns of a quarter of a second, so that what slows the machine slows both.

Both get the same queries, and who begins alternates (A B, B A, ...), so that a machine that grows hot favours neither. A process keeps its
layout in memory, and with it its luck, for as long as it lives: pairs of processes are started several times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgeclip.bench.compare import PERCENTS, Row, exact_row, now, timed_row
from edgeclip.bench.comparison import Comparison
from edgeclip.bench.difference import Difference, alone, in_turns
from edgeclip.bench.gate import Gate, apply_gates
from edgeclip.bench.opening import Used
from edgeclip.bench.plan import BYTES_PER_S, PROCESS_S, Tell, silent
from edgeclip.bench.report import Quantile
from edgeclip.bench.samples import Inputs
from edgeclip.bench.scenarios.loop import draws
from edgeclip.bench.settings import ScenarioName, Settings
from edgeclip.bench.statistics import CARRIED_BY
from edgeclip.bench.turns import Queries, Side
from edgeclip.bundle import Bundle, open_bundle
from edgeclip.errors import InputError

TURN_S = 0.25
NARROW = 0.03  # half of the interval of p50 at which it is enough: a change of 5 % is told from none, and from 10 %
# Pairs of processes for each of the settings' launches. Pairs differ beyond what their turns explain: of 200 comparisons of a bundle with
# itself on a busy machine, intervals over turns missed the truth in 10 %, over 20 pairs of 3 s in 6 %, and those found 97 % of slowdowns by 10 %.
PAIRS = 2
LEAST_PAIRS = 5
WARM_S, WARM_QUERIES = (
    0.5,
    12,
)  # of each process, whichever is less, before a whole turn that does not count either


class Player(Protocol):
    """What takes turns: a `Side`."""

    def opened(self) -> Used:
        """What runs in it."""

    def turn(self, queries: Queries) -> list[int]:
        """ns of each query."""

    def close(self) -> None:
        """End it."""


Start = Callable[[str, Settings, Inputs], Player]


@dataclass(frozen=True)
class Played:
    """All turns of one scenario, in the order in which they were taken; query i is the same for both."""

    ns: tuple[NDArray[np.float64], NDArray[np.float64]]  # of A and B, (N,) each
    turn: NDArray[np.intp]  # (N,) two turns of each, A B B A, are one
    pair: NDArray[np.intp]  # (N,) which pair of processes


def compare_live(
    a: Bundle | str,
    b: Bundle | str,
    settings: Settings,
    inputs: Inputs,
    gates: Sequence[Gate] = (),
    tell: Tell = silent,
    *,
    strict: bool = False,
    start: Start = Side,
) -> Comparison:
    """Run A and B in turns, and compare them query by query.

    Args:
        settings: `min_seconds` are shared by both and by twice `launches` pairs of processes; further pairs are started until the
            interval of p50 is narrow enough or `max_seconds` are over.
        strict: a gate that cannot be decided fails.
        start: starts one side.
    Raises:
        BundleError, EngineError, InputError: one of them cannot be opened, or cannot do the task; or no scenario can be run in turns.
    """
    specs = [one.spec if isinstance(one, Bundle) else one for one in (a, b)]
    names: list[ScenarioName] = [name for name in settings.scenarios if name != "server"]
    if not names:
        raise InputError(
            "compare --live: queries that arrive by themselves cannot take turns. Choose another scenario than server."
        )
    files = [open_bundle(spec).manifest.files.values() for spec in specs]
    sizes = [sum(entry.size for entry in entries) / 1e6 for entries in files]
    rows, notes = list[Row](), list[str]()
    open_s = sum(PROCESS_S + 1e6 * size / BYTES_PER_S + WARM_S for size in sizes)
    for k, name in enumerate(names):
        later = (len(names) - 1 - k) * (settings.min_seconds + _pairs(settings) * open_s)
        played, ran = _play(name, specs, settings, inputs, _about(tell, settings, open_s, later), start)
        rows += rows_of(name, played, _per_query(name, settings))
        notes += [f"{name}: {played.pair[-1] + 1} pairs of processes, {len(played.turn)} queries of each"]
    rows.append(exact_row("", "size", *sizes))
    changes = apply_gates([change for change, _ in rows], [ends for _, ends in rows], gates, strict=strict)
    one, other = (Path(spec).name for spec in specs)
    labels = (one, other) if one != other else (f"{one} (A)", f"{other} (B)")
    notes += [f"{label}: {_told(side)}" for label, side in zip(labels, ran, strict=True)]
    if len(names) < len(settings.scenarios):
        notes.append("server: not run, since queries that arrive by themselves cannot take turns")
    failed = any(change.failed for change in changes)
    return Comparison(now(), "live", *labels, changes, None, failed, tuple(notes))


def rows_of(name: ScenarioName, played: Played, per_query: int) -> list[Row]:
    """All figures of one scenario."""
    ms = [one / 1e6 for one in played.ns]
    rows, means = list[Row](), None
    for metric, percent in PERCENTS.items():
        enough = percent is None or len(ms[0]) * (100 - percent) >= 100 * CARRIED_BY
        found = difference_of(played, percent) if enough else None
        means = found if percent is None else means
        one, other = (float(v.mean() if percent is None else np.percentile(v, percent)) for v in ms)
        ends = alone(np.log(ms[1]), played.pair, percent) if enough else (None, None)
        rows.append(timed_row(name, metric, one, Quantile(other, *ends), found, "too few queries"))
    rates = [1e3 * per_query / v.mean() for v in ms]
    faster = means and Difference(-means.log, means.half, corrected=False)
    rows.append(timed_row(name, "throughput", rates[0], Quantile(rates[1]), faster, "no interval"))
    return rows


def difference_of(played: Played, percent: float | None) -> Difference:
    """B against A, once what slowed both sides of a turn is taken out; its interval is over pairs of processes."""
    a, b, turn = np.log(played.ns[0]), np.log(played.ns[1]), played.turn
    level = (np.bincount(turn, a) + np.bincount(turn, b)) / (2 * np.bincount(turn))
    return in_turns(a - level[turn], b - level[turn], played.pair, percent)


def _pairs(settings: Settings) -> int:
    """The fewest pairs of processes of one scenario."""
    return max(LEAST_PAIRS, PAIRS * settings.launches)


def _about(tell: Tell, settings: Settings, open_s: float, later_s: float) -> Callable[[str, int], None]:
    """Tells what begins, and the time left: of this pair and those after it, and of the scenarios after this one."""
    each = settings.min_seconds / _pairs(settings) + open_s
    return lambda what, pair: tell(what, max(1, _pairs(settings) - pair) * each + later_s)


def _play(
    name: ScenarioName,
    specs: list[str],
    settings: Settings,
    inputs: Inputs,
    about: Callable[[str, int], None],
    start: Start,
) -> tuple[Played, list[Used]]:
    pairs, begun = _pairs(settings), perf_counter()
    taken: list[tuple[int, list[int], list[int]]] = []  # pair, ns of A and of B, a turn each
    pair, ran = 0, list[Used]()
    while pair < pairs or (perf_counter() - begun < settings.max_seconds and not _narrow(taken)):
        about(f"{name}, both in turns, {pair + 1}{f'/{pairs}' if pair < pairs else ''}", pair)
        with ExitStack() as stack:
            sides = list[Player]()
            for spec in specs:
                sides.append(start(spec, settings, inputs))
                stack.callback(sides[-1].close)
            ran = [side.opened() for side in sides]
            taken += [(pair, *both) for both in _turns(sides, name, settings, inputs, pair, pairs)]
        pair += 1
    return _played(taken), ran


def _turns(
    sides: list[Player], name: ScenarioName, settings: Settings, inputs: Inputs, pair: int, pairs: int
) -> list[tuple[list[int], list[int]]]:
    """Turns of one pair of processes, an even number: the share of the time that is theirs."""
    samples = len(inputs.pictures) or len(inputs.texts)
    queries = draws(samples, _per_query(name, settings), settings.seed + pair)
    warm = [_warm(side, queries) for side in sides]
    size = max(1, round(TURN_S * 1e9 / max(median(ns) for ns in warm)))
    for side in sides:
        side.turn(list(islice(queries, size)))
    found, spent = list[tuple[list[int], list[int]]](), 0
    while spent < 1e9 * settings.min_seconds / pairs or len(found) < 4 or len(found) % 2:
        asked = list(islice(queries, size))
        if (len(found) + pair) % 2:
            second = sides[1].turn(asked)
            found.append((sides[0].turn(asked), second))
        else:
            found.append((sides[0].turn(asked), sides[1].turn(asked)))
        spent += sum(map(sum, found[-1]))
    return found


def _warm(side: Player, queries: Iterator[list[int]]) -> list[int]:
    """ns of the first queries of a process, two at least."""
    found = list[int]()
    while len(found) < 2 or (len(found) < WARM_QUERIES and sum(found) < 1e9 * WARM_S):
        found += side.turn([next(queries)])
    return found


def _narrow(taken: list[tuple[int, list[int], list[int]]]) -> bool:
    return difference_of(_played(taken), 50).half <= NARROW


def _played(taken: list[tuple[int, list[int], list[int]]]) -> Played:
    lengths = [len(one) for _, one, _ in taken]
    return Played(
        ns=(
            np.concatenate([a for _, a, _ in taken], dtype=np.float64),
            np.concatenate([b for _, _, b in taken], dtype=np.float64),
        ),
        turn=np.repeat(np.arange(len(taken)) // 2, lengths),
        pair=np.repeat([pair for pair, _, _ in taken], lengths),
    )


def _per_query(name: ScenarioName, settings: Settings) -> int:
    sizes = {"multi-stream": settings.multi_stream_samples, "offline": settings.offline_batch}
    return sizes.get(name, 1)


def _told(side: Used) -> str:
    towers = ", ".join(f"{one.variant} on {one.provider}" for one in side.towers)
    return f"{towers}, {side.threads} threads" + (f" ({side.fell_back})" if side.fell_back else "")
