"""The teacher of taught.py: nano's towers at three times the size, 32 pixels wide.

Command:  edgeclip train examples/nano/teacher.py -o runs/teacher --set data=DATA
Hours:    1.0 on two CPU cores, one of them a third of the time at other work
Score:    0.565 top-1 of held-out Noto pictures among 1,911 names, at step 900; 0.523 of Twemoji
"""

from dataclasses import replace

from half import RECIPE as HALF
from half import new_small
from recipe import CONFIG

from edgeclip.models.nano import NanoCLIP
from edgeclip.models.source import Source
from edgeclip.models.training import Recipe

WIDTHS = (48, 96, 192, 416)  # 10 M parameters


def new_teacher(recipe: Recipe) -> Source:
    """An untrained one."""
    small = new_small(recipe)
    assert isinstance(small.model, NanoCLIP)
    config = replace(CONFIG, image_size=small.model.config.image_size, widths=WIDTHS)
    return replace(small, model=NanoCLIP(config))


RECIPE = replace(HALF, name="teacher", model=new_teacher, steps=1000, warmup_steps=75, seed=7)
