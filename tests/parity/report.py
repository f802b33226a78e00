"""Figures of the slow tier, written down where EDGECLIP_PARITY_REPORT names a folder (`make parity`)."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from edgeclip.files import write_file


def write_report(
    name: str, title: str, text: str, columns: Sequence[str], rows: Sequence[Sequence[object]]
) -> None:
    """One Markdown page: title, a paragraph that ends with the machine, a table."""
    folder = os.environ.get("EDGECLIP_PARITY_REPORT")
    if not folder:
        return
    machine = (
        f"Random weights; {platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__} with {torch.get_num_threads()} "
        f"threads, onnxruntime {version('onnxruntime')}, transformers {version('transformers')}. Made by `make parity`."
    )
    table = [columns, ["---"] * len(columns), *rows]
    lines = "".join(f"| {' | '.join(map(str, row))} |\n" for row in table)
    write_file(Path(folder) / name, f"# {title}\n\n{text} {machine}\n\n{lines}")
