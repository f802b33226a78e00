"""Sparse upcycling: every feed-forward of the dense base copied four times, a token takes two, everything is trained.

Command:  edgeclip train examples/nano_moe/sparse.py -o runs/sparse --set data=PAIRS/training.jsonl --set init_from=runs/base/model
Hours:    0.1 of one core (learning_rate=1e-3)
Score:    0.20 and 0.29 top-1 of Noto and Twemoji
"""

from dataclasses import replace

from further import RECIPE as FURTHER

RECIPE = replace(
    FURTHER,
    model="upcycled",
    experts=4,
    top_k=2,
    objectives=(("multi_positive", 1.0), ("load_balance", 0.01)),
)
