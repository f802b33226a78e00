"""An index built by many machines: Ray Data's workers embed, this process alone adds.

    build_with_ray("photos", "pets.index", "clip-b32", ray=RayOptions("auto"))

Without an address Ray runs on this machine's cores, the same way. What the index has is not sent; vectors, ids and failures are those of
`build_index`, and one that was interrupted goes on. Workers open pictures and the bundle by their paths, so both lie in folders that all
machines share; pictures inside shards and tables are sent.
"""

from __future__ import annotations

import copy
import gc
import itertools
import logging
import os
import pickle
import socket
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from edgeclip.errors import EdgeClipError, EngineError, InputError, MissingExtraError
from edgeclip.runtime.index.build import build_index
from edgeclip.runtime.index.build_words import BuildReport, BuildSettings, Progress
from edgeclip.runtime.index.sources.entry import Entry
from edgeclip.runtime.index.types import IndexSettings
from edgeclip.runtime.index.ways import Made, Way

SENT = 32  # entries in one row of the data set: some four batches of a worker
WAVE_ENTRIES, WAVE_BYTES = 100_000, 512 << 20  # of one data set; starting its workers takes seconds
MOST_BLOCKS = 2000  # each is a task
REACH_S = 5.0  # to open a connection; Ray itself goes on trying
_CLIENT_PORT = 10001  # of ray://host
_ENVIRONMENT = {  # of a Ray that is started here
    "RAY_USAGE_STATS_ENABLED": "0",  # it would report to its makers
    "RAY_worker_niceness": "0",  # 15 is its own: any other program would come first
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # it warns of actors of its own
}


@dataclass(frozen=True)
class RayOptions:
    """Where and how wide. Raises InputError for what cannot be used."""

    address: str | None = (
        None  # "auto": the cluster that this machine belongs to; "ray://host:10001"; None: this machine alone
    )
    workers: int | None = None  # None: as many as fit the cluster
    cpus: int = 4  # of one worker, and so its engine's threads; at most what a machine has
    gpus: float = 0  # of one worker

    def __post_init__(self) -> None:
        if (self.workers is not None and self.workers < 1) or self.cpus < 1 or self.gpus < 0:
            raise InputError(
                f"Ray: expected 1 or more workers and cpus, and no fewer than 0 gpus, got {self.workers}, {self.cpus}, {self.gpus}."
            )


def build_with_ray(
    source: Any,
    path: str | os.PathLike[str],
    bundle: str,
    *,
    ray: RayOptions | None = None,
    opening: Mapping[str, Any] | None = None,
    settings: IndexSettings | None = None,
    how: BuildSettings | None = None,
    overwrite: bool = False,
    tell: Callable[[Progress], None] | None = None,
) -> BuildReport:
    """`build_index`, with the embedding done by Ray's workers.

    Args:
        bundle: as `edgeclip.load` takes it, on every machine.
        opening: further arguments of `edgeclip.load`, for the workers: engine, variants, precision.
    Raises:
        MissingExtraError: no Ray. EngineError: no cluster, or a worker that cannot start. InputError: as `build_index`.
    """
    from edgeclip.runtime.model import load

    options = ray or RayOptions()
    with load(bundle, **(opening or {})) as model, cluster(options):
        spread = Spread(bundle, dict(opening or {}), options)
        return build_index(
            source,
            path,
            model,
            settings=settings,
            how=replace(how or BuildSettings(), elsewhere=spread),
            overwrite=overwrite,
            tell=tell,
        )


@dataclass(frozen=True)
class Spread:
    """Makes a way of embedding that Ray's workers go."""

    bundle: str
    opening: dict[str, Any] = field(default_factory=dict)
    options: RayOptions = field(default_factory=RayOptions)

    @property
    def place(self) -> str:
        """The bundle, by a path that is the same wherever a worker stands."""
        return str(Path(self.bundle).resolve()) if Path(self.bundle).exists() else self.bundle

    def __call__(self, way: Way) -> Way:
        """The same way, elsewhere."""
        return cast("Way", OnRay(way, self))


class OnRay:
    """A way whose vectors Ray's workers make; everything else happens here."""

    def __init__(self, way: Way, spread: Spread) -> None:
        self._way, self._spread = way, spread
        self._sent = _without_model(way)  # now: later it holds what it knows of the whole index

    def __getattr__(self, name: str) -> Any:
        return getattr(self._way, name)

    def make(self, entries: Iterator[Entry]) -> Iterator[Made | EdgeClipError]:
        """In order, as the workers finish. Raises EngineError where one cannot start or dies."""
        import ray

        while wave := _wave(entries):
            try:
                yield from self._embed(wave)
            except ray.exceptions.RayError as error:
                raise EngineError(f"Ray: {_told(error)}") from error

    def _embed(self, wave: list[dict[str, Any]]) -> Iterator[Made | EdgeClipError]:
        import ray.data

        nodes, total = ray.nodes(), ray.cluster_resources()  # type: ignore[no-untyped-call]
        size, cpus = _size(self._spread.options, nodes, total)
        rows = ray.data.from_items(wave, override_num_blocks=min(len(wave), MOST_BLOCKS))
        made = rows.map_batches(
            _Worker,
            fn_constructor_args=(self._sent, self._spread.place, {**self._spread.opening, "threads": cpus}),
            batch_size=1,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(size=min(size, len(wave))),
            num_cpus=cpus,
            num_gpus=self._spread.options.gpus,
        )
        early: dict[int, bytes] = {}  # rows that came before their turn
        turn = 0
        for row in made.iter_rows():
            early[row["number"]] = row["made"]
            while turn in early:
                found = pickle.loads(early.pop(turn))  # what our own worker wrote
                if isinstance(found, EdgeClipError):
                    raise EngineError(f"Ray: a worker: {found}") from found
                yield from found
                turn += 1


class _Worker:
    """One process that embeds; it opens the bundle once. What it cannot do it answers, since Ray would try again and again."""

    def __init__(self, way: Any, bundle: str, opening: dict[str, Any]) -> None:
        self._way, self._bundle, self._opening = way, bundle, opening

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        try:
            answer: Any = self._made(pickle.loads(batch["entries"][0]))
        except EdgeClipError as error:
            answer = error
        return {"number": batch["number"], "made": [pickle.dumps(answer)]}

    def _made(self, entries: list[Entry]) -> list[Made | EdgeClipError]:
        if self._way._model is None:
            from edgeclip.runtime.model import load

            self._way._model = load(self._bundle, **self._opening)
        return list(self._way.make(iter(entries)))


def _without_model(way: Any) -> Any:
    found = copy.copy(way)
    found._model = None
    return found


def _wave(entries: Iterator[Entry]) -> list[dict[str, Any]]:
    """Rows of entries, until they are many or large."""
    rows: list[dict[str, Any]] = []
    size = 0
    while (
        len(rows) * SENT < WAVE_ENTRIES
        and size < WAVE_BYTES
        and (part := list(itertools.islice(entries, SENT)))
    ):
        rows.append({"number": len(rows), "entries": pickle.dumps(part)})
        size += len(rows[-1]["entries"])
    return rows


def _size(
    options: RayOptions, nodes: Sequence[Mapping[str, Any]], total: Mapping[str, float]
) -> tuple[int, int]:
    """How many workers, and the CPUs of each. Raises EngineError for a cluster without what one worker needs."""
    largest = max((int(node["Resources"].get("CPU", 0)) for node in nodes if node["Alive"]), default=0)
    cpus = min(options.cpus, largest)
    if not cpus or total.get("GPU", 0) < options.gpus:
        raise EngineError(
            f"Ray: the cluster has {total.get('CPU', 0):g} CPUs and {total.get('GPU', 0):g} GPUs; a worker needs 1 and {options.gpus:g}."
        )
    fitting = int(total.get("CPU", 0) // cpus)
    if options.gpus:
        fitting = min(fitting, int(total.get("GPU", 0) / options.gpus))
    return options.workers or max(1, fitting), cpus


@contextmanager
def cluster(options: RayOptions) -> Iterator[None]:
    """Ray, started or joined for as long as it takes; one that the caller has started stays as it is.

    Raises:
        MissingExtraError: no Ray. EngineError: no cluster at this address. InputError: an address that is none.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingExtraError("Ray: ray is not installed. pip install 'edgeclip[ray]'") from error
    ours = not ray.is_initialized()
    if ours:
        for name in (
            "ray",
            "ray.data",
        ):  # a report on stderr every few seconds, and pages of what is told in one line here
            logging.getLogger(name).setLevel(logging.CRITICAL)
        if options.address is not None:
            _reach(options.address)
        local: dict[str, Any] = {} if options.address else {"include_dashboard": False}
        try:
            ray.init(options.address or "local", logging_level=logging.CRITICAL, log_to_driver=False, **local)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise EngineError(f"Ray: {options.address or 'this machine'}: {_told(error)}") from error
    context = ray.data.DataContext.get_current()
    bars, context.enable_progress_bars = context.enable_progress_bars, False
    try:
        yield
    except BaseException as error:
        # what was interrupted ends while Ray is there: later its destructor would start another one
        traceback.clear_frames(error.__traceback__)
        raise
    finally:
        gc.collect()
        context.enable_progress_bars = bars
        if ours:
            ray.shutdown()


def _reach(address: str) -> None:
    """Raises EngineError where nothing answers at HOST:PORT or ray://HOST:PORT, InputError for a port that is none.

    "auto" and schemes of others are left to Ray.
    """
    scheme, _, place = address.rpartition("://")
    if scheme not in ("", "ray") or address in ("auto", "local"):
        return
    try:
        parts = urlsplit(f"//{place}")
        host, port = parts.hostname, parts.port or (_CLIENT_PORT if scheme else None)
    except ValueError:  # a port that is no number, a bracket left open
        host = port = None
    if host is None or port is None:
        raise InputError(f"Ray: expected auto, ray://HOST:PORT or HOST:PORT, got {address!r}.")
    try:
        socket.create_connection((host, port), timeout=REACH_S).close()
    except (OSError, UnicodeError) as error:  # UnicodeError: a name that cannot be one of a host
        raise EngineError(
            f"Ray: {address}: expected a cluster's head, nothing answers at {host} port {port} ({error}). "
            "Start one there (ray start --head), or let its port through."
        ) from error


def _told(error: BaseException) -> str:
    """The last line of what Ray says, which is the worker's own error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:500] if lines else type(error).__name__
