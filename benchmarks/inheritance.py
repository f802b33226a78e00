"""What a student that was cut still knows, by what chose its parts: untrained, and mended. Drawn shapes, one seed.

python -m benchmarks.inheritance -o runs/inheritance          trains the teacher there first (4 minutes), or finds it
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch.nn import functional as F

from benchmarks.machine import describe
from edgeclip.models.config import ClipConfig, ImageConfig, TextConfig, TransformerConfig
from edgeclip.models.importance import CHOICES, PairSamples
from edgeclip.models.inherit import StudentPlan, TowerPlan, inherit
from edgeclip.models.source import Source
from edgeclip.models.sources import load_source
from edgeclip.models.training import Recipe, load_recipe, train, with_settings
from edgeclip.models.training.data import batches
from edgeclip.models.training.distributed import Shard

RESULTS = Path(__file__).parent / "results" / "inheritance.md"
TEACHER = ClipConfig(
    embed_dim=64,
    image=ImageConfig(
        TransformerConfig(width=96, layers=6, heads=6, mlp_width=384), image_size=(32, 32), patch_size=8
    ),
    text=TextConfig(
        TransformerConfig(width=64, layers=4, heads=4, mlp_width=256),
        vocab_size=512,
        context_length=32,
        eos_id=1,
    ),
)
HALF = StudentPlan(TowerPlan(width=48, heads=3, mlp_width=192), TowerPlan(width=32, heads=2, mlp_width=128))
STUDENTS = {
    "half the blocks": StudentPlan(TowerPlan(layers=3), TowerPlan(layers=2)),
    "half the heads": StudentPlan(TowerPlan(heads=3), TowerPlan(heads=2)),
    "a quarter of the units": StudentPlan(TowerPlan(mlp_width=96), TowerPlan(mlp_width=64)),
    "3/4 of the channels, 2/3 of heads and units": StudentPlan(
        TowerPlan(width=72, heads=4, mlp_width=256), TowerPlan(width=48, heads=3, mlp_width=192)
    ),
    "half of channels, heads and units": HALF,
    "half of these and of the blocks": StudentPlan(
        replace(HALF.image, layers=3), replace(HALF.text, layers=2)
    ),
}
ORDER = sorted(CHOICES, key=("uniform", "weights", "activations", "gradients", "learned").index)
SAMPLES = 64


def teacher(folder: Path) -> Source:
    """Trained, or found."""
    sizes = ("steps=400", "batch_size=96", "warmup_steps=40", "checkpoint_every=400", "device=cpu")
    recipe = replace(with_settings(load_recipe("clip_vit_tiny"), sizes), clip=TEACHER)
    return load_source(str(train(recipe, folder, progress=False).model))


def main(arguments: Sequence[str] | None = None) -> None:
    """Cut, ask, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the teacher's run")
    source = teacher(parser.parse_args(arguments).output)
    recipe: Recipe = with_settings(load_recipe("clip_vit_tiny"), ("batch_size=64", "device=cpu"))
    asked = batches(recipe.batches)(recipe, source, Shard())
    parts = [asked.batch(step) for step in range(-(-SAMPLES // 64))]
    length = max(part.input_ids.shape[1] for part in parts)
    ids = [F.pad(part.input_ids, (0, length - part.input_ids.shape[1])) for part in parts]
    samples = PairSamples(torch.cat([part.pixels for part in parts])[:SAMPLES], torch.cat(ids)[:SAMPLES])

    def score(one: Source) -> str:
        return f"{asked.validate(one.model, torch.device('cpu'))['score']:.3f}"

    about = ", ".join(f"{key} {value}" for key, value in describe().items())
    lines = [
        "# What a student that was cut still knows", "", f"{about}. Made by `python -m benchmarks.inheritance`.", "",
        f"Held-out R@1 on drawn shapes, one seed, {SAMPLES} pairs to measure, learn and mend on; the teacher has {score(source)}.", "",
        "| student | " + " | ".join([*ORDER, "mended: gradients", "mended: learned"]) + " |", "|---" * (len(ORDER) + 3) + "|",
    ]  # fmt: skip
    for name, plan in STUDENTS.items():
        kinds = [*((kind, False) for kind in ORDER), ("gradients", True), ("learned", True)]
        row = [
            score(inherit(source, replace(plan, importance=kind, mend=mend), samples)) for kind, mend in kinds
        ]
        lines.append(f"| {name} | " + " | ".join(row) + " |")
        print(lines[-1], flush=True)
    RESULTS.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
