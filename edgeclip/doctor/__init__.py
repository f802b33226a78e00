"""What this machine can run, and the exact command for what is missing."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from edgeclip.doctor import engines, gpu, machine
from edgeclip.doctor.finding import Finding

__all__ = ["Finding", "examine", "to_records"]


def examine() -> list[Finding]:
    """Look at the machine and the installation. Never raises for something that is merely absent."""
    return [
        machine.python(), machine.cpu(), machine.clocks(), machine.memory(), *gpu.look(), *engines.look(),
        machine.export(), machine.cache(), *machine.embedded(),
    ]  # fmt: skip


def to_records(findings: list[Finding]) -> list[dict[str, Any]]:
    """JSON-ready."""
    return [asdict(finding) for finding in findings]
