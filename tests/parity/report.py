"""Figures of the slow tier, written down where EDGECLIP_PARITY_REPORT names a folder (`make parity`)."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from edgeclip.files import write_file


def machine() -> str:
    """What the figures were measured on."""
    return (
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__} with {torch.get_num_threads()} threads, "
        f"onnxruntime {version('onnxruntime')}, transformers {version('transformers')}"
    )


def write_report(
    name: str, title: str, text: str, columns: Sequence[str], rows: Sequence[Sequence[object]]
) -> None:
    """One Markdown page: title, a paragraph that ends with the machine, a table."""
    folder = os.environ.get("EDGECLIP_PARITY_REPORT")
    if not folder:
        return
    table = [columns, ["---"] * len(columns), *rows]
    lines = "".join(f"| {' | '.join(map(str, row))} |\n" for row in table)
    write_file(
        Path(folder) / name,
        f"# {title}\n\n{text} Random weights; {machine()}. Made by `make parity`.\n\n{lines}",
    )
