"""How built engines are shown: what they are for, what they multiply in, what was seen of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgeclip.cli.common import console, say

if TYPE_CHECKING:
    from edgeclip.runtime.tensorrt.record import Record


def show(records: Sequence[Record]) -> None:
    """A table of engines, and what the user should know of them."""
    from rich.table import Table

    table = Table("engine", "for", "built", "known of it", show_lines=True)
    table.columns[0].no_wrap = True  # an 80-column screen must not cut what tells the rows apart
    for record in records:
        built = [f"{record.size / 1e6:.1f} MB", f"in {record.seconds:.1f} s", *batches_of(record)]
        table.add_row(
            record.variant.id, "\n".join(targets_of(record)), "\n".join(built), "\n".join(known_of(record))
        )
    console().print(table)
    for record in records:
        for note in record.notes:
            say(f"{record.variant.id}: {note}")


def targets_of(record: Record) -> Sequence[str]:
    """The GPUs that an engine was built for."""
    return record.options.archs or (record.device.name if record.device else "-",)


def batches_of(record: Record) -> list[str]:
    """E.g. "batches 1:8:32", for each profile; [] where the graph has one batch only."""
    found = [profile["N"] for profile in record.options.profiles if "N" in profile]
    return [f"batches {least}:{best}:{most}" for least, best, most in found]


def counted(types: Any) -> str:
    """{"fp16": 73, "fp32": 1} -> "73 fp16, 1 fp32"."""
    return ", ".join(f"{count} {name}" for name, count in sorted(types.items(), key=lambda pair: -pair[1]))


def known_of(record: Record) -> list[str]:
    """What was read back of it, a line each: types of its products, attention, its graph's error, its proof."""
    lines = [f"{counted(record.network.products)} products"] if record.network.products else []
    return [*lines, *attention_of(record), *loss_of(record), proof_of(record)]


def attention_of(record: Record) -> list[str]:
    """Whether it is fused, as far as it is known; [] for a graph without any."""
    if record.engine is not None:
        return [f"{record.engine.fused_attention} fused attention kernels"]
    if record.network.attention:
        return [f"{record.network.attention} attention operators"]
    flavour = record.variant.axes.attention
    return [] if flavour == "none" else [f"{flavour} attention"]


def loss_of(record: Record) -> list[str]:
    """How far the graph that was made for it is from fp32, on the CPU; [] for a graph of the bundle."""
    fidelity = record.variant.fidelity if record.provenance else None
    return [f"graph: distance {fidelity.relative_distance:.1e}"] if fidelity else []


def proof_of(record: Record) -> str:
    """What was seen of it on a device."""
    if record.fidelity is None:
        return "built, not run"
    return f"run: distance {record.fidelity.relative_distance:.1e}"
