"""Whether a mixture of experts made of a dense model beats it at equal activated parameters: nano's emoji, small towers.

    python -m benchmarks.moe_training DATA -o OUT           everything, then benchmarks/results/moe_training.md and .json
    python -m benchmarks.moe_training DATA -o OUT --arms dense wider       only these, without a report: run several side by side
    python -m benchmarks.moe_training DATA -o OUT --seeds 0 1 2

DATA is what examples/nano/prepare.py and tokenizer.py wrote. What is in OUT already stays and is gone on with.

All contestants grow from one dense base (examples/nano_moe) and see the same number of further pairs. Each is trained once at each of two
rates, in full; the one that names more of the held-out drawings of the styles that it learned from is reported. Scored are drawings of
known names in two styles that no contestant has ever seen.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.machine import describe
from benchmarks.moe_scores import Pictures, answers, parameters, pictures, right, use
from benchmarks.wider import wider
from edgeclip.models.source import Source
from edgeclip.models.sources import load_source
from edgeclip.models.training import Recipe, load_recipe, train
from edgeclip.models.training.checkpoint import write_source
from edgeclip.models.training.data.cluster_labels import load_clusters
from edgeclip.models.training.multistage import run_stages
from edgeclip.models.training.plan import Upcycling
from edgeclip.models.training.recipes import load_plan

EXAMPLES = Path(__file__).parents[1] / "examples" / "nano_moe"
RESULTS = Path(__file__).parent / "results" / "moe_training.md"
RATES = (3e-4, 1e-3)
STEPS = 400  # of 128 pairs, behind the base
STAGES = 0.6  # share of those pairs that the three stages see together
UNSEEN = ("noto", "twemoji")


@dataclass(frozen=True)
class Work:
    """Where one seed's runs are, and what they need."""

    pairs: Path
    folder: Path
    seed: int
    steps: int

    @property
    def base(self) -> Path:
        """The dense model that all begin with."""
        return self.folder / "base" / "model"

    def recipe(self, name: str) -> Recipe:
        """A recipe of examples/nano_moe with this seed and these pairs."""
        found = load_recipe(str(EXAMPLES / f"{name}.py"))
        return replace(found, data=str(self.pairs / "training.jsonl"), seed=self.seed)

    def further(self, name: str, start: Path, rate: float, share: float = 1.0) -> Recipe:
        """One that goes on from `start` for a share of the further steps, with the same share of warm-up."""
        found = self.recipe(name)
        steps = round(self.steps * share)
        warmup = round(steps * found.warmup_steps / found.steps)
        return replace(found, init_from=str(start), steps=steps, warmup_steps=warmup, learning_rate=rate)


def run(recipe: Recipe, folder: Path) -> Path:
    """-> the model of a run that is made, gone on with, or there already."""
    return _timed(folder, lambda: train(recipe, folder, progress=False)) / "model"


def dense(work: Work, rate: float) -> Path:
    """The base, trained on."""
    return run(work.further("further", work.base, rate), work.folder / f"dense-{rate}")


def wide(work: Work, rate: float) -> Path:
    """The base with twice the hidden units, which activates what two experts do, trained on."""
    start = work.folder / "wider-start"
    if not start.is_dir():
        write_source(start, wider(load_source(str(work.base)), seed=work.seed))
    return run(work.further("further", start, rate), work.folder / f"wider-{rate}")


def sparse(work: Work, rate: float) -> Path:
    """Four copies of each feed-forward, everything trained."""
    return run(work.further("sparse", work.base, rate), work.folder / f"sparse-{rate}")


def multistage(work: Work, rate: float) -> Path:
    """Three stages of feed-forwards, then the routers alone."""
    folder = work.folder / f"multistage-{rate}"
    plan = _plan(work, rate)
    return _timed(folder, lambda: run_stages(plan, folder, progress=False)) / "model"


def everything(work: Work, rate: float) -> Path:
    """The same three stages, then everything."""
    multistage(work, rate)
    start = work.folder / f"multistage-{rate}" / "assembled"
    recipe = work.further("sparse", start, rate, share=1 - STAGES)
    return run(
        replace(recipe, model="source", experts=Recipe().experts, top_k=Recipe().top_k),
        work.folder / f"everything-{rate}",
    )


ARMS: dict[str, Callable[[Work, float], Path]] = {
    "dense": dense,
    "wider": wide,
    "sparse": sparse,
    "multistage": multistage,
    "everything": everything,
}


def score(work: Work, model: Path, shown: dict[str, Pictures]) -> dict[str, Any]:
    """What is asked of one model; kept beside it."""
    path = model.parent / f"{model.name}-scores.json"
    source = load_source(str(model))
    if path.is_file():
        found: dict[str, Any] = json.loads(path.read_text())
        if found["digest"] == source.digest:
            return found
    names = answers(work.pairs)
    stored, active = parameters(source)
    hits = {kind: right(source, some, names).astype(int).tolist() for kind, some in shown.items()}
    found = {
        "digest": source.digest,
        "stored": stored,
        "activated": active,
        **{f"{kind}_top1": float(np.mean(values)) for kind, values in hits.items()},
        "use": use(source, shown["noto"], names),
        "right": hits,
    }
    path.write_text(json.dumps(found))
    return found


def difference(one: dict[str, Any], other: dict[str, Any], shown: dict[str, Pictures]) -> tuple[float, float]:
    """Of the share of unseen drawings named right: one less the other, and half of the 95% interval. A name's drawings are one draw."""
    names = [name for kind in UNSEEN for name in shown[kind].names]
    gains: dict[str, list[int]] = {}
    for name, a, b in zip(names, _unseen(one), _unseen(other), strict=True):
        gains.setdefault(name, []).append(int(a) - int(b))
    sums = np.array([sum(values) for values in gains.values()], float)
    mean = sums.sum() / len(names)
    sizes = np.array([len(values) for values in gains.values()])
    spread = np.sqrt(((sums - mean * sizes) ** 2).sum()) / len(names)
    return float(mean), float(1.96 * spread)


def complementary(work: Work, rate: float, shown: dict[str, Pictures]) -> dict[str, float]:
    """Of the base and the three stages alone: the share of unseen drawings that each names, that one of them does, that all do."""
    folder = work.folder / f"multistage-{rate}"
    models = [work.base, *(folder / f"stage-{i}" / "model" for i in (1, 2, 3))]
    rows = np.stack([_unseen(score(work, model, shown)) for model in models])
    each = {f"expert_{i}": float(row.mean()) for i, row in enumerate(rows)}
    return {**each, "any": float(rows.any(axis=0).mean()), "all": float(rows.all(axis=0).mean())}


def contest(work: Work, arms: Sequence[str]) -> dict[str, Any]:
    """Train and score them at each rate; what there is to tell, by name."""
    source_of(work)
    shown = _shown(work)
    found: dict[str, Any] = {"base": {None: _told(work, work.base, shown)}}
    for name in arms:
        found[name] = {rate: _told(work, ARMS[name](work, rate), shown) for rate in RATES}
    if "multistage" in arms:
        found["stages"] = {rate: complementary(work, rate, shown) for rate in RATES}
    return found


def source_of(work: Work) -> Source:
    """The dense base, trained if it is not there."""
    recipe = replace(work.recipe("dense"), tokenizer=str(work.pairs / "tokenizer.json"))
    return load_source(str(run(recipe, work.folder / "base")))


def best(rates: dict[Any, dict[str, Any]]) -> tuple[Any, dict[str, Any]]:
    """The rate whose model names most of the held-out drawings of the trained styles, and what was found of it."""
    rate = max(rates, key=lambda r: rates[r]["held_out_top1"])
    return rate, rates[rate]


def _plan(work: Work, rate: float) -> Upcycling:
    """Three stages share STAGES of the further pairs evenly; the routers see the rest."""
    plan = load_plan(str(EXAMPLES / "multistage.py"))
    assert isinstance(plan, Upcycling)

    def part(one: Recipe, share: float) -> Recipe:
        steps = round(work.steps * share * work.recipe("further").batch_size / one.batch_size)
        warmup = round(steps * one.warmup_steps / one.steps)
        data = str(work.pairs / "training.jsonl")
        return replace(one, data=data, seed=work.seed, steps=steps, warmup_steps=warmup, learning_rate=rate)

    stage = replace(part(plan.stage, STAGES / plan.stages), init_from=str(work.base))
    return replace(plan, stage=stage, router=part(plan.router, 1 - STAGES))


def _told(work: Work, model: Path, shown: dict[str, Pictures]) -> dict[str, Any]:
    cost = model.parent / "cpu_s.json"
    return {**score(work, model, shown), "cpu_s": json.loads(cost.read_text()) if cost.is_file() else None}


def _shown(work: Work) -> dict[str, Pictures]:
    source = load_source(str(work.base))
    share = work.recipe("dense").validation_share
    return {
        "held_out": pictures(source, work.pairs / "training.jsonl", share),
        **{kind: pictures(source, work.pairs / f"{kind}.jsonl") for kind in UNSEEN},
    }


def _unseen(scores: dict[str, Any]) -> NDArray[np.bool_]:
    return np.concatenate([np.array(scores["right"][kind], bool) for kind in UNSEEN])


def _timed(folder: Path, make: Callable[[], object]) -> Path:
    """Make what is to be in `folder`; CPU seconds of all attempts that ended stand in cpu_s.json."""
    path = folder / "cpu_s.json"
    if not path.is_file():
        began = time.process_time()
        make()
        path.write_text(json.dumps(round(time.process_time() - began, 1)))
    return folder


REPORT = """# Does a mixture of experts beat the dense model that it was made of?

`python -m benchmarks.moe_training DATA -o OUT{options}` wrote this, on one thread at a time, fp32. {machine}. Other work shared its cores.

{verdict}

A small canonical CLIP (`examples/nano_moe/dense.py`: pictures of 48 pixels, 17 tokens, 5 blocks of width 96; texts 2 blocks) was trained on
{training:,} drawings of {names:,} emoji names in six styles ({base_steps} steps of 128). All others grow from it and see the same {further:,} further
pairs, once at each rate of {rates}; of the two the one that names more of {held:,} held-out drawings of those styles is shown (checkpoints are chosen
on them too, by retrieval). Noto and Twemoji were never seen in training. A picture is right when its name is the nearest of {answers:,}.

± is half of a 95% interval over names; it says nothing of how another seed would come out ({seeds} here). No rate above {highest} was tried. Of their
pairs the last two rows see three fifths in stages of batches of 64 inside clusters, with only feed-forwards free; an epoch of the stages draws
{drawn} per cent of the pairs.

{tables}
"""


TITLES = {
    "base": "dense base, as it is",
    "dense": "dense, trained on",
    "wider": "dense with twice the hidden width, trained on",
    "sparse": "sparse upcycling: 4 copies, 2 a token, everything trained",
    "multistage": "three stages, then the routers (Diversified Multiplet Upcycling)",
    "everything": "the same three stages, then everything",
}


def scores_table(found: dict[str, Any]) -> str:
    """The chosen run of each contestant."""
    lines = [
        "| | rate | stored | activated | held-out | Noto | Twemoji | CPU s (without the stages it shares) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, title in TITLES.items():
        rate, told = best(found[name])
        top1 = " | ".join(f"{100 * told[f'{kind}_top1']:.1f}" for kind in ("held_out", *UNSEEN))
        sizes = f"{told['stored'] / 1e6:.2f} M | {told['activated'] / 1e6:.2f} M"
        lines.append(f"| {title} | {rate or ''} | {sizes} | {top1} | {told['cpu_s'] or ''} |")
    return "\n".join(lines)


def rates_table(found: dict[str, Any]) -> str:
    """Every run."""
    lines = ["| | rate | held-out | Noto | Twemoji |", "|---|---|---|---|---|"]
    for name in ARMS:
        for rate, told in found[name].items():
            top1 = " | ".join(f"{100 * told[f'{kind}_top1']:.1f}" for kind in ("held_out", *UNSEEN))
            lines.append(f"| {TITLES[name]} | {rate} | {top1} |")
    return "\n".join(lines)


def differences_table(found: dict[str, Any], shown: dict[str, Pictures]) -> str:
    """Each mixture beside each dense model, over both unseen styles."""
    lines = [
        "| unseen drawings named, in points | less dense, trained on | less the wider dense |",
        "|---|---|---|",
    ]
    for name in ("sparse", "multistage", "everything"):
        cells = []
        for other in ("dense", "wider"):
            mean, half = difference(best(found[name])[1], best(found[other])[1], shown)
            cells.append(f"{100 * mean:+.1f} ± {100 * half:.1f}")
        lines.append(f"| {TITLES[name]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def use_table(found: dict[str, Any]) -> str:
    """Share of tokens' choices that fell on each expert, in per cent: 25 is even."""
    kinds = ("sparse", "multistage", "everything")
    lines = ["| mixture | " + " | ".join(kinds) + " |", "|---|---|---|---|"]
    for layer in best(found["sparse"])[1]["use"]:
        cells = [" ".join(f"{100 * x:.0f}" for x in best(found[kind])[1]["use"][layer]) for kind in kinds]
        lines.append(f"| {layer} | {' | '.join(cells)} |")
    return "\n".join(lines)


def tables(found: dict[str, Any], shown: dict[str, Pictures]) -> str:
    """All of one seed."""
    stages = found["stages"][best(found["multistage"])[0]]
    singles = ", ".join(f"{100 * stages[f'expert_{i}']:.1f}" for i in range(4))
    return "\n\n".join(
        (
            scores_table(found),
            differences_table(found, shown),
            f"Alone, the base and the three stages name {singles} per cent of both unseen styles' drawings; "
            f"{100 * stages['any']:.1f} are named by at least one of them, {100 * stages['all']:.1f} by all.",
            "Every run:\n\n" + rates_table(found),
            "Use: of 100 choices that tokens made in a mixture, how many fell on each expert (25 is even), on Noto's pictures and all names:\n\n"
            + use_table(found),
        )
    )


def verdict(found: dict[str, Any], shown: dict[str, Pictures]) -> str:
    """One sentence a mixture, beside the wider dense model."""
    said = []
    for name in ("multistage", "everything", "sparse"):
        mean, half = difference(best(found[name])[1], best(found["wider"])[1], shown)
        how = "beats" if mean > half else "falls behind" if mean < -half else "cannot be told from"
        said.append(
            f"{TITLES[name]}: {how} the wider dense model ({100 * mean:+.1f} ± {100 * half:.1f} points)."
        )
    return " ".join(f"{line[0].upper()}{line[1:]}" for line in said)


def main() -> None:
    """Train what is not there yet, score, and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True, help="all runs; gone on with")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="each trains a base of its own")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of 128 pairs, behind the base ({STEPS})")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), help="only these, and no report")
    parser.add_argument("--results", type=Path, default=RESULTS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    pairs = asked.output / "pairs"
    if not (pairs / "tokenizer.json").is_file():
        sys.path.insert(0, str(EXAMPLES))
        importlib.import_module("pairs").write(asked.data, pairs)
    works = [Work(pairs, asked.output / f"seed-{seed}", seed, asked.steps) for seed in asked.seeds]
    every = {work.seed: contest(work, asked.arms or list(ARMS)) for work in works}
    if not asked.arms:
        report(works, every, asked.results)


def report(works: list[Work], every: dict[int, dict[str, Any]], results: Path) -> None:
    """Write the page and, beside it, the figures."""
    shown, work = _shown(works[0]), works[0]
    base, further = work.recipe("dense"), work.recipe("further")
    options = "".join(
        (
            f" --seeds {' '.join(str(w.seed) for w in works)}" if len(works) > 1 or work.seed else "",
            f" --steps {work.steps}" if work.steps != STEPS else "",
        )
    )
    held = len(shown["held_out"].names)
    trained = (work.pairs / "training.jsonl").read_text().splitlines()
    parts = [
        (f"## Seed {seed}\n\n" if len(works) > 1 else "") + tables(found, shown)
        for seed, found in every.items()
    ]
    verdicts = [
        (f"Seed {seed}: " if len(works) > 1 else "") + verdict(found, shown) for seed, found in every.items()
    ]
    text = REPORT.format(
        options=options,
        machine=", ".join(f"{key} {value}" for key, value in describe().items()),
        verdict="\n".join(verdicts),
        training=len(trained) - held,
        names=len({json.loads(line)["caption"] for line in trained}),
        base_steps=base.steps,
        further=work.steps * further.batch_size,
        rates=" and ".join(map(str, RATES)),
        held=held,
        answers=len(answers(work.pairs)),
        seeds="one seed" if len(works) == 1 else f"{len(works)} seeds",
        highest=max(RATES),
        drawn=_drawn(work, best(every[work.seed]["multistage"])[0]),
        tables="\n\n".join(parts),
    )
    results.write_text(text, encoding="utf-8")
    kept = {str(seed): _figures(found) for seed, found in every.items()}
    results.with_suffix(".json").write_text(json.dumps({"machine": describe(), **kept}, indent=1) + "\n")
    print(text)


def _drawn(work: Work, rate: float) -> str:
    """Per cent of the training pairs that an epoch of each stage draws, since clusters leave remainders."""
    folder, size = work.folder / f"multistage-{rate}", _plan(work, rate).stage.batch_size
    shares = [load_clusters(folder / f"clusters-{j}.safetensors").used(size) for j in (1, 2, 3)]
    return ", ".join(f"{100 * share:.0f}" for share in shares)


def _figures(found: dict[str, Any]) -> dict[str, Any]:
    """Without the thousands of single answers."""
    return {
        name: {
            str(rate): {key: value for key, value in told.items() if key not in ("right", "digest")}
            for rate, told in rates.items()
        }
        for name, rates in found.items()
    }


if __name__ == "__main__":
    main()
