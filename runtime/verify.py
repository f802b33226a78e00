"""Prove that a bundle is whole and gives on this machine what it gave when it was made. See replay.py for its golden file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from edgeclip.bundle import Bundle, Variant, check_hashes
from edgeclip.errors import CheckFailed, EdgeClipError
from edgeclip.runtime.cpu import BYTE_SUMS, saturates
from edgeclip.runtime.engines import EngineOptions, open_variant
from edgeclip.runtime.images import Preprocessor
from edgeclip.runtime.replay import (
    REPLAYS,
    inputs_of,
    limit_of,
    pixels_from,
    read_golden,
    replay_tower,
    rows_of,
)
from edgeclip.runtime.text import TextEncoder
from edgeclip.runtime.verify_heads import replay_head
from edgeclip.runtime.verify_routing import golden_shares, replay_routing


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Report:
    """Every check, in the order they ran."""

    path: str
    checks: tuple[Check, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "path": self.path,
            "passed": all(c.passed for c in self.checks),
            "checks": [asdict(c) for c in self.checks],
        }

    def require(self) -> None:
        """Raise CheckFailed that names the checks which fell short."""
        failed = [check for check in self.checks if not check.passed]
        if failed:
            more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
            raise CheckFailed(
                f"{self.path}: {failed[0].name}: {failed[0].detail}{more}. Export or pull the bundle again."
            )


def verify(bundle: Bundle, *, threads: int | None = None, engine: str = "onnxruntime-cpu") -> Report:
    """Check every hash, open every graph, replay the golden inputs. Never raises for a check that falls short."""
    checks: list[Check] = []

    def attempt(name: str, work: Callable[[], str]) -> bool:
        try:
            checks.append(Check(name, True, work()))
        except EdgeClipError as error:
            checks.append(Check(name, False, str(error)))
        return checks[-1].passed

    if attempt("hashes", lambda: _hashes(bundle)):  # nothing that may have been tampered with is opened
        golden: dict[str, Any] = {}
        if attempt("golden file", lambda: golden.update(read_golden(bundle)) or f"{len(golden)} entries"):
            if bundle.manifest.preprocessing is not None and "pixels" in golden:
                attempt("preprocessing", lambda: _preprocessing(bundle, golden, "image"))
            if "detector/pixels" in golden:
                attempt("preprocessing of the detector", lambda: _preprocessing(bundle, golden, "detector"))
            if bundle.manifest.text is not None:
                attempt("tokenizer", lambda: _tokenizer(bundle, golden))
        for variant in bundle.manifest.variants:
            replay = partial(_replay, bundle, variant, golden, EngineOptions(threads=threads), engine)
            attempt(variant.id, replay)
    return Report(str(bundle.root), tuple(checks))


def _hashes(bundle: Bundle) -> str:
    check_hashes(bundle)
    size = sum(entry.size for entry in bundle.manifest.files.values())
    return f"{len(bundle.manifest.files)} files, {size / 1e6:.1f} MB"


def _preprocessing(bundle: Bundle, golden: dict[str, Any], tower: str) -> str:
    spec = bundle.manifest.preprocessing_of(tower)
    assert spec is not None
    wanted = golden["pixels"] if tower == "image" else pixels_from(golden["detector/pixels"], spec)
    preprocessor, worst = Preprocessor(spec, decode="exact"), 0.0
    for i, want in enumerate(wanted):
        found = np.empty((3, *spec.size), np.float32)
        preprocessor.into(golden[f"pictures/{i}"], found)
        worst = max(worst, float((np.abs(found - want) * np.array(spec.std)[:, None, None]).max() * 255))
    allowed = 1.01 if tower == "image" else 1.51  # a detector's are kept in whole levels
    if not worst <= allowed:
        raise CheckFailed(
            f"pixels are {worst:.2f} levels of 255 from the golden ones, {allowed:.3g} is allowed"
        )
    return f"{len(wanted)} pictures, at most {worst:.2f} levels of 255 away"


def _tokenizer(bundle: Bundle, golden: dict[str, Any]) -> str:
    settings = bundle.manifest.text
    assert settings is not None
    encoder = TextEncoder.open(bundle.path(settings.tokenizer), settings)
    texts = golden.get("texts", [])
    if not texts:
        return "opens"
    if not np.array_equal(encoder.encode(texts).input_ids, golden["input_ids"]):
        raise CheckFailed("the ids are not the golden ones")
    return f"{len(texts)} texts, ids equal"


def _replay(
    bundle: Bundle, variant: Variant, golden: dict[str, Any], options: EngineOptions, engine: str
) -> str:
    if variant.requires.get("engine") == "gpu" and engine == "onnxruntime-cpu":
        return "is for a GPU, not run here"
    if variant.requires.get(BYTE_SUMS) == "wide" and saturates():
        return "is for a processor that sums products of bytes in 32 bits, not run here"
    opened = open_variant(engine, bundle, variant, options)
    try:
        if variant.tower in REPLAYS:
            return replay_tower(bundle, opened, golden)[0]
        inputs, want = inputs_of(bundle, variant, golden)
        if variant.axes.head == "routing":
            return replay_routing(opened, inputs, golden_shares(variant, golden))
        limit = limit_of(variant)
        if variant.axes.head != "embeddings":
            return replay_head(bundle, opened, inputs, want, limit.of_cosines(want))
        found = rows_of(opened, inputs)
        if want is None:
            return f"{len(found)} made-up inputs, finite and different"
        return limit.check(found, want.astype(np.float64))
    finally:
        opened.close()
