"""nano's size from scratch at half its schedule, 32 pixels wide: what a student that was taught (taught.py) is compared with.

Command:  edgeclip train examples/nano/half.py -o runs/half --set data=DATA --set seed=1
Hours:    0.5 on one CPU core
Score:    0.548 top-1 of held-out Noto pictures among 1,911 names, at step 1,000 (seed 0); 0.505 of Twemoji (mean of three seeds)
"""

from dataclasses import replace
from pathlib import Path

from pictograms import Pictograms
from recipe import CONFIG, new_nano
from recipe import RECIPE as FULL
from tokenizers import Tokenizer

from edgeclip.models.nano import NanoCLIP
from edgeclip.models.source import Source
from edgeclip.models.training import Recipe
from edgeclip.models.training.distributed import Shard

SIDE = 32  # of its pictures, all the way: a quarter of the work of 64
NAMES = 96 / 248  # in a batch, each drawn twice; the rest is clip art


def new_small(recipe: Recipe) -> Source:
    """An untrained nano for pictures of 32 pixels."""
    source = new_nano(recipe)
    return replace(
        source,
        model=NanoCLIP(replace(CONFIG, image_size=SIDE)),
        preprocessing=replace(source.preprocessing, size=(SIDE, SIDE)),
    )


def small_pictograms(recipe: Recipe, source: Source, shard: Shard, views: int = 0) -> Pictograms:
    """nano's batches at 32 pixels."""
    names = round(NAMES * recipe.batch_size)
    return Pictograms(
        Path(recipe.data),
        Tokenizer.from_str(source.tokenizer_json.decode()),
        steps=recipe.steps,
        sides=((1.0, SIDE),),
        names=names,
        clip_art=recipe.batch_size - 2 * names,
        views=views,
        seed=recipe.seed,
    )


RECIPE = replace(
    FULL,
    name="half",
    model=new_small,
    batches=small_pictograms,
    steps=1100,
    warmup_steps=75,
    ema_decay=0.99,
    checkpoint_every=100,
)
