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

    table = Table("engine", "for", "batches", "MB", "s", "products", "attention", "to fp32", "proof")
    table.columns[0].no_wrap = True  # an 80-column screen must not cut what tells the rows apart
    for record in records:
        table.add_row(
            record.variant.id, targets_of(record), batches_of(record), f"{record.size / 1e6:.1f}", f"{record.seconds:.1f}",
            counted(record.network.products), attention_of(record), loss_of(record), proof_of(record),
        )  # fmt: skip
    console().print(table)
    for record in records:
        for note in record.notes:
            say(f"{record.variant.id}: {note}")


def targets_of(record: Record) -> str:
    """The GPUs that an engine was built for."""
    return ", ".join(record.options.archs) or (record.device.name if record.device else "-")


def batches_of(record: Record) -> str:
    """E.g. "1:8:32"."""
    return ", ".join(
        ":".join(map(str, profile["N"])) for profile in record.options.profiles if "N" in profile
    )


def counted(types: Any) -> str:
    """{"fp16": 73, "fp32": 1} -> "73 fp16, 1 fp32"."""
    return ", ".join(f"{count} {name}" for name, count in sorted(types.items(), key=lambda pair: -pair[1]))


def attention_of(record: Record) -> str:
    """Whether it is fused, as far as it is known."""
    if record.engine is not None:
        return f"{record.engine.fused_attention} fused"
    if record.network.attention:
        return f"{record.network.attention} operators"
    return {"none": "-"}.get(record.variant.axes.attention, record.variant.axes.attention)


def loss_of(record: Record) -> str:
    """How far the graph that was made for it is from fp32, on the CPU; "-" for a graph of the bundle."""
    fidelity = record.variant.fidelity if record.provenance else None
    return f"{fidelity.relative_distance:.1e}" if fidelity else "-"


def proof_of(record: Record) -> str:
    """What was seen of it on a device."""
    if record.fidelity is None:
        return "built, not run"
    return f"distance {record.fidelity.relative_distance:.1e}"
