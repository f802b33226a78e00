"""Recipes by name, or by the path of a file of one's own. A recipe file is short, typed, and exposes `RECIPE`."""

from __future__ import annotations

import importlib.util
import sys
from importlib import import_module
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType

from edgeclip.errors import EdgeClipError, TrainingError
from edgeclip.models.training.plan import Upcycling
from edgeclip.models.training.recipe import Recipe
from edgeclip.models.training.settings import nearest

RECIPES = {
    "clip_vit_tiny": "edgeclip.models.training.recipes.clip_vit_tiny",
    "siglip_vit_tiny": "edgeclip.models.training.recipes.siglip_vit_tiny",
    "finetune": "edgeclip.models.training.recipes.finetune",
    "distill": "edgeclip.models.training.recipes.distill",
    "sparse_upcycling": "edgeclip.models.training.recipes.sparse_upcycling",
    "clim_finetune": "edgeclip.models.training.recipes.clim_finetune",
    "clip_moe": "edgeclip.models.training.recipes.clip_moe",
    "cloc": "edgeclip.models.training.recipes.cloc",
}


def load_recipe(name: str) -> Recipe:
    """A built-in recipe of one run, or the RECIPE of a .py file (which is run, like any program that one starts).

    Raises:
        TrainingError: no such recipe (names the nearest), a file that fails or exposes none, or a plan of several runs.
    """
    found = load_plan(name)
    if isinstance(found, Upcycling):
        raise TrainingError(f"{name}: is a run of stages; load_plan opens it, and run_stages runs it.")
    return found


def load_plan(name: str) -> Recipe | Upcycling:
    """As `load_recipe`, and a run of stages too.

    Raises:
        TrainingError: no such recipe (names the nearest), or a file that fails or exposes none.
    """
    if name in RECIPES:
        module = import_module(RECIPES[name])
    elif name.endswith(".py"):
        module = _run_file(Path(name))
    else:
        raise TrainingError(
            f"{name}: no such recipe{nearest(name, RECIPES)} There are {', '.join(RECIPES)}, or pass a .py file."
        )
    recipe = getattr(module, "RECIPE", None)
    if not isinstance(recipe, (Recipe, Upcycling)):
        raise TrainingError(
            f"{name}: expected RECIPE = Recipe(...) or Upcycling(...) in the file, got {type(recipe).__name__}."
        )
    return recipe


class _AsItStands(SourceFileLoader):
    """Compiles the file each time: what Python keeps compiled is known by size and second, and a recipe is changed and run at once."""

    def get_code(self, fullname: str) -> CodeType:
        """Of the file as it stands now; nothing is left beside it."""
        return self.source_to_code(self.get_data(self.path), self.path)


def _run_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise TrainingError(f"{path}: no such recipe file.")
    name = f"edgeclip_recipe_{path.stem}"
    loader = _AsItStands(name, str(path))
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if (
        str(path.parent.resolve()) not in sys.path
    ):  # its neighbours can be imported, as when it is run by itself
        sys.path.insert(0, str(path.parent.resolve()))
    try:
        loader.exec_module(module)
    except EdgeClipError:
        raise
    except Exception as error:
        raise TrainingError(f"{path}: the recipe file fails ({type(error).__name__}: {error}).") from error
    return module
