"""CLOC: a CLIP and a prompter that turns its picture's tokens into the embedding of a region, asked by a box or a text.

Command:  edgeclip train cloc -o runs/prompted --set init_from=hf:openai/clip-vit-base-patch16 --set data=regions.jsonl
          From pictures and captions: python examples/pseudo_regions.py pairs.csv -b DETECTOR -o regions.jsonl makes the boxes
Hours:    not measured at that size; 600 steps of 32 drawn scenes and a tiny tower took 2.4 minutes of one core
Score:    not measured at that size. On those scenes, of six shapes each, the colour of a box went to 1.00 (by the whole picture 0.25,
          chance 0.125), and a text's box to a mean IoU of 0.52 (the mean box has 0.05) at a learning rate of 1e-3, for a tower that
          was trained for minutes (benchmarks/results/regions_training.md). The paper trains from scratch for 439,000 steps
          Texts that are alike (cosine above 0.9) are no negatives of each other; where that leaves next to none, the run warns
"""

from edgeclip.models.training.recipe import Augmentation, Recipe

RECIPE = Recipe(
    name="cloc",
    model="prompter",
    batches="regions",
    encode="regions",
    augmentation=Augmentation(crop_scale=(1.0, 1.0)),  # the whole picture, as the runtime lays it out
    # The paper's weight of grounding is 1. Squares of shares of a side are 0.05 or so, a contrast is nats: after 600 steps of drawn scenes
    # texts were answered with the mean box at 1 and at 10 (IoU 0.07), at 100 with their own (0.39). It costs regions their details: colour
    # 0.99 at all three, colour and shape 0.39, 0.36 and 0.24. For regions alone set it to 1.
    objectives=(("info_nce", 1.0), ("region_text", 1.0), ("grounding", 100.0)),
    steps=10_000,
    batch_size=256,
    learning_rate=5e-5,
    weight_decay=0.2,
    warmup_steps=1000,
)
