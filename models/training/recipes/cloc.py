"""CLOC: a CLIP and a prompter that turns its picture's tokens into the embedding of a region, asked by a box or a text.

Command:  edgeclip train cloc -o runs/prompted --set init_from=hf:openai/clip-vit-base-patch16 --set data=regions.jsonl
          From pictures and captions: python examples/pseudo_regions.py pairs.csv -b DETECTOR -o regions.jsonl makes the boxes
Hours:    not measured at that size
Score:    not measured at that size. Two places of four colours are learned in 45 steps (tests); 300 steps of drawn scenes with six
          shapes each were too few for a new prompter. The paper's, from scratch, takes 439,000 steps
          Texts that are alike (cosine above 0.9) are no negatives of each other: if region_text is 0 from the start, the text tower
          holds all of them to be alike
"""

from edgeclip.models.training.recipe import Augmentation, Recipe

RECIPE = Recipe(
    name="cloc",
    model="prompter",
    batches="regions",
    encode="regions",
    augmentation=Augmentation(crop_scale=(1.0, 1.0)),  # the whole picture, as the runtime lays it out
    objectives=(("info_nce", 1.0), ("region_text", 1.0), ("grounding", 100.0)),
    steps=10_000,
    batch_size=256,
    learning_rate=5e-5,
    weight_decay=0.2,
    warmup_steps=1000,
)
