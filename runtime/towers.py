"""One tower of a bundle: opened at its first use, closed when it has been idle, safe to use from many threads."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence

from edgeclip.bundle import Bundle, Variant
from edgeclip.errors import BundleError, EdgeClipError, EngineError
from edgeclip.runtime import fork, stages
from edgeclip.runtime.abilities import abilities
from edgeclip.runtime.engines import Engine, EngineOptions, Slot, engine_order, local_variants, open_variant
from edgeclip.runtime.engines.seam import UNCOUNTED
from edgeclip.runtime.expert_order import in_order, loses

MAX_SPARE_SLOTS = 4  # kept for the next call; the rest are freed

_CALLED = {
    "detector": "detector",
    "tokens": "region encoder",
    "regions": "region encoder",
}  # else "<kind> tower"
_TO_HAVE_IT = {
    "detector": " Export an OWL-ViT or OWLv2 to have one.",
    "tokens": " `edgeclip export --regions` adds one.",
}

log = logging.getLogger(__name__)


class Tower:
    """One of TOWERS in model.py.

    Args:
        kind: as the manifest's variants say, "image", "text", "detector", ...
        head: what comes out of it, as in Axes.
        engine: an entry of ENGINES, or several to try in this order; None: the best one that opens here.
        precision: only variants of this precision; None: the bundle's order decides.
        wanted: ids of variants; only those among them are opened. (): any.
        unload_after: close the engine after so many idle seconds; None: never.
    """

    def __init__(
        self,
        bundle: Bundle,
        kind: str,
        *,
        head: str = "embeddings",
        engine: str | Sequence[str] | None = None,
        options: EngineOptions | None = None,
        precision: str | None = None,
        wanted: Sequence[str] = (),
        unload_after: float | None = None,
    ) -> None:
        self.bundle, self.kind, self.head, self.options = bundle, kind, head, options or EngineOptions()
        self._wanted, self._precision, self._unload_after = engine, precision, unload_after
        self._ids = tuple(wanted)
        self.variant: Variant | None = None  # what was opened last
        self.fell_back = ""  # why nothing that comes before what is in use was opened; "": it is the first
        self._announced = self._said_lost = False
        self._lock = threading.RLock()
        self._engine: Engine | None = None
        self._spare: list[Slot] = []  # last given back, last
        self._users = 0
        self._last_used = 0.0
        self._timer: threading.Timer | None = None
        fork.register(self)

    @property
    def variants(self) -> list[Variant]:
        """What may be opened, preferred first. Raises EngineError if the bundle has none of them."""
        manifest = self.bundle.manifest
        built = [
            variant
            for name in engine_order(self._wanted)
            for variant in local_variants(name, self.bundle, self.options)
        ]
        return self._fitting([*built, *manifest.variants])

    def _fitting(self, every: Sequence[Variant]) -> list[Variant]:
        """Those of this tower that the caller wants, in their order."""
        found = [v for v in every if (v.tower, v.axes.head) == (self.kind, self.head)]
        if not found:
            heads = sorted({variant.axes.head for variant in every if variant.tower == self.kind})
            but = f" that gives {self.head}, only {' and '.join(heads)}" if heads else ""
            what = _CALLED.get(self.kind, f"{self.kind} tower")
            raise EngineError(
                f"{self.bundle.root}: this bundle has no {what}{but}{'' if but else abilities(self.bundle.manifest)}."
                f"{_TO_HAVE_IT.get(self.kind, '') if not but else ''}"
            )
        if own := [variant for variant in found if variant.id in self._ids]:
            return own  # named by the caller, who need not say its precision as well
        fitting = [variant for variant in found if self._precision in (None, variant.axes.precision)]
        if not fitting:
            have = ", ".join(sorted({variant.axes.precision for variant in found}))
            raise EngineError(
                f"{self.bundle.root}: no {self.kind} tower in {self._precision}; it has {have}."
            )
        return fitting

    @property
    def name(self) -> str:
        """What `info` calls it: "image", "labels" and "prompts" for its heads; of others the kind comes first, "detector-prompts"."""
        if self.head == "embeddings":
            return self.kind
        return self.head if self.kind == "image" else f"{self.kind}-{self.head}"

    @property
    def engine(self) -> Engine | None:
        """The engine if it is open now."""
        return self._engine

    @contextlib.contextmanager
    def lease(self) -> Iterator[Engine]:
        """The open engine, which stays open until the block ends."""
        with self._lock:
            if self._engine is None:
                begun = stages.begin()
                self._engine = self._open()
                stages.end("open", begun)
            engine = self._engine
            self._users += 1
        try:
            yield engine
        finally:
            with self._lock:
                self._users -= 1
                self._last_used = time.monotonic()
                self._watch()

    def take(self, engine: Engine, batch: int, sizes: Mapping[str, int] | None = None) -> Slot:
        """A slot of the leased engine: one that was given back, if the shape is right, else a new one."""
        shape = (batch, *sorted((sizes or {}).items()))
        with self._lock:
            for i in reversed(range(len(self._spare))):
                if self._spare[i].shape == shape:
                    return self._spare.pop(i)
        slot = engine.slot(batch, sizes)
        slot.shape = shape
        return slot

    def give(self, engine: Engine, slot: Slot) -> None:
        """Give a slot back for the next call. One that is not given back is freed with its last reference."""
        with self._lock:
            if engine is self._engine:  # not closed meanwhile
                self._spare.append(slot)
                del self._spare[:-MAX_SPARE_SLOTS]

    def close(self) -> None:
        """Close the engine; a later lease opens it again. Waits for nobody: end the calls first."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self._spare.clear()
            engine, self._engine = self._engine, None  # also where closing fails, as on a GPU that is lost
            if engine is not None:
                engine.close()

    def after_fork(self) -> None:
        """In a forked child: forget the engine, whose threads stayed in the parent."""
        fork.abandon((self._engine, self._spare))
        self._lock = threading.RLock()
        self._engine, self._spare, self._users, self._timer = None, [], 0, None

    def _open(self) -> Engine:
        _ = self.variants  # refuses what no engine could open
        # engine -> why the variant that it would rather open did not; what was built for the engine in use and did not open
        failed: dict[str, EdgeClipError] = {}
        for name in engine_order(self._wanted):
            try:
                engine, passed_over = self._open_on(name)
            except BundleError:
                raise
            except EdgeClipError as error:
                failed[name] = error
                continue
            self.variant = engine.variant
            self.fell_back = _told({**failed, **passed_over})
            self._announce(engine)
            return engine
        first, *others = failed.values()
        if not others:
            raise first
        raise EngineError(f"{self.name} tower: opens on no engine. {_told(failed)}") from first

    def _open_on(self, name: str) -> tuple[Engine, dict[str, EdgeClipError]]:
        """Open the first of the candidates that this engine opens. Raises the reason why the very first did not.

        Returns:
            It, and what was built for this engine before it and does not open, with the reasons.
        """
        reasons: dict[str, EdgeClipError] = {}
        built = {variant.id for variant in local_variants(name, self.bundle, self.options)}
        for variant in self._candidates(name):
            try:
                engine = open_variant(name, self.bundle, variant, self.options)
            except BundleError:
                raise
            except EdgeClipError as error:
                log.info("%s does not open on %s: %s", variant.id, name, error)
                reasons[variant.id] = error
            else:
                return engine, {id_: error for id_, error in reasons.items() if id_ in built}
        raise next(iter(reasons.values()))

    def _announce(self, engine: Engine) -> None:
        """Say what runs; once as a warning where an engine that was present, or asked for, did not open."""
        variant = engine.variant.id
        log.info(
            "%s tower: %s on %s (%s, %d threads)", self.name, variant, engine.name, engine.provider, engine.threads
        )  # fmt: skip
        if self.fell_back and not self._announced:
            self._announced = True
            log.warning("%s tower: runs on %s; %s", self.name, engine.name, self.fell_back, extra=UNCOUNTED)
        if variant not in self._ids and (lost := loses(engine.variant)) and not self._said_lost:
            self._said_lost = True
            log.warning(
                "%s tower: runs %s, in which %s. Name another variant, or this one", self.name, variant, lost
            )

    def _candidates(self, name: str) -> list[Variant]:
        """What one engine may open: what was built for it, then the bundle's own; last what proved its worth elsewhere only.

        Raises EngineError where it has none of what is wanted.
        """
        built = local_variants(name, self.bundle, self.options)
        ids = {variant.id for variant in built}
        own = [v for v in self.bundle.manifest.variants if v.id not in ids]
        own = in_order(own, name)
        own.sort(key=lambda v: bool(v.proven) and name not in v.proven)
        return self._fitting([*in_order(built, name), *own])

    def _watch(self) -> None:
        """Start the clock of the idle unload, unless it runs."""
        if self._unload_after is not None and self._timer is None and self._engine is not None:
            self._start(self._unload_after)

    def _start(self, seconds: float) -> None:
        self._timer = threading.Timer(seconds, self._unload_if_idle)
        self._timer.daemon = True
        self._timer.start()

    def _unload_if_idle(self) -> None:
        with self._lock:
            self._timer = None
            left = self._last_used + (self._unload_after or 0) - time.monotonic()
            if self._users or left > 0:
                self._start(max(left, 0.05))
            elif self._engine is not None:
                log.info("%s tower: idle for %g s, unloaded", self.name, self._unload_after)
                self.close()


def _told(failed: Mapping[str, EdgeClipError]) -> str:
    """Why engines did not open, on one line."""
    return "; ".join(f"{name}: {str(error).rstrip('.')}" for name, error in failed.items())
