"""A training run as one frozen dataclass: every setting has a type, a default and a reader."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from edgeclip.bundle.manifest import Licence, Preprocessing
from edgeclip.errors import TrainingError
from edgeclip.models.config import ClipConfig
from edgeclip.models.training import settings

# What a resumed run may change: none of it touches the numbers. (Data, clusters, what a teacher said may move; what they hold is compared.)
FREE = {
    "name",
    "data",
    "images",
    "clusters",
    "teacher_data",
    "text_bank",
    "device",
    "workers",
    "log_every",
    "checkpoint_every",
    "keep_checkpoints",
    "patience",
}


@dataclass(frozen=True)
class Augmentation:
    """What happens to a training picture. Flips are off: they swap "left" and "right" and mirror writing."""

    crop_scale: tuple[float, float] = (0.9, 1.0)  # share of the picture's area that a random crop keeps
    crop_ratio: tuple[float, float] = (0.75, 1.3333)  # its width / height
    flip: float = 0.0  # probability
    brightness: float = 0.0  # factors are drawn from 1 - x to 1 + x
    contrast: float = 0.0
    saturation: float = 0.0
    grey: float = 0.0  # probability

    def __post_init__(self) -> None:
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise TrainingError(
                f"augmentation.crop_scale: expected 0 < low <= high <= 1, got {self.crop_scale}."
            )
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise TrainingError(f"augmentation.crop_ratio: expected 0 < low <= high, got {self.crop_ratio}.")
        for name in ("flip", "brightness", "contrast", "saturation", "grey"):
            if not 0 <= getattr(self, name) <= 1:
                raise TrainingError(f"augmentation.{name}: expected 0 to 1, got {getattr(self, name)}.")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run. A name picks a table's entry; a callable of yours stands in its place.

    Raises:
        TrainingError: a value out of its range; one line names the setting.
    """

    name: str = ""
    # The model: an entry of starts.STARTS, or a callable (recipe) -> Source
    model: str | Callable[..., Any] = "source"
    init_from: str = ""  # "source": the spec to start from, e.g. openclip:ViT-B-32/laion2b_s34b_b79k
    resolution: int = 0  # "source", "regions", "prompter": side of the pictures; 0 = the source's own
    clip: ClipConfig | None = None  # "scratch": the sizes of a new CLIP
    tokenizer: str = ""  # "scratch": a tokenizer.json; "" learns one from the captions
    preprocessing: Preprocessing | None = (
        None  # None: the source's own; "scratch": squash to the tower's size, 0.5
    )
    frozen: tuple[str, ...] = ()  # parts that are not trained: what parameters' names start with, e.g. text
    trained: tuple[str, ...] = ()  # only parameters whose names match are trained, e.g. *.mlp.*; () = all
    last_blocks: int = (
        0  # the image tower trains its last so many blocks and what comes behind them; 0 = all of it
    )
    ensemble: float = (
        1.0  # share of the trained weights in those that are shipped; the rest is the weights of the start
    )
    # Mixtures of experts: "upcycled" gives the source these; with top_k of experts a token takes
    experts: int = 4  # of a block
    top_k: int = 2
    expert_layers: int = 0  # the last so many blocks of a tower, at most all it has; 0 = all
    expert_towers: tuple[str, ...] = ("image", "text")
    expert_dropout: float = 0.0  # of the experts' hidden activations
    ship: Literal["best", "last"] = (
        "best"  # which checkpoint is the result; without held-out pairs it is the last
    )
    licence: Licence | None = None  # None: the source's own, with a warning that the data's is unknown
    # The pairs
    data: str = (
        ""  # folder, .csv, .tsv, .jsonl, tar shards, or shapes:N; for batches=regions COCO's .json or .jsonl
    )
    images: str = ""  # batches=regions: folder of the pictures; "" = beside the data
    regions: int = 4  # batches=regions: boxes of a picture that meet in one loss, at most
    data_format: str = "auto"  # an entry of data.FORMATS
    templates: tuple[str, ...] = (
        "{}",
    )  # one is drawn for each caption; for class names: ["a photo of a {}."]
    augmentation: Augmentation = field(default_factory=Augmentation)
    validation_share: float = 0.05  # of the pairs, chosen by a hash of their keys
    validation_pairs: int = 1000  # at most so many are scored
    # The batches: an entry of data.BATCHES, or a callable (recipe, source, shard) -> object with .batch(step)
    batches: str | Callable[..., Any] = "pairs"
    clusters: str = ""  # batches=clustered: file of the pairs' cluster labels
    teacher_data: str = ""  # batches=reinforced, unlabelled: folder of what teachers said of the data
    text_bank: str = (
        ""  # batches=unlabelled: file of texts, one a line; "" = those that the teachers' folder holds
    )
    # The objective: what is encoded ("pairs", or a callable (model, batch) -> named tensors), and what is asked of it
    encode: str | Callable[..., Any] = "pairs"
    objectives: tuple[tuple[str | Callable[..., Any], float], ...] = (("info_nce", 1.0),)
    label_smoothing: float = 0.0  # info_nce: share of a target that is spread evenly over the batch
    # The run
    steps: int = 1000
    batch_size: int = 256  # pairs that meet in one loss, over all processes
    accumulate: int = (
        1  # encode the batch in so many parts, one after the other; the loss still sees the whole
    )
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: for towers that are trained from scratch
    learning_rate: float = 5e-4
    weight_decay: float = 0.2
    betas: tuple[float, float] = (0.9, 0.98)
    epsilon: float = 1e-6
    warmup_steps: int = 100
    schedule: Literal["cosine", "constant"] = "cosine"
    clip_grad: float = 1.0  # largest norm of the gradient; 0 = no limit
    max_scale: float = 100.0  # of the factor on the cosine
    ema_decay: float = 0.0  # 0 = no averaged copy
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: int = 0
    device: str = "auto"  # auto, cpu, cuda, cuda:1
    workers: int = 2  # threads that prepare batches ahead; 0 = none
    log_every: int = 10
    checkpoint_every: int = 500  # also how often the held-out pairs are scored
    keep_checkpoints: int = 2  # the best one is kept besides
    patience: int = 0  # end after so many checkpoints in a row that are no better than the best; 0 = never

    def __post_init__(self) -> None:
        settings.check_types(self)
        _check_ranges(self)
        object.__setattr__(self, "_reads", set())

    def __getattribute__(self, name: str) -> Any:
        values = object.__getattribute__(self, "__dict__")
        if name in values and "_reads" in values:
            values["_reads"].add(name)
        return object.__getattribute__(self, name)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready settings; a callable stands as `module:name`."""
        return {spec.name: _plain(_value(self, spec.name)) for spec in dataclasses.fields(self)}

    def check_all_read(self) -> None:
        """Refuse a setting that was changed from its default although nothing in this run reads it.

        Raises:
            TrainingError: names the setting, and who would read it.
        """
        reads = object.__getattribute__(self, "_reads")
        default = Recipe()
        for spec in dataclasses.fields(self):
            name = spec.name
            if name not in reads | {"name"} and _value(self, name) != _value(default, name):
                near = settings.nearest(name, reads)
                raise TrainingError(
                    f"{name}: set to {_value(self, name)!r}, but nothing in this run reads it{near} "
                    "Take it out, or change what should read it (model, batches, encode)."
                )

    def check_same_run(self, saved: dict[str, Any], where: str) -> None:
        """Refuse to resume a run with other settings than it was started with.

        Raises:
            TrainingError: names the first setting that differs, both values, and what to do.
        """
        wanted = json.loads(json.dumps(self.to_json()))
        saved = {
            **json.loads(json.dumps(Recipe().to_json())),
            **saved,
        }  # an older run did not know all settings
        for name in [*wanted, *(key for key in saved if key not in wanted)]:
            if name not in FREE and saved.get(name) != wanted.get(name):
                raise TrainingError(
                    f"{where}: started with {name} = {saved.get(name)!r}, now it is {wanted.get(name)!r}. "
                    "Set it back, or name another output folder."
                )


def with_settings(recipe: Recipe, assignments: tuple[str, ...]) -> Recipe:
    """Apply `key=value` texts, values parsed by the setting's type; dots reach into parts (augmentation.flip=0.5).

    Raises:
        TrainingError: no such setting (names the nearest), or a value of another type.
    """
    split = []
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise TrainingError(f"--set {assignment}: expected key=value, e.g. --set steps=200.")
        split.append((key.strip(), text.strip(), f"--set {assignment}"))
    return settings.assign(recipe, split)


def _value(recipe: Recipe, name: str) -> Any:
    return object.__getattribute__(recipe, name)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {spec.name: _plain(getattr(value, spec.name)) for spec in dataclasses.fields(value)}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if callable(value):
        return f"{value.__module__}:{getattr(value, '__qualname__', type(value).__qualname__)}"
    return value


def _check_ranges(recipe: Recipe) -> None:
    limits = {  # setting -> (whether it holds, what was expected)
        "resolution": (recipe.resolution >= 0, "0 or more"),
        "last_blocks": (recipe.last_blocks >= 0, "0 or more"),
        "experts": (recipe.experts >= 2, "2 or more"),
        "top_k": (1 <= recipe.top_k <= recipe.experts, f"1 to experts {recipe.experts}"),
        "expert_layers": (recipe.expert_layers >= 0, "0 or more"),
        "expert_towers": (
            0 < len(set(recipe.expert_towers)) == len(recipe.expert_towers)
            and set(recipe.expert_towers) <= {"image", "text"},
            "image, text or both",
        ),
        "expert_dropout": (0 <= recipe.expert_dropout < 1, "0 to below 1"),
        "label_smoothing": (0 <= recipe.label_smoothing < 1, "0 to below 1"),
        "ensemble": (0 < recipe.ensemble <= 1, "above 0, to 1"),
        "regions": (recipe.regions >= 1, "1 or more"),
        "steps": (recipe.steps >= 1, "1 or more"),
        "batch_size": (recipe.batch_size >= 2, "2 or more: a contrast needs another pair"),
        "accumulate": (
            recipe.accumulate >= 1 and recipe.batch_size % recipe.accumulate == 0,
            f"a divisor of batch_size {recipe.batch_size}",
        ),
        "learning_rate": (recipe.learning_rate > 0, "above 0"),
        "weight_decay": (recipe.weight_decay >= 0, "0 or more"),
        "betas": (all(0 <= beta < 1 for beta in recipe.betas), "two numbers from 0 to below 1"),
        "epsilon": (recipe.epsilon > 0, "above 0"),
        "warmup_steps": (0 <= recipe.warmup_steps <= recipe.steps, f"0 to steps {recipe.steps}"),
        "clip_grad": (recipe.clip_grad >= 0, "0 or more"),
        "max_scale": (recipe.max_scale > 1, "above 1"),
        "ema_decay": (0 <= recipe.ema_decay < 1, "0 to below 1"),
        "validation_share": (0 <= recipe.validation_share <= 0.5, "0 to 0.5"),
        "validation_pairs": (recipe.validation_pairs >= 1, "1 or more"),
        "objectives": (len(recipe.objectives) > 0, "at least one"),
        "templates": (
            len(recipe.templates) > 0 and all("{}" in t for t in recipe.templates),
            "texts that hold {}",
        ),
        "workers": (recipe.workers >= 0, "0 or more"),
        "log_every": (recipe.log_every >= 1, "1 or more"),
        "checkpoint_every": (recipe.checkpoint_every >= 1, "1 or more"),
        "keep_checkpoints": (recipe.keep_checkpoints >= 1, "1 or more"),
        "patience": (recipe.patience >= 0, "0 or more"),
    }
    for name, (holds, wanted) in limits.items():
        if not holds:
            raise TrainingError(f"{name}: expected {wanted}, got {getattr(recipe, name)!r}.")
