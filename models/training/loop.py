"""The training loop: batches in, steps, metrics and checkpoints out, and a source folder at the end.

Nothing random is carried from step to step: a step's batch, augmentation and dropout depend on the seed and on its number.
So a run that was killed and resumed does on the CPU, bit for bit, what it would have done.
"""

from __future__ import annotations

import contextlib
import logging
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgeclip.errors import TrainingError
from edgeclip.files import new_folder
from edgeclip.models.feed_forward import moe_layers
from edgeclip.models.loaders.native import family_of
from edgeclip.models.source import DualEncoder, Source
from edgeclip.models.sources import load_source
from edgeclip.models.training import checkpoint, distributed
from edgeclip.models.training.batch import Batches, to_device
from edgeclip.models.training.checkpoint import Checkpoints, Progress
from edgeclip.models.training.data import batches as find_batches
from edgeclip.models.training.distributed import Shard
from edgeclip.models.training.freeze import ensemble, freeze
from edgeclip.models.training.interrupt import StopRequest, stop_on_signals
from edgeclip.models.training.metrics import Clock, Metrics
from edgeclip.models.training.objectives import Objectives
from edgeclip.models.training.optimizer import AveragedCopy, learning_rate, make_optimizer
from edgeclip.models.training.prefetch import prefetch
from edgeclip.models.training.progress import progress_bar
from edgeclip.models.training.recipe import Recipe
from edgeclip.models.training.starts import start
from edgeclip.models.training.step import autocast, backward, check_splittable, encoder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """What a finished run left."""

    model: Path  # a source folder: the best checkpoint's model where pairs were held out and ship=best, else the last one's
    steps: int
    loss: float  # of the last step
    best_step: int | None  # None: nothing was held out
    best_score: float | None  # of the held-out pairs at that step
    unreadable: int  # draws of pairs that could not be read and were replaced (of the first process)
    seconds: float  # of this call; a run that was resumed took longer


def train(recipe: Recipe, output: Path, *, resume: bool = True, progress: bool = True) -> TrainResult:
    """Train as the recipe says, or go on where a killed run stopped.

    Args:
        output: the run's folder: metrics.jsonl, checkpoints/, and at the end model/.
        resume: go on from the latest checkpoint in `output`; False refuses a folder that holds one.
        progress: show a bar on stderr where that is a terminal.
    Raises:
        TrainingError: a setting, the data or a checkpoint cannot be used, or the loss is no longer a number.
        SourceError: the model to start from cannot be loaded.
        KeyboardInterrupt: stopped by SIGINT or SIGTERM; a checkpoint of the last whole step is there.
    """
    began = time.monotonic()
    device = distributed.pick_device(recipe.device)
    devices = [device] if device.type == "cuda" else []
    with (
        distributed.group(device) as shard,
        torch.random.fork_rng(devices),
        stop_on_signals() as stop,
        told_once(),
    ):
        run = _Run(recipe, Path(output), device, shard, resume)
        if run.progress.step < recipe.steps and not run.enough:
            run.go(stop, progress)
        done = run.finish()
    return replace(done, seconds=time.monotonic() - began)


def rehearse(recipe: Recipe) -> dict[str, Any]:
    """Open the model and the data and make one step, without writing anything: what is wrong shows before hours are spent.

    Returns:
        "parameters", "device", and the record of the step.
    Raises:
        As `train`.
    """
    device = distributed.pick_device(recipe.device)
    with (
        tempfile.TemporaryDirectory() as scratch,
        torch.random.fork_rng([device] if device.type == "cuda" else []),
    ):
        run = _Run(recipe, Path(scratch), device, Shard(), resume=True)
        record = run.one_step(0, run.batches.batch(0))
    recipe.check_all_read()
    return {"parameters": sum(p.numel() for p in run.model.parameters()), "device": str(device), **record}


class _Run:
    """One call of `train`: what is trained, on what, and how far it is."""

    def __init__(
        self, recipe: Recipe, output: Path, device: torch.device, shard: Shard, resume: bool
    ) -> None:
        self.recipe, self.output, self.device, self.shard = recipe, output, device, shard
        self.checkpoints = Checkpoints(output / "checkpoints", recipe.keep_checkpoints)
        if recipe.batch_size % (recipe.accumulate * shard.world):
            raise TrainingError(
                f"batch_size: {recipe.batch_size} cannot be shared by {shard.world} processes in {recipe.accumulate} parts each."
            )
        latest = self.checkpoints.pointed("latest")
        if latest is not None and not resume:
            raise TrainingError(
                f"{output}: holds a run that came to {latest.name}. Resume it, or name another output folder."
            )
        self.fresh = latest is None
        torch.manual_seed(recipe.seed)
        source, tensors, self.progress = self._open(latest)
        family_of(source.model)  # a model that cannot be saved is refused now, not at the first checkpoint
        self.average = AveragedCopy(source.model, recipe.ema_decay) if recipe.ema_decay else None
        if any(name.startswith("weights/") for name in tensors):
            checkpoint.running_weights(source.model, tensors)
        self.source = replace(source, model=source.model.to(device).requires_grad_(True).train())
        freeze(self.model, recipe)
        for layer in moe_layers(self.model).values():
            layer.dropout = recipe.expert_dropout
        if self.average is not None:
            self.average.model.to(device)
        self.optimizer = make_optimizer(self.model, recipe)
        checkpoint.restore_optimizer(self.model, self.optimizer, tensors)
        self.batches: Batches = find_batches(recipe.batches)(recipe, source, shard)
        self._check_data()
        check_splittable(self.model, recipe.accumulate, shard)
        self.log_every, self.checkpoint_every = recipe.log_every, recipe.checkpoint_every
        self.workers, self.share, self.ships = recipe.workers, recipe.ensemble, recipe.ship
        self.patience = recipe.patience
        self.metrics: Metrics | None = None
        objectives = Objectives.of(recipe)
        self.step = partial(
            backward,
            self.model,
            encode=encoder(recipe.encode, objectives.wanted),
            objectives=objectives,
            context=autocast(recipe.precision, device),
            accumulate=recipe.accumulate,
            shard=shard,
        )

    @property
    def model(self) -> DualEncoder:
        """The model whose weights the optimizer moves."""
        return self.source.model

    @property
    def enough(self) -> bool:
        """Whether the held-out score has not risen for as many checkpoints as the recipe waits."""
        return 0 < self.patience <= self.progress.waited

    def _open(self, latest: Path | None) -> tuple[Source, dict[str, torch.Tensor], Progress]:
        if latest is None:
            return start(self.recipe), {}, Progress()
        self.recipe.check_same_run(checkpoint.read_recipe(latest), str(latest))
        source, tensors = checkpoint.load_weights(latest)
        log.info("resuming from %s", latest)
        return source, tensors, checkpoint.read_progress(latest)

    def _check_data(self) -> None:
        fingerprint = str(getattr(self.batches, "fingerprint", ""))
        if self.progress.fingerprint not in ("", fingerprint):
            raise TrainingError(
                f"data: {self.recipe.data} holds other pairs than when {self.output} was started. Put them back, or start anew."
            )
        self.progress = replace(self.progress, fingerprint=fingerprint)

    def go(self, stop: StopRequest, show: bool) -> None:
        """All steps that are left."""
        recipe, lead = self.recipe, self.shard.rank == 0
        made = prefetch(self.batches.batch, self.progress.step, recipe.steps, self.workers)
        with contextlib.ExitStack() as stack:
            stack.callback(made.close)  # type: ignore[attr-defined]
            if lead:
                self.metrics = Metrics(
                    self.output / "metrics.jsonl", -1 if self.fresh else self.progress.step
                )
                stack.callback(self.metrics.close)
            tell = stack.enter_context(progress_bar(recipe.steps, self.progress.step, show and lead))
            if self.fresh:
                self._validate()
            clock = Clock()
            for batch in clock.waiting(made):
                number = self.progress.step
                record = self.one_step(number, batch)
                clock.pairs += recipe.batch_size
                tell(number + 1, record["loss"], self.progress.best_score)
                if number == 0:
                    recipe.check_all_read()
                last = number + 1 == recipe.steps
                if self.metrics and (last or (number + 1) % self.log_every == 0):
                    self.metrics.write({**record, **clock.lap()})
                asked = distributed.any_of(stop.asked, self.shard, self.device)
                if last or (number + 1) % self.checkpoint_every == 0:
                    self.progress = self.progress.scored(self._validate())
                    self._save()
                    # the lead alone has scores, and all must end at the same step
                    if not last and distributed.any_of(self.enough, self.shard, self.device):
                        log.info("step %d: no better for %d checkpoints", number + 1, self.patience)
                        return
                elif asked:
                    self._save()
                if asked and not last:
                    raise KeyboardInterrupt

    def one_step(self, number: int, batch: Any) -> dict[str, Any]:
        """Move the weights by one batch; returns the step's record."""
        recipe = self.recipe
        rate = learning_rate(recipe, number)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss, terms = self.step(to_device(batch, self.device), seed=recipe.seed * 1_000_003 + number)
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip_grad or math.inf))
        value = float(loss)
        if not (math.isfinite(value) and math.isfinite(norm)):
            raise self._diverged(number, value, norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        highest = math.log(recipe.max_scale)
        if self.model.logit_scale.requires_grad:  # one that is held stays as it came, to the last bit
            with torch.no_grad():
                self.model.logit_scale.clamp_(max=highest)
        if self.average is not None:
            self.average.update(self.model, number)
        unreadable = self.progress.unreadable + len(getattr(batch, "unreadable", ()))
        self.progress = replace(self.progress, step=number + 1, loss=value, unreadable=unreadable)
        return {
            "step": number + 1,
            "loss": value,
            **({name: float(term) for name, term in terms.items()} if len(terms) > 1 else {}),
            "learning_rate": rate,
            "gradient_norm": norm,
            "scale": float(self.model.logit_scale.detach().exp()),
            "unreadable": unreadable,
        }

    def _diverged(self, number: int, loss: float, norm: float) -> TrainingError:
        latest = self.checkpoints.pointed("latest")
        good = f"The last good checkpoint is {latest}" if latest else "There is no checkpoint yet"
        return TrainingError(
            f"step {number + 1}: expected finite numbers, the loss is {loss} and the gradient's norm {norm}. {good}; "
            "lower learning_rate, raise warmup_steps, or set precision=fp32, in another output folder."
        )

    def _validate(self) -> float | None:
        """Score what would be shipped, record it; None where the batches hold nothing out. The lead alone does it."""
        validate: Callable[..., dict[str, float]] | None = getattr(self.batches, "validate", None)
        scores = {}
        if validate is not None and self.metrics is not None:
            scores = validate(self.model if self.average is None else self.average.model, self.device)
            self.model.train()
            if scores:
                self.metrics.write({"step": self.progress.step, **scores})
        if self.patience and self.metrics is not None and "score" not in scores:
            raise TrainingError(
                f"patience: {self.patience} checkpoints without a better score end the run, and nothing is held out to score. "
                "Set validation_share above 0, or patience=0."
            )
        distributed.wait(self.shard)
        return scores.get("score")

    def _save(self) -> None:
        if self.shard.rank == 0:
            self.checkpoints.save(self.source, self.optimizer, self.average, self.progress, self.recipe)
        distributed.wait(self.shard)

    def finish(self) -> TrainResult:
        """Copy the model that the run is for to `model/`."""
        done = self.progress
        best = None if self.ships == "last" else done.best_step
        chosen = self.checkpoints.at(done.step if best is None else best)
        target = self.output / "model"
        if self.shard.rank == 0:
            with new_folder(target, overwrite=True) as scratch:
                if self.share < 1:
                    self._ship_ensemble(chosen / "model", scratch)
                else:
                    shutil.copytree(chosen / "model", scratch, dirs_exist_ok=True)
        distributed.wait(self.shard)
        return TrainResult(
            target, done.step, done.loss, done.best_step, done.best_score, done.unreadable, 0.0
        )

    def _ship_ensemble(self, chosen: Path, target: Path) -> None:
        """The chosen model's weights with a share of those that the run started from; the seed makes a new part's start again."""
        torch.manual_seed(self.recipe.seed)
        first, source = start(self.recipe), load_source(str(chosen))
        ensemble(source.model, first.model, self.share)
        checkpoint.write_source(target, source)


@contextlib.contextmanager
def told_once() -> Iterator[None]:
    """The tokenizer says of every batch how many texts it cut; during a run the first time is enough."""
    said: list[bool] = []

    def first(record: logging.LogRecord) -> bool:
        said.append(True)
        return len(said) == 1

    logger = logging.getLogger("edgeclip.runtime.text.tokenize")
    logger.addFilter(first)
    try:
        yield
    finally:
        logger.removeFilter(first)
