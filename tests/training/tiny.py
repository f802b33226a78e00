"""A recipe whose steps take milliseconds, and a run of it in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeclip.models.config import ClipConfig, ImageConfig, TextConfig, TransformerConfig
from edgeclip.models.training import Recipe

ROOT = Path(__file__).parents[2]

TINY = Recipe(
    name="tiny",
    model="scratch",
    clip=ClipConfig(
        embed_dim=16,
        image=ImageConfig(TransformerConfig(16, 1, 2, 32), image_size=(16, 16), patch_size=8),
        text=TextConfig(TransformerConfig(16, 1, 2, 32), vocab_size=300, context_length=16, eos_id=1),
    ),
    data="shapes:120",
    validation_share=0.2,
    steps=12,
    batch_size=16,
    learning_rate=1e-2,
    warmup_steps=2,
    log_every=1,
    checkpoint_every=4,
    device="cpu",
)


def tiny(**changes: Any) -> Recipe:
    """TINY with some settings changed."""
    return replace(TINY, **changes)


def curve(output: Path) -> list[tuple[int, float]]:
    """(step, loss) of every record."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


def start_process(code: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Run Python code beside this process; the caller waits for it or kills it."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
