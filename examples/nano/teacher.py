"""The teacher: nano, grown to four times its size (grow.py), trained on at full size.

Command:  edgeclip train examples/nano/teacher.py -o runs/teacher --set data=DATA --set init_from=runs/grown
Hours:    0.6 on one CPU core
Score:    see README.md
"""

from dataclasses import replace

from finish import RECIPE as FINISH

RECIPE = replace(
    FINISH,
    name="teacher",
    steps=160,
    learning_rate=1.2e-3,
    warmup_steps=20,
    ema_decay=0.98,
    checkpoint_every=40,
    seed=7,
)
