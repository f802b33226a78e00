"""What the result is for: this machine, where graphs are timed, or a device whose report is at hand.

A device report is the JSON that `edgeclip compress BUNDLE --measure-only --json` prints on the device. It needs neither
PyTorch nor onnx there: bundles' variants are timed on the engine that runs them.

    {"device": "...", "engine": "onnxruntime-cpu", "flags": ["avx2"], "threads": 2, "onnxruntime": "1.32.0",
     "variants": {"image-int8-decomposed": {"ms": 34.4, "reference_ms": 66.9, "ratio": 1.94, "low": 1.9, "high": 2.0, ...}}}
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from edgeclip.bundle import Bundle, Variant
from edgeclip.errors import EdgeClipError, InputError
from edgeclip.export.compress.latency import Latency, compare
from edgeclip.runtime.cpu import cpu_flags, cpu_name, saturates
from edgeclip.runtime.engines import Engine, EngineOptions, open_variant, run
from edgeclip.runtime.threads import usable_cores

LENGTH = 12  # tokens of the text that is timed where the length is free


@dataclass(frozen=True)
class Target:
    """A machine, and how fast its variants are there."""

    device: str
    engine: str
    flags: tuple[str, ...]  # of its processor, see runtime/cpu.py
    threads: int
    onnxruntime: str
    variants: Mapping[str, Latency]  # as far as they were timed; without a report nothing is
    report: str = ""  # the file it was read from; "": this machine

    @property
    def saturating(self) -> bool:
        """Whether products of bytes may saturate there, or here, where fidelity is measured."""
        return saturates(self.flags) or saturates()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: a device report."""
        return asdict(self)


def this_machine(threads: int | None) -> Target:
    """With nothing timed yet."""
    name = cpu_name() or platform.machine()
    return Target(name, "onnxruntime-cpu", cpu_flags(), threads or usable_cores(), version("onnxruntime"), {})


def read_report(path: Path) -> Target:
    """A device report. Raises InputError for a file that is none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        variants = {
            str(name): replace(Latency(**figures), device=str(data["device"]))
            for name, figures in data["variants"].items()
        }
        target = Target(
            device=str(data["device"]),
            engine=str(data["engine"]),
            flags=tuple(map(str, data["flags"])),
            threads=int(data["threads"]),
            onnxruntime=str(data["onnxruntime"]),
            variants=variants,
            report=str(path),
        )
        numbers = [
            getattr(found, field.name) > 0
            for found in variants.values()
            for field in fields(Latency)
            if field.name != "device"
        ]
    except OSError as error:
        raise InputError(f"--device-report {path}: cannot be read ({error.strerror}).") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        numbers, reason = [False], f" ({type(error).__name__}: {error})"
    else:
        reason = " (a figure is not above 0)"
    if not all(numbers):
        raise InputError(
            f"--device-report {path}: no device report{reason}. Make one on the device with "
            "`edgeclip compress BUNDLE --measure-only --json > report.json`."
        )
    return target


def measure_bundle(
    bundle: Bundle,
    *,
    threads: int | None = None,
    tell: Callable[[str, float | None], None] = lambda n, s: None,
) -> Target:
    """Time every variant of a bundle here, each beside its tower's first float variant.

    Raises:
        EngineError: a tower's first float variant does not open.
    """
    target = this_machine(threads)
    found: dict[str, Latency] = {}
    for tower in ("image", "text", "detector"):
        variants = bundle.manifest.variants_of(tower)
        float_first = sorted(variants, key=lambda v: (v.axes.precision != "fp32", bool(v.fidelity and v.fidelity.against != "source")))  # fmt: skip
        for variant in float_first[1:]:
            tell(f"time {variant.id}", None)
            engines: list[Engine] = []
            try:
                for one in (float_first[0], variant):
                    engines.append(_open(bundle, one, target))
                found[variant.id] = compare(_call(engines[0]), _call(engines[1]), target.threads)
            except EdgeClipError:
                if len(engines) == 0:
                    raise
                continue  # does not open here: it stays untimed
            finally:
                for engine in engines:
                    engine.close()
    return replace(target, variants=found)


def _open(bundle: Bundle, variant: Variant, target: Target) -> Engine:
    # a thread that still spins when its session's turn is over takes a core from the other's
    options = EngineOptions(target.threads, session_options={"session.force_spinning_stop": "1"})
    return open_variant(target.engine, bundle, variant, options)


def _call(engine: Engine) -> Callable[[], object]:
    port = engine.variant.inputs[0]
    sizes = {size: LENGTH for size in port.shape[1:] if isinstance(size, str)}
    slot = engine.slot(1, sizes)
    array = slot.inputs[port.name]
    array[:] = np.arange(array.size).reshape(array.shape) % 5
    return lambda: run(engine, slot)
