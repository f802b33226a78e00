"""What is asked of the embeddings. An objective is one file, one line here, one test.

An objective is a pure function of tensors: no rank, no gather, no cache inside. It asks for features by the names of its
parameters. Those that every run offers: `scale` () and `bias` () of the model, both as they multiply and add to the cosine.
Those of the encoder "pairs": `image` (B, D), `text` (B, D), `groups` (B,), and `image_b` (B, D), a second view. "mosaics" offers
the first three: there a pair's `image` may be its tile of a mosaic, so that CLIM's loss is `info_nce` itself. "regions" adds
`regions` (B, M, D), `region_texts` (B, M, D), `named` (B, M), `boxes` (B, M, 4) and, of a model that grounds texts, `grounded`.
"reinforced" offers `image`, `text`, `groups` (not of unlabelled pictures) and, in the student's width, `teacher_image`, `teacher_text`
(B, D); its batches add `teacher_scale` ().
Of mixtures of experts "pairs" and "reinforced" offer what models/training/routing.py lists, where an objective asks for it.
A parameter with a default may be missing, and `label_smoothing` is the recipe's.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any

from torch import Tensor

from edgeclip.errors import TrainingError
from edgeclip.models.training.recipe import Recipe
from edgeclip.models.training.settings import nearest

OBJECTIVES = {
    "info_nce": "edgeclip.models.training.objectives.info_nce",
    "sigmoid": "edgeclip.models.training.objectives.sigmoid",
    "multi_positive": "edgeclip.models.training.objectives.multi_positive",
    "image_contrast": "edgeclip.models.training.objectives.image_contrast",
    "region_text": "edgeclip.models.training.objectives.region_text",
    "grounding": "edgeclip.models.training.objectives.grounding",
    **dict.fromkeys(
        (
            "feature_mse",
            "feature_cosine",
            "affinity",
            "contrastive_relation",
            "interactive_contrast",
            "relational",
            "hybrid_contrast",
        ),
        "edgeclip.models.training.objectives.distillation",
    ),
    "load_balance": "edgeclip.models.training.objectives.routing",
    "router_z": "edgeclip.models.training.objectives.routing",
}
SETTINGS = ("label_smoothing",)  # of the recipe
_TAUGHT = (
    " Set teacher_data to what `reinforce` wrote, batches=reinforced (or unlabelled) and encode=reinforced."
)
# A missing feature -> what to do.
HINTS = {
    "teacher_image": _TAUGHT,
    "teacher_scale": _TAUGHT,
    "groups": " Pictures without texts have none: only what compares with the teacher can be asked of them.",
    "bias": " The model has no logit_bias: set clip.logit_bias=true.",
    "image_routed": " Only encode=pairs tells what routers say, and encode=reinforced of a student's.",
    "image_router_z": " Only encode=pairs tells what routers say, and encode=reinforced of a student's.",
}


def objective(name: str) -> Callable[..., Tensor]:
    """The function `name` of the module in the table.

    Raises:
        TrainingError: no such objective; names the nearest.
    """
    if name not in OBJECTIVES:
        raise TrainingError(
            f"objectives: no {name!r}{nearest(name, OBJECTIVES)} There are {', '.join(OBJECTIVES)}."
        )
    function: Callable[..., Tensor] = getattr(import_module(OBJECTIVES[name]), name)
    return function


class Objectives:
    """The weighted objectives of one run."""

    def __init__(self, entries: tuple[tuple[str | Callable[..., Any], float], ...]) -> None:
        self._terms: dict[str, tuple[Callable[..., Tensor], float, dict[str, inspect.Parameter]]] = {}
        for entry, weight in entries:
            function = objective(entry) if isinstance(entry, str) else entry
            name = entry if isinstance(entry, str) else getattr(entry, "__name__", type(entry).__name__)
            if name in self._terms:
                raise TrainingError(f"objectives: {name} stands there twice. Add up its weights.")
            self._terms[name] = function, weight, dict(inspect.signature(function).parameters)
        self.wanted = {parameter for _, _, parameters in self._terms.values() for parameter in parameters}
        self._settings: dict[str, Any] = {}

    @classmethod
    def of(cls, recipe: Recipe) -> Objectives:
        """The recipe's, with those of its settings that they ask for by name."""
        made = cls(recipe.objectives)
        made._settings = {name: getattr(recipe, name) for name in SETTINGS if name in made.wanted}
        return made

    def __call__(self, features: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """-> (weighted sum, each term unweighted).

        Raises:
            TrainingError: a term asks for a feature that is not there.
        """
        values: dict[str, Tensor] = {}
        offered = {**features, **self._settings}
        for name, (function, _, parameters) in self._terms.items():
            given = {parameter: offered[parameter] for parameter in parameters if parameter in offered}
            if missing := [
                p for p, spec in parameters.items() if p not in given and spec.default is spec.empty
            ]:
                hint = HINTS.get(missing[0], "")
                raise TrainingError(
                    f"objectives: {name} asks for {', '.join(missing)}; there are {', '.join(features)}.{hint}"
                )
            values[name] = function(**given)
        total = sum(self._terms[name][1] * value for name, value in values.items())
        assert isinstance(total, Tensor)
        return total, values
