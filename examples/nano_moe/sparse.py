"""Sparse upcycling: every feed-forward of the dense base copied four times, a token takes two, everything is trained.

Command:  edgeclip train examples/nano_moe/sparse.py -o runs/sparse --set data=PAIRS/training.jsonl --set init_from=runs/base/model
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
