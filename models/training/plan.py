"""Diversified Multiplet Upcycling as one frozen dataclass: recipes of its stages and of its router, and what they share.

Source: Zhang et al. 2024 (CLIP-MoE), arXiv:2409.19291.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from edgeclip.errors import TrainingError
from edgeclip.models.training import settings
from edgeclip.models.training.recipe import FREE, Recipe

# What says from what a run starts: a stage's and the router's start are the plan's own, the base's stand in `stage`.
START = ("model", "init_from", "resolution", "clip", "tokenizer", "preprocessing")
SHARED = ("experts", "top_k", "expert_layers", "expert_towers")  # of the plan, for a recipe has them too


def _stage() -> Recipe:
    return Recipe(
        batches="clustered",
        objectives=(("info_nce", 1.0),),
        label_smoothing=0.1,
        steps=1500,
        batch_size=800,
        learning_rate=1e-5,
        weight_decay=0.2,
        warmup_steps=200,
        ship="last",  # the stage is meant to differ from the base: held-out pairs do not choose how far
    )


def _router() -> Recipe:
    return Recipe(
        trained=("*.mlp.router.weight",),
        objectives=(("info_nce", 1.0), ("load_balance", 0.01)),
        expert_dropout=0.1,
        steps=1500,
        batch_size=800,
        learning_rate=1e-6,
        weight_decay=1e-2,
        warmup_steps=200,
    )


@dataclass(frozen=True)
class Upcycling:
    """A dense CLIP becomes one with mixtures of experts: its feed-forwards, and those of stages that learned inside clusters.

    Raises:
        TrainingError: a value out of its range, or one that has another place; one line names the setting.
    """

    name: str = ""
    experts: int = 4  # of a block: the base's feed-forward, and one of each stage
    top_k: int = 2  # experts that a token takes
    expert_layers: int = 0  # the last so many blocks of a tower, at most all it has; 0 = all
    expert_towers: tuple[str, ...] = ("image", "text")
    image_clusters: int = 3  # that a stage's model divides pictures into
    text_clusters: int = 3  # and captions; each cluster of the stage before is divided by both
    chain: bool = False  # a stage goes on from the one before; False: each starts from the base, as the released script does
    # trained=() stands for the feed-forwards that become experts; batches are clustered
    stage: Recipe = field(default_factory=_stage)
    router: Recipe = field(default_factory=_router)

    def __post_init__(self) -> None:
        settings.check_types(self)
        for name in ("stage", "router"):
            if not isinstance(getattr(self, name), Recipe):
                raise TrainingError(f"{name}: expected a Recipe, got {type(getattr(self, name)).__name__}.")
        _check_ranges(self)
        _check_places(self)

    @property
    def stages(self) -> int:
        """Runs inside clusters: one fewer than experts."""
        return self.experts - 1

    @property
    def clusters(self) -> tuple[int, ...]:
        """Clusters that there may be at each stage, e.g. 9, 81, 729."""
        return tuple((self.image_clusters * self.text_clusters) ** j for j in range(1, self.experts))

    def to_json(self) -> dict[str, Any]:
        """JSON-ready settings, with `stage` and `router` as a recipe writes itself."""
        own = {spec.name: getattr(self, spec.name) for spec in dataclasses.fields(self)}
        return {**own, "stage": self.stage.to_json(), "router": self.router.to_json()}

    def check_same_run(self, saved: dict[str, Any], where: str) -> None:
        """Refuse to go on with other settings than the stages were started with; the router's may change until it begins.

        Raises:
            TrainingError: names the first setting that differs, both values, and what to do.
        """
        wanted = json.loads(json.dumps(self.to_json()))
        saved = {**json.loads(json.dumps(Upcycling().to_json())), **saved}
        for name in {**wanted, **saved}:
            if name not in FREE | {"stage", "router"} and saved.get(name) != wanted.get(name):
                raise TrainingError(
                    f"{where}: started with {name} = {saved.get(name)!r}, now it is {wanted.get(name)!r}. "
                    "Set it back, or name another output folder."
                )
        self.stage.check_same_run(saved["stage"], f"{where}, its stages")


def with_plan_settings(plan: Upcycling, assignments: tuple[str, ...]) -> Upcycling:
    """Apply `key=value` texts: a setting of the plan's own, `stage.steps=200` or `router.steps=200` for one of them, and any other
    setting of a recipe for both; what says from what the run starts (init_from, resolution, ...) goes to the base.

    Raises:
        TrainingError: no such setting (names the nearest), or a value of another type.
    """
    own = [spec.name for spec in dataclasses.fields(plan)]
    known = [spec.name for spec in dataclasses.fields(Recipe)]
    mine: list[tuple[str, str, str]] = []
    parts: dict[str, list[tuple[str, str, str]]] = {"stage": [], "router": []}
    for assignment in assignments:
        key, equals, text = (part.strip() for part in assignment.partition("="))
        where = f"--set {assignment}"
        if not equals:
            raise TrainingError(f"{where}: expected key=value, e.g. --set stage.steps=200.")
        head, _, rest = key.partition(".")
        if head in parts and rest:
            parts[head].append((rest, text, where))
        elif head in own:
            mine.append((key, text, where))
        elif head in known:
            for name in ("stage",) if head in START else ("stage", "router"):
                parts[name].append((key, text, where))
        else:
            near = settings.nearest(head, [*own, *known])
            raise TrainingError(
                f"{where}: no setting {head!r}{near} There are {', '.join(own)}, and those of a recipe for stage and router together."
            )
    return settings.assign(dataclasses.replace(plan, **_parts(plan, parts)), mine)


def _parts(plan: Upcycling, assignments: dict[str, list[tuple[str, str, str]]]) -> dict[str, Any]:
    """Both recipes with their settings changed."""
    found = {}
    for name, mine in assignments.items():
        try:
            found[name] = settings.assign(getattr(plan, name), mine)
        except TrainingError as error:
            said = str(error)
            raise TrainingError(said if said.startswith("--set ") else f"{name}.{said}") from error
    return found


def _check_ranges(plan: Upcycling) -> None:
    limits = {  # setting -> (whether it holds, what was expected)
        "experts": (plan.experts >= 2, "2 or more: the base's feed-forward and a stage's"),
        "top_k": (1 <= plan.top_k <= plan.experts, f"1 to experts {plan.experts}"),
        "expert_layers": (plan.expert_layers >= 0, "0 or more"),
        "expert_towers": (
            0 < len(set(plan.expert_towers)) == len(plan.expert_towers)
            and set(plan.expert_towers) <= {"image", "text"},
            "image, text or both",
        ),
        "image_clusters": (plan.image_clusters >= 1, "1 or more"),
        "text_clusters": (plan.text_clusters >= 1, "1 or more"),
    }
    for name, (holds, wanted) in limits.items():
        if not holds:
            raise TrainingError(f"{name}: expected {wanted}, got {getattr(plan, name)!r}.")
    if plan.clusters[-1] >= 2**63:
        raise TrainingError(
            f"experts: {plan.stages} stages of {plan.clusters[0]} clusters make more than can be counted. Set fewer of one."
        )


def _check_places(plan: Upcycling) -> None:
    default = Recipe()
    for part, recipe in (("stage", plan.stage), ("router", plan.router)):
        saved, usual = recipe.to_json(), default.to_json()
        for name in SHARED:
            if saved[name] != usual[name]:
                raise TrainingError(f"{part}.{name}: stages and router share it. Set {name} instead.")
        if saved["clusters"]:
            raise TrainingError(f"{part}.clusters: the run makes its own. Take it out.")
    for name in START:
        if (value := plan.router.to_json()[name]) != default.to_json()[name]:
            raise TrainingError(
                f"router.{name}: set to {value!r}, but the router starts from what the stages left. Set {name} for the whole run."
            )
    if plan.stage.batches != "clustered":
        raise TrainingError(
            f"stage.batches: expected clustered, got {plan.stage.to_json()['batches']!r}. "
            "For stages without clusters set image_clusters=1 and text_clusters=1."
        )
    if plan.router.batches == "clustered":
        raise TrainingError("router.batches: a router learns on all pairs. Set pairs.")
