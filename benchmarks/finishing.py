"""What int8 costs a tiny trained CLIP, and how much of it quantisation-aware finishing brings back, on held-out pairs.

    python -m benchmarks.finishing -o benchmarks/results/finishing.json

A model is trained on drawn shapes, then made as hard on bytes as large trained ones are: outliers in what norms give (tests/stress.py),
and hidden units behind the activation that are many times larger than the others. Scores are retrieval R@1 of the graphs that
onnxruntime runs with its byte kernels: float, int8 by the compressor, int8 of the finished student. "trained on" is the float model after as
many more steps at the same rate without bytes: what finishing gains beside it is only more training. Eight minutes of one core.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import describe
from edgeclip.export.distill.qat import QatSettings, finish, samples
from edgeclip.export.distill.settings import Begun, started
from edgeclip.export.observe import session
from edgeclip.export.onnx_graph import trace
from edgeclip.export.precision import Request, convert
from edgeclip.export.precision.finished import load_ranges
from edgeclip.export.towers import tower_of
from edgeclip.models.clip import Block, Clip
from edgeclip.models.source import DualEncoder, Source
from edgeclip.models.sources import load_source
from edgeclip.models.training import load_recipe, train
from edgeclip.models.training.data import batches as find_batches
from edgeclip.models.training.distributed import Shard
from edgeclip.models.training.recipe import Recipe
from tests.stress import plant_outliers

UNITS = 6  # hidden units of every block that are raised


class Graphs(DualEncoder):
    """Both towers as graphs."""

    def __init__(self, source: Source, make: Callable[[Any, str], Any]) -> None:
        super().__init__()
        self.sessions = {}
        for kind in ("image", "text"):
            tower = tower_of(source, kind, ("decomposed",))  # type: ignore[arg-type]
            self.sessions[kind] = session(make(trace(tower, tower.flavours[0])[0], kind), threads=1)

    def encode_image(self, pixels: Tensor) -> Tensor:
        """As DualEncoder."""
        return self._graph("image", pixels)

    def encode_text(self, input_ids: Tensor) -> Tensor:
        """As DualEncoder."""
        return self._graph("text", input_ids.int())

    def _graph(self, kind: str, inputs: Tensor) -> Tensor:
        opened = self.sessions[kind]
        return torch.from_numpy(opened.run(None, {opened.get_inputs()[0].name: inputs.numpy()})[0])


@torch.no_grad()
def raise_units(model: Clip, gain: float) -> None:
    """Hidden units of every block become `gain` times larger, and what reads them takes it out: the units grow harder, as a ReLU's are."""
    for tower in (model.image, model.text):
        for block in tower.blocks:  # type: ignore[union-attr]
            assert isinstance(block, Block)
            for unit in range(UNITS):
                at = 37 * unit % block.mlp.fc1.out_features
                block.mlp.fc1.weight[at] *= gain
                block.mlp.fc1.bias[at] *= gain
                block.mlp.fc2.weight[:, at] /= gain


PLANTS: Mapping[str, Callable[[Clip], None]] = {
    "as trained": lambda model: None,
    "norm outputs of 1,400": lambda model: plant_outliers(model, 1400),
    "hidden units x 16": lambda model: raise_units(model, 16),
    "hidden units x 64": lambda model: raise_units(model, 64),
    "hidden units x 512": lambda model: raise_units(model, 512),
}


def trained_on(model: Path, recipe: Recipe, settings: QatSettings, folder: Path) -> float | None:
    """The held-out score of a float model after as many steps as a finishing has, at the same rate."""
    more = replace(started(recipe), model=Begun(model), steps=settings.steps, learning_rate=settings.learning_rate,
                   warmup_steps=settings.steps // 10, checkpoint_every=max(1, settings.steps // 3))  # fmt: skip
    return train(more, folder, progress=False).best_score


def measured(source: Source, recipe: Recipe, settings: QatSettings, folder: Path) -> dict[str, Any]:
    """Scores of one student."""
    held_out = find_batches("pairs")(recipe, source, Shard())
    inputs = samples(source, recipe, settings)
    began = time.process_time()
    done = finish(source, recipe, folder, settings, progress=False)
    seconds = time.process_time() - began
    ranges = load_ranges(done.ranges)
    models = {
        "float": Graphs(source, lambda graph, kind: graph),
        "int8": Graphs(
            source, lambda graph, kind: convert(graph, "int8", Request(inputs=inputs[kind])).model
        ),
        "finished": Graphs(
            load_source(str(done.model)),
            lambda graph, kind: convert(graph, "int8", Request(finished=ranges[kind])).model,
        ),
    }
    found = {name: held_out.validate(model, torch.device("cpu"))["score"] for name, model in models.items()}
    simulated = {"int8_simulated": done.start_score, "finished_simulated": done.score}
    return {**found, **simulated, "learned": done.learned, "cpu_seconds": round(seconds, 1)}


def main() -> None:
    """Print a table; write it and the figures where -o says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--train-steps", type=int, default=300)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--rate", type=float, default=1e-4)
    arguments = parser.parse_args()
    recipe = replace(
        load_recipe("clip_vit_tiny"), steps=arguments.train_steps, batch_size=96, warmup_steps=30, checkpoint_every=arguments.train_steps, device="cpu",
    )  # fmt: skip
    settings = QatSettings(steps=arguments.steps, learning_rate=arguments.rate)
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        trained = train(recipe, Path(scratch) / "run", progress=False).model
        control = trained_on(trained, recipe, settings, Path(scratch) / "on")
        print("trained on", control, flush=True)
        for name, plant in PLANTS.items():
            source = load_source(str(trained))
            assert isinstance(source.model, Clip)
            plant(source.model)
            rows[name] = measured(source, recipe, settings, Path(scratch) / name.replace(" ", "-"))
            print(name, rows[name], flush=True)
    keys = ("float", "int8", "finished")
    table = [
        "| student | " + " | ".join(keys) + " | of the loss back |", "|---" * 5 + "|",
        *(f"| {name} | " + " | ".join(f"{row[key]:.3f}" for key in keys) + f" | {_back(row)} |" for name, row in rows.items()),
    ]  # fmt: skip
    print("\n".join(table))
    if arguments.output:
        own = {
            "train_steps": arguments.train_steps,
            "steps": arguments.steps,
            "learning_rate": arguments.rate,
        }
        arguments.output.write_text(
            json.dumps(
                {"machine": describe(), "settings": own, "trained_on": control, "students": rows}, indent=1
            )
            + "\n"
        )


def _back(row: Mapping[str, float]) -> str:
    lost = row["float"] - row["int8"]
    return f"{(row['finished'] - row['int8']) / lost:.0%}" if lost > 0.005 else "nothing was lost"


if __name__ == "__main__":
    main()
