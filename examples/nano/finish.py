"""Second half of nano's training: all pictures at full size, a larger share of clip art.

Command:  edgeclip train examples/nano/finish.py -o runs/nano --set data=DATA --set init_from=runs/first/model
Hours:    0.4 on 2 CPU cores
Score:    0.59 top-1 of held-out Noto pictures among 1,911 names, at step 500 of 700
"""

from dataclasses import replace
from pathlib import Path

from pictograms import Pictograms
from recipe import RECIPE as FIRST
from tokenizers import Tokenizer

from edgeclip.models.source import Source
from edgeclip.models.training import Recipe
from edgeclip.models.training.distributed import Shard

NAMES = 72  # emoji names in a batch, each drawn twice; the rest is clip art


def full_size(recipe: Recipe, source: Source, shard: Shard) -> Pictograms:
    """The batches, of 64 pixels from the first step."""
    return Pictograms(
        Path(recipe.data),
        Tokenizer.from_str(source.tokenizer_json.decode()),
        steps=recipe.steps,
        sides=((1.0, 64),),
        names=NAMES,
        clip_art=recipe.batch_size - 2 * NAMES,
        seed=recipe.seed,
    )


RECIPE = replace(
    FIRST,
    name="nano",
    batches=full_size,
    steps=700,
    batch_size=208,
    learning_rate=5e-3,
    warmup_steps=30,
    ema_decay=0.99,
    checkpoint_every=100,
    seed=1,
)
