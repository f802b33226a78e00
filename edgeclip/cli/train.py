"""`edgeclip train`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeclip.cli.common import emit, json_option, notes

if TYPE_CHECKING:
    from edgeclip.models.training import TrainResult

EXAMPLES = """\b
Examples:
  edgeclip train clip_vit_tiny                                  a first run on drawn shapes: a minute, no data, no GPU
  edgeclip train clip_vit_tiny -o runs/mine --set data=photos/ --set steps=20000
  edgeclip train finetune -o runs/pets --set init_from=hf:openai/clip-vit-base-patch32 --set data=pets.csv
  edgeclip train clim_finetune -o runs/regions --set init_from=hf:openai/clip-vit-base-patch16 --set data=pairs.csv --set resolution=1024
  edgeclip train cloc -o runs/prompted --set init_from=hf:openai/clip-vit-base-patch16 --set data=instances.json --set images=train2017/
  edgeclip train clip_moe -o runs/moe --set init_from=hf:openai/clip-vit-large-patch14 --set data=pairs.csv --set stage.steps=500
  edgeclip train finetune --set ... --dry-run                   the resolved recipe, and whether its data opens
  edgeclip train my_recipe.py                                   your own file, with RECIPE = Recipe(...) or Upcycling(...)
  torchrun --nproc-per-node 4 -m edgeclip train finetune ...    several GPUs

\b
The same command again goes on where the run stopped. The result, DIR/model, is a source: edgeclip export DIR/model.
"""


@click.command(epilog=EXAMPLES)
@click.argument("recipe")
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="The run's folder. Default: runs/RECIPE.",
)
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change a setting; repeat for more."
)
@click.option(
    "--resume/--no-resume",
    default=True,
    show_default=True,
    help="Go on from the latest checkpoint in the folder.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Show the resolved recipe, open model and data, make one batch; train nothing.",
)
@json_option
def command(
    recipe: str, output: Path | None, settings: tuple[str, ...], resume: bool, dry_run: bool, as_json: bool
) -> int:
    """Train a source model from a recipe.

    RECIPE is a built-in name (clip_vit_tiny, siglip_vit_tiny, finetune, clim_finetune, cloc, sparse_upcycling, clip_moe) or a .py file.
    """
    try:
        import torch  # noqa: F401
    except ImportError as error:
        from edgeclip.errors import MissingExtraError

        raise MissingExtraError("train: PyTorch is not installed. pip install 'edgeclip[train]'") from error
    from dataclasses import asdict

    output = output or Path("runs") / Path(recipe).stem
    rehearsal, run = _read(recipe, settings, output, resume, progress=not as_json)
    if dry_run:
        emit(rehearsal())
        return 0
    try:
        result = run()
    except KeyboardInterrupt:
        for there in (output / "checkpoints" / "latest", output / "plan.json"):
            if there.is_file():
                what = (
                    f"a checkpoint in {there.parent}"
                    if there.name == "latest"
                    else f"all finished parts in {output}"
                )
                notes().print(f"stopped with {what}; the same command goes on from there")
        raise
    if os.environ.get("RANK", "0") != "0":  # under torchrun, one process speaks
        return 0
    if as_json:
        emit({**asdict(result), "model": str(result.model)})
        return 0
    if result.best_score is not None:
        click.echo(
            f"best held-out score {result.best_score:.4f} at step {result.best_step} of {result.steps}"
        )
    if result.unreadable:
        click.echo(f"{result.unreadable} draws of unreadable pairs were replaced by others", err=True)
    click.echo(
        f"{result.model}: trained, last loss {result.loss:.4f}. Next: edgeclip export {result.model} -o {output.name}-bundle"
    )
    return 0


def _read(
    recipe: str, settings: tuple[str, ...], output: Path, resume: bool, progress: bool
) -> tuple[Callable[[], dict[str, Any]], Callable[[], TrainResult]]:
    """What a dry run shows, and the run itself, each when it is called."""
    from edgeclip.models.training import (
        Upcycling,
        load_plan,
        rehearse,
        rehearse_stages,
        run_stages,
        train,
        with_plan_settings,
        with_settings,
    )

    found = load_plan(recipe)
    if isinstance(found, Upcycling):
        plan = with_plan_settings(found, settings)
        return (
            lambda: {"recipe": plan.to_json(), **rehearse_stages(plan)},
            lambda: run_stages(plan, output, resume=resume, progress=progress),
        )
    resolved = with_settings(found, settings)
    return (
        lambda: {"recipe": resolved.to_json(), **rehearse(resolved)},
        lambda: train(resolved, output, resume=resume, progress=progress),
    )
