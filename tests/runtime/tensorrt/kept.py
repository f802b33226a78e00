"""Engines for the tests of the store: a plan is arbitrary bytes, for nothing here deserialises one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeclip.bundle import Bundle, Fidelity
from edgeclip.runtime.cuda import Device
from edgeclip.runtime.tensorrt.library import Library
from edgeclip.runtime.tensorrt.record import BuildOptions, EngineReport, NetworkReport, Record
from edgeclip.runtime.tensorrt.store import Store

CARD = Device(0, "NVIDIA RTX A4000", (8, 6), 16 << 30, "13.0")
RTX = Library("tensorrt-rtx", None, "1.7.1.116")
PLAN = bytes(range(256)) * 16
OPTIONS = BuildOptions(profiles=({"N": (1, 8, 32)},), archs=("sm86", "sm89"))


def record_of(bundle: Bundle, tower: int = 0, **changes: Any) -> Record:
    """Every field of it says something."""
    variant = bundle.manifest.variants[tower]
    record = Record(
        library="tensorrt-rtx",
        version=RTX.version,
        platform="",
        device=None,
        bundle=bundle.digest,
        variant=variant,
        graphs={name: bundle.manifest.files[name].sha256 for name in variant.files},
        options=OPTIONS,
        size=0,
        sha256="",
        network=NetworkReport(9, {"fp16": 4}, {"fp16": 4096}, 1, {"fp16": 7, "fp32": 2}),
        engine=EngineReport(5, {"fp16": 5}, 1, 0, 1 << 20),
        fidelity=Fidelity(8, 1e-3, 0.99999, 0.9999, 0.9998, 0.004, 1.0),
        notes=("no fused attention",),
        seconds=5.4,
        created_by="edgeclip 0.1",
        provenance={"islands": "3"},
    )
    return replace(record, **changes)


def proper(bundle: Bundle, version: str = "10.3.0.30", device: Device = CARD, **options: Any) -> Record:
    """Of TensorRT itself, built on a device."""
    changed = replace(OPTIONS, archs=(), **options)
    return record_of(bundle, library="tensorrt", version=version, device=device, options=changed)


def library(version: str, name: str = "tensorrt") -> Library:
    """One that is not imported."""
    return Library(name, None, version)


def files(store: Store) -> list[str]:
    """What lies in its folder, the lock apart."""
    return sorted(path.name for path in store.folder.iterdir() if path.name != ".lock")


def paths(store: Store, record: Record) -> tuple[Path, Path]:
    """-> (its record, its plan)."""
    plan = store.plan_path(record)
    return plan.with_name(f"{plan.name.split('.')[0]}.json"), plan
