"""Training: a recipe in, a source folder out that `edgeclip export` takes.

    from edgeclip.models.training import load_recipe, train

    result = train(load_recipe("clip_vit_tiny"), Path("runs/tiny"))

What a recipe may say is in `recipe.py`; the seams for a model, batches, an encoder and objectives of one's own in
docs/training.md.
"""

from __future__ import annotations

from edgeclip.models.training.loop import TrainResult, rehearse, train
from edgeclip.models.training.multistage import StagesResult, rehearse_stages, run_stages
from edgeclip.models.training.plan import Upcycling, with_plan_settings
from edgeclip.models.training.recipe import Augmentation, Recipe, with_settings
from edgeclip.models.training.recipes import RECIPES, load_plan, load_recipe

__all__ = [
    "RECIPES",
    "Augmentation",
    "Recipe",
    "StagesResult",
    "TrainResult",
    "Upcycling",
    "load_plan",
    "load_recipe",
    "rehearse",
    "rehearse_stages",
    "run_stages",
    "train",
    "with_plan_settings",
    "with_settings",
]
