"""Diversified Multiplet Upcycling of the dense base: three stages of feed-forwards, gathered as experts, then the routers.

Command:  edgeclip train examples/nano_moe/multistage.py -o runs/multistage --set data=PAIRS/training.jsonl --set init_from=runs/base/model
Hours:    0.07 of one core (learning_rate=3e-4 of stages and router)
Score:    0.18 and 0.28 top-1 of Noto and Twemoji: no better than the base trained on

As published but for what is small here: two clusters of pictures and two of texts, so that the third stage's 64 hold a batch of 64
each; rates of a model that was trained for minutes; equal names are no negatives, and nothing is smoothed.
"""

from dataclasses import replace

from further import RECIPE as FURTHER

from edgeclip.models.training.plan import Upcycling

RECIPE = Upcycling(
    name="nano_moe",
    image_clusters=2,
    text_clusters=2,
    stage=replace(
        FURTHER,
        batches="clustered",
        ship="last",
        batch_size=64,
        steps=160,
        warmup_steps=8,
        checkpoint_every=80,
    ),
    router=replace(
        FURTHER,
        trained=("*.mlp.router.weight",),
        objectives=(("multi_positive", 1.0), ("load_balance", 0.01)),
        expert_dropout=0.1,
        steps=160,
        warmup_steps=8,
    ),
)
