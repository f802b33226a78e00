"""Training the dense base on, with the settings that every contestant of benchmarks/moe_training.py shares.

Command:  edgeclip train examples/nano_moe/further.py -o runs/further --set data=PAIRS/training.jsonl --set init_from=runs/base/model
Hours:    0.05 of one core
Score:    0.19 and 0.29 top-1 of Noto and Twemoji
"""

from dataclasses import replace

from dense import RECIPE as DENSE

RECIPE = replace(
    DENSE,
    model="source",
    clip=None,
    tokenizer="",
    preprocessing=None,  # the base's own
    steps=400,
    optimizer="adamw",
    learning_rate=1e-3,
    warmup_steps=20,
    ema_decay=0.0,
    checkpoint_every=40,
)
