"""A student by its name: what learns from a teacher, and how it starts.

student(load_source("hf:openai/clip-vit-base-patch16"), "39m-16")

half-width, 39m-16, ...                       the teacher's weights, as many as the name says (`STUDENTS`)
inherit:image.width=512,text.layers=3         the same, by sizes of one's own (`StudentPlan`); layers=0/5/11 names the blocks
timm:resnet18                                 an image tower of timm with random weights; the text tower is the teacher's
dense:mean, dense:0                           of a teacher with experts: their mean, or one of them, in each block's place
new:half-width                                the sizes of that student, and random weights
hf:ORG/NAME, a folder, ...                    another source as it is
dense:mean+half-depth                         one after another
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgeclip.errors import EdgeClipError, InputError, SourceError
from edgeclip.models.clip import Clip, ImageTower, TextTower
from edgeclip.models.config import ClipConfig, ImageConfig, TextConfig
from edgeclip.models.dense_experts import one_expert
from edgeclip.models.importance import MEASURED, PairSamples
from edgeclip.models.inherit import StudentPlan, TowerPlan, inherit
from edgeclip.models.source import Source
from edgeclip.models.sources import SCHEMES as SOURCES
from edgeclip.models.sources import load_source


@dataclass(frozen=True)
class Share:
    """How much of a teacher's tower a student has: of its blocks, and of its heads with the width and units that go with them."""

    layers: float = 1.0
    width: float = 1.0


@dataclass(frozen=True)
class Sizes:
    """A student of sizes of its own, for teachers with one side of patches."""

    patch_size: int
    plan: StudentPlan


# name -> shares of the (image, text) tower, or sizes. In TinyCLIP a text tower is cut in depth and an image tower in width: "half" does so.
STUDENTS: dict[str, tuple[Share, Share] | Sizes] = {
    "full": (Share(), Share()),
    "short-text": (Share(), Share(layers=0.25)),
    "three-quarters": (Share(width=0.75), Share(layers=0.75)),
    "half": (Share(width=0.5), Share(layers=0.5)),
    "half-depth": (Share(layers=0.5), Share(layers=0.5)),
    "half-width": (Share(width=0.5), Share(width=0.5)),
    "half-both": (Share(0.5, 0.5), Share(0.5, 0.5)),
    "quarter": (Share(0.5, 0.25), Share(0.25, 0.5)),
    # TinyCLIP's own sizes: millions of the image tower's parameters, side of a patch
    "61m-32": Sizes(32, StudentPlan(TowerPlan(12, 640, 10, 2560), TowerPlan(9, 512, 8, 2048))),
    "40m-32": Sizes(32, StudentPlan(TowerPlan(12, 512, 8, 2048), TowerPlan(6, 512, 8, 2048))),
    "39m-16": Sizes(16, StudentPlan(TowerPlan(12, 512, 8, 2048), TowerPlan(6, 512, 8, 2048))),
    "8m-16": Sizes(16, StudentPlan(TowerPlan(10, 256, 4, 1024), TowerPlan(3, 256, 4, 1024))),
}

_NEW = "new:"  # takes all that follows


def student(teacher: Source, name: str, *, seed: int = 0, samples: PairSamples | None = None) -> Source:
    """The student of that name, in eval mode. It shares no tensor with the teacher.

    Args:
        name: see the top of this file.
        seed: of random weights.
        samples: pairs as the teacher takes them, some tens: `dense:mean` then weighs experts by use. Needed where an `inherit:` name
            measures: `importance=activations`, `importance=gradients`, `mend=true`.
    Raises:
        InputError: no such student, or sizes that this teacher does not have.
        SourceError: a teacher that cannot have it, or a source that cannot be loaded.
    """
    found = teacher
    for step in _steps(name):
        found = _stepped(found, step, seed, samples)
    if found.spec != teacher.spec:
        return found
    return replace(found, name=f"{teacher.name}-{slug(name)}", spec=f"{name} of {teacher.spec}")


def slug(name: str) -> str:
    """A student's name as a folder's."""
    return "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in name)


def is_made(name: str) -> bool:
    """Whether a student of that name would be made from its teacher, and nothing be loaded or downloaded for it."""
    if name.startswith(_NEW):
        return is_made(name.removeprefix(_NEW))
    return all(step in STUDENTS or step.partition(":")[0] in KINDS for step in name.split("+"))


def needs_samples(name: str) -> bool:
    """Whether a student of that name cannot be made without pairs."""
    return bool(
        re.search(rf"\b(importance=({'|'.join(MEASURED)})|mend=(true|yes|on|1))\b", name, re.IGNORECASE)
    )


def _steps(name: str) -> list[str]:
    whole = name.startswith((_NEW, *(f"{scheme}:" for scheme in SOURCES)))
    return [name] if whole or Path(name).expanduser().exists() else name.split("+")


def _stepped(teacher: Source, name: str, seed: int, samples: PairSamples | None) -> Source:
    kind, colon, rest = name.partition(":")
    if name in STUDENTS:
        return inherit(teacher, plan_of(teacher, name), samples)
    if colon and kind in KINDS:
        return KINDS[kind](teacher, rest, seed, samples)
    if (colon and kind in SOURCES) or name == "nano" or (name and Path(name).expanduser().exists()):
        return load_source(name)
    from edgeclip.models.training.settings import nearest  # late: training's package opens every start

    raise InputError(
        f"student {name!r}: no such student{nearest(kind, [*STUDENTS, *KINDS])} "
        f"There are {', '.join([*STUDENTS, *(f'{known}:...' for known in KINDS)])}, or name a source."
    )


def plan_of(teacher: Source, name: str) -> StudentPlan:
    """What a name of `STUDENTS` means for this teacher. Raises InputError or SourceError where it means nothing."""
    config = _config(teacher, name)
    entry = STUDENTS[name]
    if isinstance(entry, Sizes):
        patch = getattr(config.image, "patch_size", None)
        if patch != entry.patch_size:
            raise InputError(
                f"student {name}: is of teachers with patches of {entry.patch_size} pixels, {teacher.spec} has {patch or 'none'}. "
                "Name half or half-width, which are shares of any teacher."
            )
        return entry.plan
    image, text = (
        _shares(tower, share, name, teacher)
        for tower, share in zip((config.image, config.text), entry, strict=True)
    )
    return StudentPlan(image, text)


def _shares(tower: Any, share: Share, name: str, teacher: Source) -> TowerPlan:
    if share == Share() or tower is None:
        return TowerPlan()
    if type(tower) not in (ImageConfig, TextConfig):
        raise SourceError(
            f"student {name}: a tower of {teacher.spec} is of kind {tower.KIND!r}, whose sizes cannot be changed. "
            "Name only the other's with inherit:..., or a timm:... student."
        )
    blocks = tower.blocks
    layers = max(1, round(blocks.layers * share.layers))
    if share.width == 1:
        return TowerPlan(layers=layers)
    heads = max(1, round(blocks.heads * share.width))
    return TowerPlan(
        layers, blocks.width * heads // blocks.heads, heads, max(1, blocks.mlp_width * heads // blocks.heads)
    )


def _config(teacher: Source, name: str) -> ClipConfig:
    if type(teacher.model) is not Clip:
        raise SourceError(
            f"student {name}: {teacher.spec} is a {type(teacher.model).__name__}, and this needs a plain CLIP. Name a source."
        )
    return teacher.model.config


def _inherited(teacher: Source, rest: str, seed: int, samples: PairSamples | None) -> Source:
    from edgeclip.models.training.settings import assign

    where = f"student inherit:{rest}"
    plan, assignments = StudentPlan(), []
    for part in filter(None, rest.split(",")):
        key, _, text = part.partition("=")
        if key.endswith(".layers") and "/" in text and hasattr(plan, tower := key.removesuffix(".layers")):
            numbers = _numbers(text, f"{where}: {key}")
            plan = replace(plan, **{tower: replace(getattr(plan, tower), layers=numbers)})
        else:
            assignments.append((key, text, where))
    try:
        plan = assign(plan, assignments)
    except EdgeClipError as error:
        raise InputError(str(error)) from error
    return inherit(teacher, plan, samples)


def _numbers(text: str, where: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.split("/"))
    except ValueError as error:
        raise InputError(f"{where}: expected numbers of blocks as 0/5/11, got {text!r}.") from error


def _timm(teacher: Source, rest: str, seed: int, samples: PairSamples | None) -> Source:
    """Its own pool and a linear projection; a plain vision transformer becomes the canonical tower."""
    from edgeclip.models.loaders.openclip.timm import plain_vit
    from edgeclip.models.timm_tower import TimmConfig, TimmTower, pool_name
    from edgeclip.models.training.starts import initialise_tower

    name = f"timm:{rest}"
    config, spec = _config(teacher, name), teacher.preprocessing
    if spec is None:
        raise SourceError(f"student {name}: {teacher.spec} has no image tower to stand in for.")
    own = TimmConfig(rest, spec.size, timm_pool="")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            tower: nn.Module = TimmTower(own, config.embed_dim).eval()
            with torch.no_grad():
                made = tuple(tower(torch.zeros(1, 3, *spec.size)).shape)
        except (AssertionError, AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:120] or type(error).__name__
            raise InputError(
                f"student {name}: timm makes no image tower of it for the teacher's pictures of {spec.size[0]}x{spec.size[1]} "
                f"({reason}). Name one of `timm.list_models()` that takes them."
            ) from error
        if made != (1, config.embed_dim):
            raise InputError(
                f"student {name}: gives {made[1:]} of a picture, not one vector. Name another model of timm."
            )
        assert isinstance(tower, TimmTower)
        image: Any = plain_vit(tower)
        if image is not None:
            tower = ImageTower(image, config.embed_dim)
            initialise_tower(tower)
        else:
            image = replace(own, pool=pool_name(tower))
    with torch.device("meta"):
        model = Clip(replace(config, image=image))
    state = _apart(teacher, "image.") | {f"image.{key}": value for key, value in tower.state_dict().items()}
    model.load_state_dict(state, assign=True)
    return _told(teacher, model, [name, seed])


def _dense(teacher: Source, rest: str, seed: int, samples: PairSamples | None) -> Source:
    return one_expert(teacher, rest, samples)


def _new(teacher: Source, rest: str, seed: int, samples: PairSamples | None) -> Source:
    """Drawn as training from scratch draws it; towers that are not canonical as their modules do."""
    from edgeclip.models.training.starts import initialise_tower

    like = student(teacher, rest, seed=seed, samples=samples)
    other: Any = like.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = type(other)(other.config)
        for tower in (model.image, model.text):
            if isinstance(tower, (ImageTower, TextTower)):
                initialise_tower(tower)
    # what it is like says only its sizes: the spec stays the teacher's, as every made student's does
    made = replace(like, spec=teacher.spec)
    return _told(made, model, ["new", other.config.to_json(), seed])


# what stands before the colon of a name
KINDS: dict[str, Callable[[Source, str, int, PairSamples | None], Source]] = {
    "inherit": _inherited,
    "timm": _timm,
    "dense": _dense,
    "new": _new,
}


def _apart(teacher: Source, without: str) -> dict[str, torch.Tensor]:
    """Copies of the teacher's weights but for one tower's."""
    state = teacher.model.state_dict()
    return {key: value.detach().clone() for key, value in state.items() if not key.startswith(without)}


def _told(teacher: Source, model: Any, what: list[Any]) -> Source:
    digest = hashlib.sha256(repr([teacher.digest, *what]).encode()).hexdigest()
    return replace(
        teacher,
        model=model.requires_grad_(False).eval(),
        embedding_dim=model.config.embed_dim,
        pooling=model.config.pooling,
        digest=digest,
    )
