"""Diversified Multiplet Upcycling as one run of several: stages that learn inside clusters, their feed-forwards gathered, a router trained.

DIR/base/                     the source that all starts from
    clusters-1.safetensors    the cluster of every pair, by what the base makes of them
    stage-1/ ...              an ordinary run; then clusters-2 by what stage 1 makes of them, stage-2, ...
    assembled/                the base with the stages' feed-forwards as experts
    router/                   an ordinary run
    model/                    the result
    plan.json                 the settings
A part stands whole or not at all, and what stands is not made again.
Source: Zhang et al. 2024 (CLIP-MoE), arXiv:2409.19291, sections 3.1 to 3.3.
"""

from __future__ import annotations

import copy
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeclip.errors import TrainingError
from edgeclip.files import new_folder, write_file
from edgeclip.models.feed_forward import moe_layers
from edgeclip.models.source import DualEncoder, Source
from edgeclip.models.sources import load_source
from edgeclip.models.training import checkpoint, distributed
from edgeclip.models.training.clusters import AT_ONCE, divide, embed
from edgeclip.models.training.data.cluster_labels import HELD_OUT, Clusters, load_clusters, save_clusters
from edgeclip.models.training.data.pairs import ShuffledPairs
from edgeclip.models.training.distributed import Shard
from edgeclip.models.training.loop import TrainResult, rehearse, told_once, train
from edgeclip.models.training.plan import START, Upcycling
from edgeclip.models.training.recipe import Recipe
from edgeclip.models.training.starts import InFolder, start
from edgeclip.models.upcycling import assembled, feed_forwards, upcycled

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StagesResult(TrainResult):
    """What the whole run left; steps, loss and scores are the router's."""

    stages: int  # runs inside clusters
    pairs_used: tuple[
        float, ...
    ]  # of each stage, the share of the training pairs that an epoch of whole batches draws
    stored: int  # parameters
    activated: int  # of them, for one token


def run_stages(plan: Upcycling, output: Path, *, resume: bool = True, progress: bool = True) -> StagesResult:
    """Run all parts of the plan, or those that are not there yet.

    Args:
        output: the run's folder; what it holds stands in this module's docstring.
        resume: go on from what is there; False refuses a folder that holds such a run.
        progress: say on stderr which part it is, and show each run's bar.
    Raises:
        TrainingError: a setting, the data or what is there cannot be used, or a loss is no longer a number.
        SourceError: the model to start from cannot be loaded, or cannot have experts.
        KeyboardInterrupt: stopped; the same call goes on from there.
    """
    began = time.monotonic()
    with distributed.group(distributed.pick_device(plan.stage.device)) as shard, told_once():
        run = _Stages(plan, Path(output), shard, resume, progress)
        for _ in run.parts():
            pass
        return replace(run.result(), seconds=time.monotonic() - began)


def rehearse_stages(plan: Upcycling) -> dict[str, Any]:
    """Open base and data, embed a few pairs, make a step of a stage and one of the router; nothing is written that stays.

    Returns:
        "pairs" for training and "held_out", "clusters" that there may be at each stage and "pairs_per_cluster" on average, "steps" of
        all runs, "epoch_steps" of a run on all pairs, "parameters" of the base, those "stored" and "activated" in the end, "device",
        and the records of the steps: "stage" and "router".
    Raises:
        As `run_stages`.
    """
    with told_once():
        return _rehearsed(plan, _first(plan))


class _Stages:
    """One call of `run_stages`: what is to be made, and where it lies."""

    def __init__(self, plan: Upcycling, output: Path, shard: Shard, resume: bool, show: bool) -> None:
        self.plan, self.output, self.shard, self.show = plan, output, shard, show
        self.record = output / "plan.json"
        if (output / "checkpoints").exists():
            raise TrainingError(f"{output}: holds a run of another kind. Name another output folder.")
        if self.record.is_file():
            if not resume:
                raise TrainingError(
                    f"{output}: holds a run of stages. Resume it, or name another output folder."
                )
            plan.check_same_run(_read_record(self.record), str(output))
            self._check_router()
        self._router: TrainResult | None = None

    def parts(self) -> Iterator[str]:
        """Make one part after the other, those that stand already excepted; yields the name of each once it stands."""
        todo: list[tuple[str, Path, Callable[[], None]]] = [("base", self.base, self._make_base)]
        for j in range(1, self.plan.experts):
            todo.append((f"clusters-{j}", self.clusters(j), partial(self._divide, j)))
            todo.append((f"stage-{j}", self.stage(j) / "model", partial(self._learn, j)))
        todo.append(("assembled", self.output / "assembled", self._assemble))
        todo.append(("router", self.output / "router" / "model", self._train_router))
        todo.append(("model", self.output / "model", self._ship))
        if self.shard.rank == 0:
            _sweep(self.output)
            if self.record.is_file():  # what may change, may have
                self._write_record()
        for number, (name, made, make) in enumerate(todo, 1):
            there = made.exists()
            distributed.wait(self.shard)  # all have looked before one writes
            self._say(f"{number}/{len(todo)} {name}: {'is there' if there else self._about(name)}")
            if not there:
                make()
            distributed.wait(self.shard)
            yield name

    @property
    def base(self) -> Path:
        """The source that all starts from."""
        return self.output / "base"

    def clusters(self, j: int) -> Path:
        """The labels that stage j, from 1, learns inside."""
        return self.output / f"clusters-{j}.safetensors"

    def stage(self, j: int) -> Path:
        """The run of stage j, from 1."""
        return self.output / f"stage-{j}"

    def result(self) -> StagesResult:
        """What is there in the end."""
        done = self._router or _result_of(self.output / "router")
        model = load_source(str(self.output / "model")).model
        used = [
            load_clusters(self.clusters(j)).used(self.plan.stage.batch_size)
            for j in range(1, self.plan.experts)
        ]
        values: dict[str, Any] = {spec.name: getattr(done, spec.name) for spec in fields(TrainResult)}
        values |= {"model": self.output / "model", **parameters(model)}
        return StagesResult(**values, stages=self.plan.stages, pairs_used=tuple(used))

    def _say(self, line: str) -> None:
        if self.show and self.shard.rank == 0:
            from rich.console import Console

            Console(stderr=True, markup=False, highlight=False, emoji=False).print(line)

    def _about(self, name: str) -> str:
        plan = self.plan
        if name.startswith("stage-"):
            j = int(name.removeprefix("stage-"))
            labels = load_clusters(self.clusters(j))
            share = labels.used(plan.stage.batch_size)
            return f"{plan.stage.steps} steps inside {len(labels.sizes())} clusters; an epoch draws {100 * share:.0f}% of the pairs"
        return {
            "base": f"from {plan.stage.init_from or 'a new model'}",
            "assembled": f"{plan.experts} experts, of which a token takes {plan.top_k}",
            "router": f"{plan.router.steps} steps",
            "model": "the router's",
        }.get(name, f"pictures in {plan.image_clusters}, captions in {plan.text_clusters}")

    def _make_base(self) -> None:
        """What comes late and can be known now is refused now: before it is written, all is tried once."""
        if self.shard.world == 1:
            source = _first(self.plan)
            _rehearsed(self.plan, source)
        elif self.shard.rank == 0:  # a step of the whole batch may be too much for one of many processes
            source = _first(self.plan)
            feed_forwards(source.model, self.plan.expert_layers, self.plan.expert_towers)
        if self.shard.rank == 0:
            self._write_record()
            checkpoint.write_source(self.base, source)

    def _write_record(self) -> None:
        write_file(self.record, json.dumps(self.plan.to_json(), indent=1) + "\n")

    def _before(self, j: int) -> Path:
        """The source that divides the pairs for stage j."""
        return self.base if j == 1 else self.stage(j - 1) / "model"

    def _divide(self, j: int) -> None:
        plan, recipe = self.plan, self.plan.stage
        source = load_source(str(self._before(j)))
        pairs = ShuffledPairs(recipe, source, Shard())  # all of them: `divide` shares them out
        found = divide(
            source,
            pairs,
            (plan.image_clusters, plan.text_clusters),
            before=load_clusters(self.clusters(j - 1)) if j > 1 else None,
            seed=recipe.seed,
            device=distributed.pick_device(recipe.device),
            workers=recipe.workers,
            shard=self.shard,
            progress=self.show,
        )
        if self.shard.rank == 0:
            save_clusters(self.clusters(j), found)

    def _learn(self, j: int) -> None:
        trained = self.plan.stage.trained or self._feed_forwards()
        recipe = replace(
            _starting(self.plan.stage, self._before(j) if self.plan.chain else self.base),
            name=f"{self.plan.name}-stage-{j}",
            trained=trained,
            clusters=str(self.clusters(j)),
        )
        made_by = load_clusters(self.clusters(j)).models[-1]
        if made_by != load_source(str(self._before(j))).digest:
            raise TrainingError(
                f"{self.clusters(j)}: was made with another model than {self._before(j)}. Delete it, and it is made again."
            )
        train(recipe, self.stage(j), progress=self.show)

    def _feed_forwards(self) -> tuple[str, ...]:
        model = load_source(str(self.base)).model
        return feed_forwards(model, self.plan.expert_layers, self.plan.expert_towers)

    def _assemble(self) -> None:
        if self.shard.rank == 0:
            plan = self.plan
            stages = [load_source(str(self.stage(j) / "model")) for j in range(1, plan.experts)]
            source = assembled(load_source(str(self.base)), stages, **_experts(plan))
            checkpoint.write_source(self.output / "assembled", source)

    def _router_recipe(self) -> Recipe:
        recipe = _starting(self.plan.router, self.output / "assembled")
        return replace(recipe, name=f"{self.plan.name}-router")

    def _check_router(self) -> None:
        """Its settings may change until it has begun."""
        latest = checkpoint.Checkpoints(self.output / "router" / "checkpoints", 1).pointed("latest")
        if latest is not None:
            saved = checkpoint.read_recipe(latest)
            self._router_recipe().check_same_run(saved, f"{self.output}, its router")

    def _train_router(self) -> None:
        self._router = train(self._router_recipe(), self.output / "router", progress=self.show)

    def _ship(self) -> None:
        if self.shard.rank == 0:
            with new_folder(self.output / "model") as scratch:
                shutil.copytree(self.output / "router" / "model", scratch, dirs_exist_ok=True)


class _Held:
    """A recipe's model: a copy of one in memory."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def __call__(self, recipe: Recipe) -> Source:
        return replace(self._source, model=copy.deepcopy(self._source.model))


def _starting(recipe: Recipe, start_from: Path | Callable[[Recipe], Source]) -> Recipe:
    """The recipe of a run that starts from a source at hand, rather than from what the base was made of."""
    usual = Recipe()
    found = {name: getattr(usual, name) for name in START}
    return replace(
        recipe, **{**found, "model": InFolder(start_from) if isinstance(start_from, Path) else start_from}
    )


def _experts(plan: Upcycling) -> dict[str, Any]:
    return {
        "top_k": plan.top_k,
        "last_blocks": plan.expert_layers,
        "towers": plan.expert_towers,
        "seed": plan.stage.seed,
    }


def _first(plan: Upcycling) -> Source:
    """The base, as the stage's recipe names it."""
    with torch.random.fork_rng([]):
        torch.manual_seed(plan.stage.seed)
        return start(plan.stage)


def _rehearsed(plan: Upcycling, base: Source) -> dict[str, Any]:
    pairs = ShuffledPairs(plan.stage, base, Shard())
    train_pairs, size = len(pairs.shuffled.train), plan.stage.batch_size
    each = [train_pairs // count for count in plan.clusters]
    if each[-1] < size:
        log.warning(
            "%d pairs in up to %d clusters are %d each, fewer than batch_size %d: most of the last stage's pairs may be left out. "
            "Fewer clusters or experts, or a smaller batch, use more",
            train_pairs,
            plan.clusters[-1],
            each[-1],
            size,
        )
    embed(base, pairs, device=distributed.pick_device(plan.stage.device), most=AT_ONCE)
    base.model.cpu()
    trained = plan.stage.trained or feed_forwards(base.model, plan.expert_layers, plan.expert_towers)
    labels = np.full(len(pairs.keys), HELD_OUT, np.int64)
    labels[pairs.shuffled.train] = 0
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "clusters.safetensors"
        save_clusters(path, Clusters(labels, 1, pairs.shuffled.fingerprint, (base.digest,)))
        stage = rehearse(replace(_starting(plan.stage, _Held(base)), trained=trained, clusters=str(path)))
    mixture = upcycled(base, experts=plan.experts, **_experts(plan))
    router = rehearse(_starting(plan.router, lambda recipe: mixture))
    return {
        "pairs": train_pairs,
        "held_out": len(pairs.shuffled.held_out),
        "clusters": list(plan.clusters),
        "pairs_per_cluster": each,
        "epoch_steps": train_pairs // size,
        "steps": plan.stages * plan.stage.steps + plan.router.steps,
        "parameters": sum(p.numel() for p in base.model.parameters()),
        **parameters(mixture.model),
        "device": stage.pop("device"),
        "stage": _told(stage),
        "router": _told(router),
    }


def _told(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in ("parameters", "device", "step")}


def parameters(model: DualEncoder) -> dict[str, int]:
    """How many parameters a model holds, "stored", and how many of them one token meets, "activated": of each mixture its top k experts.

    A mixture may have experts of several sizes once some were merged or pruned; those counted are the mean of them.
    """
    stored = sum(p.numel() for p in model.parameters())
    idle = 0
    for mixture in moe_layers(model).values():
        experts = sum(p.numel() for p in mixture.experts.parameters())
        idle += experts * (len(mixture.experts) - mixture.top_k) // len(mixture.experts)
    return {"stored": stored, "activated": stored - idle}


def _result_of(run: Path) -> TrainResult:
    """What a run that stands said when it ended; without its checkpoints, only where the model is."""
    latest = checkpoint.Checkpoints(run / "checkpoints", 1).pointed("latest")
    done = checkpoint.Progress() if latest is None else checkpoint.read_progress(latest)
    return TrainResult(
        run / "model", done.step, done.loss, done.best_step, done.best_score, done.unreadable, 0.0
    )


def _read_record(path: Path) -> dict[str, Any]:
    try:
        saved = json.loads(path.read_text())
        if not isinstance(saved, dict):
            raise ValueError("not an object")
        return saved
    except (OSError, ValueError) as error:
        raise TrainingError(
            f"{path}: cannot be read ({error}). Start anew in another folder, or put it back."
        ) from error


def _sweep(output: Path) -> None:
    """Take away what a run that was killed had begun to write."""
    for name in (".base", ".assembled", ".model", "*/.model", ".clusters-*.safetensors", ".plan.json"):
        for left in output.glob(f"{name}.*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
