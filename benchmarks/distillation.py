"""What a teacher brings: nano's size from scratch and taught, in pairs of one seed; and what each objective brings by itself.

    python -m benchmarks.distillation DATA SAID -o OUT           everything, then benchmarks/results/distillation.md and .json
    python -m benchmarks.distillation DATA SAID -o OUT --seeds 0 --objectives        one pair alone, no report: run several side by side
    python -m benchmarks.distillation DATA SAID -o OUT --seeds --objectives feature_mse
    python -m benchmarks.distillation DATA SAID -o OUT --seeds 0 --objectives feature_mse --write        a report of these

DATA is what examples/nano/prepare.py and tokenizer.py wrote, SAID what teach.py did. Runs that are in OUT already stay and are gone on with.

Both of a pair see the same drawings and names in the same order for the same steps; the taught one in the views that are stored, the other always
in new ones. Checkpoints are chosen on a held-out tenth of the Noto drawings; reported is Twemoji, a style that nobody saw, among all names.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import describe
from edgeclip.export.api import export_bundle
from edgeclip.models.sources import load_source
from edgeclip.models.training import Recipe, load_recipe, train

EXAMPLES = Path(__file__).parents[1] / "examples" / "nano"
RESULTS = Path(__file__).parent / "results" / "distillation.md"
# objective -> its weight beside nano's own; feature_cosine is a quarter of feature_mse, cosines' squares are small
WEIGHTS = {
    "feature_mse": 4.0,
    "feature_cosine": 16.0,
    "affinity": 1.0,
    "contrastive_relation": 1.0,
    "interactive_contrast": 1.0,
    "relational": 100.0,
    "hybrid_contrast": 1.0,
    "naming_alike": 1.0,
}
BATCH = 124  # of the runs with one objective: half of the pairs'
OWN = "nano's own"
ALONE = "feature_mse alone"


@dataclass(frozen=True)
class Work:
    """Where the runs are, and what they need."""

    data: Path
    said: str
    folder: Path

    def recipe(self, name: str, seed: int) -> Recipe:
        """One of examples/nano."""
        found = load_recipe(str(EXAMPLES / f"{name}.py"))
        said = self.said if name == "taught" else ""
        return replace(found, data=str(self.data), teacher_data=said, seed=seed, device="cpu")

    def scores(self, recipe: Recipe, name: str) -> dict[str, float]:
        """Shares of 1 of the run that is made, gone on with, or there already, through its exported bundle."""
        folder = self.folder / name
        result = train(recipe, folder, progress=False)
        bundle = folder / "bundle"
        if not bundle.exists():
            export_bundle(load_source(str(result.model)), bundle)
        return self.scores_of(str(bundle))

    def scores_of(self, bundle: str) -> dict[str, float]:
        """Shares of 1 of drawings that a bundle names."""
        evaluate = importlib.import_module("evaluate").evaluate
        unseen, held_out = evaluate(self.data, bundle), evaluate(self.data, bundle, "training")
        return {
            "unseen_top1": unseen["top1"],
            "unseen_top5": unseen["top5"],
            "known_top1": unseen["trained_top1"],
            "untrained_among_own": unseen["untrained_among_197_top1"],
            "held_out_top1": held_out["top1"],
        }


def pair(work: Work, seed: int) -> dict[str, dict[str, float]]:
    """Scores of both of one seed."""
    return {name: work.scores(work.recipe(name, seed), f"{name}-{seed}") for name in ("half", "taught")}


def untaught(work: Work, seed: int) -> dict[str, float]:
    """Scores of the taught one without its teachers' word, in the same stored views: what these cost, and what the word brings."""
    recipe = work.recipe("taught", seed)
    return work.scores(replace(recipe, objectives=recipe.objectives[:3]), f"untaught-{seed}")


def objective(work: Work, name: str, steps: int) -> dict[str, float]:
    """Scores of a short run with one objective of distillation beside nano's own, with none, or alone."""
    taught = work.recipe("taught", seed=0)
    own = taught.objectives[:3]
    asked: tuple[tuple[Any, float], ...] = ()
    if name == ALONE:
        own, asked = (), (("feature_mse", WEIGHTS["feature_mse"]),)
    elif name != OWN:
        # of taught.py itself, or the package's
        asked = ((getattr(importlib.import_module("taught"), name, name), WEIGHTS[name]),)
    short = replace(
        taught,
        steps=steps,
        batch_size=BATCH,
        objectives=(*own, *asked),
        warmup_steps=steps // 15,
        ema_decay=0.98,
    )
    return work.scores(short, f"{name.replace(' ', '-')}-of-{steps}")


def table(found: dict[str, Any]) -> str:
    """Markdown."""
    about = ", ".join(f"{key} {value}" for key, value in found["machine"].items())
    lines = ["# What a teacher brings", "", f"{about}. Made by `python -m benchmarks.distillation`.", ""]
    head = ("", "unseen style, top-1", "top-5", "of known names, top-1", "held-out Noto, top-1")
    keys = ("unseen_top1", "unseen_top5", "known_top1", "held_out_top1")

    def row(name: str, scores: dict[str, float]) -> str:
        return f"| {name} | " + " | ".join(f"{100 * scores[key]:.1f} %" for key in keys) + " |"

    heading = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    if "teachers" in found:
        lines += ["## The teachers", "", *heading, *(row(*one) for one in found["teachers"].items()), ""]
    pairs = found["pairs"]
    lines += ["## Pairs of one seed, same steps", "", *heading]
    for seed, scores in pairs.items():
        lines += [
            row(f"seed {seed}, from scratch", scores["half"]),
            row(f"seed {seed}, taught", scores["taught"]),
        ]
    lines += [
        row(f"seed {seed}, in the taught one's views, without teachers", one)
        for seed, one in found.get("untaught", {}).items()
    ]
    gains = [100 * (s["taught"]["unseen_top1"] - s["half"]["unseen_top1"]) for s in pairs.values()]
    if gains:
        spread = f" ± {np.std(gains, ddof=1):.1f} (standard deviation of the pairs)" if len(gains) > 1 else ""
        lines += ["", f"Taught less from scratch, unseen style, top-1: {np.mean(gains):+.1f}{spread} points."]
    if found["objectives"]:
        lines += [
            "",
            f"## One objective each, {found['steps']} steps of {BATCH} pictures, seed 0",
            "",
            *heading,
        ]
        lines += [
            row(name if name in (OWN, ALONE) else f"{OWN} + {name}", s)
            for name, s in found["objectives"].items()
        ]
    return "\n".join(lines) + "\n"


def _teachers(bundles: str) -> str:
    """Of runs/teacher/bundle its run's name, of an embedded bundle its own."""
    return " and ".join(Path(one).parent.name or one for one in bundles.split(","))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is asked for; with everything there, write the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("said", help="with commas between those of several teachers")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="*", help="these pairs alone, and no report")
    parser.add_argument(
        "--objectives", nargs="*", choices=[OWN, ALONE, *WEIGHTS], help="these alone, and no report"
    )
    parser.add_argument("--steps", type=int, default=300, help="of the runs with one objective")
    parser.add_argument(
        "--teacher",
        help="bundles of the teachers, with commas between them, to be scored beside its students",
    )
    parser.add_argument("--write", action="store_true", help="a report, whatever was asked for")
    args = parser.parse_args(arguments)
    sys.path.insert(0, str(EXAMPLES))
    work = Work(args.data, args.said, args.output)
    seeds, names = args.seeds, args.objectives
    whole = seeds is None and names is None
    pairs = {seed: pair(work, seed) for seed in ((0, 1, 2) if whole else seeds or ())}
    objectives = {
        name: objective(work, name, args.steps) for name in ((OWN, ALONE, *WEIGHTS) if whole else names or ())
    }
    found: dict[str, Any] = {
        "machine": describe(),
        "steps": args.steps,
        "pairs": pairs,
        "objectives": objectives,
    }
    if whole:
        found["untaught"] = {0: untaught(work, 0)}
    if args.teacher:
        each = args.teacher.split(",")
        asked = dict.fromkeys((*each, args.teacher))  # each by itself, and all together
        found["teachers"] = {_teachers(one): work.scores_of(one) for one in asked}
    print(table(found))
    if whole or args.write:
        RESULTS.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
        RESULTS.write_text(table(found))


if __name__ == "__main__":
    main()
